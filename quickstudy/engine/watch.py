"""Looks again, in the course of a training or an evaluation, whether an engine agrees with the loop.

A wrong rule of an engine may show for some values only: padding that occurs in one task of ten, ties, zeros. One
comparison on the first tasks proves little, so it is repeated on later ones, for a small share of the time that has
passed. Looking changes no result. It prefers tasks whose inputs hold smaller or larger whole numbers than those of the
tasks looked at so far, because padding and masks are such numbers; it takes the others at random.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from quickstudy.base import memory, trees
from quickstudy.base.seeds import generator, seeded
from quickstudy.engine import agreement
from quickstudy.engine.engines import Engine, find_engine
from quickstudy.episodes import Episodes, count, stacked, unstack
from quickstudy.errors import EngineError
from quickstudy.learner import Learner, Theta
from quickstudy.nn.model import without_chance

SHARE = 0.01  # of the time since the watch began, which looking may take; twice that for tasks with new extremes
TASKS = 2  # compared in one look at an engine that takes tasks together and might mix them; else one


class Watch:
    """Compares an engine with the loop now and then, on tasks of its own choice.

    engine    one that runs the loop's own operations is never compared
    seed      of the choice of tasks, and of the random draws in the comparison
    compute   what is compared: `agreement.gradients` or `agreement.answers`
    cost      seconds that a look takes, as far as known; later ones are measured
    """

    def __init__(
        self,
        engine: str | Engine,
        seed: int = 0,
        compute: agreement.Compute = agreement.gradients,
        cost: float = 0.0,
    ) -> None:
        self.engine, self.seed, self.compute, self.cost = find_engine(engine), seed, compute, cost
        self.began, self.spent, self.looks, self.failed = time.perf_counter(), 0.0, 0, False
        self._exact: tuple[Learner, Learner] | None = None  # the learner looked at last, and its float64 copy
        self._reach: Tensor | None = None  # the largest of each column of `_extremes` among the tasks looked at

    def look(self, learner: Learner, theta: Theta, episodes: Episodes) -> None:
        """Compare the engine with the loop on a few of these tasks, if it is time to.

        Raises EngineError, naming what is wrong most, where they do not agree.
        """
        if self.engine.own_operations or not theta or not count(episodes):
            return
        reach = _extremes(episodes)
        new = [] if reach is None else _beyond(reach, self._reach)
        passed = time.perf_counter() - self.began
        if self.spent + self.cost > (2 if new else 1) * SHARE * passed:
            return
        began = time.perf_counter()
        places = self._places(new, count(episodes))
        tasks = [unstack(episodes)[place] for place in places]
        self._compare(learner, theta, tasks if isinstance(episodes, list) else stacked(tasks))
        if reach is not None:
            seen = reach[places].amax(0)
            self._reach = seen if self._reach is None else torch.maximum(self._reach, seen)
        self.cost = time.perf_counter() - began
        self.spent, self.looks = self.spent + self.cost, self.looks + 1

    def _places(self, new: list[int], tasks: int) -> list[int]:
        order = torch.randperm(tasks, generator=generator(self.seed, "look", self.looks)).tolist()
        # The most remarkable one comes last: a rule that confuses the tasks of a batch is often right for the first.
        few = TASKS if self.engine.together else 1
        return [*new, *(place for place in order if place not in new)][:few][::-1]

    def _compare(self, learner: Learner, theta: Theta, tasks: Episodes) -> None:
        if self._exact is None or self._exact[0] is not learner:
            self._exact = learner, agreement.in_double(learner, without_chance)
        double = agreement.to_double((theta, tasks))
        try:
            with seeded(self.seed, "look", self.looks):
                agreement.compare(self._exact[1], *double, self.engine, self.compute)
        except agreement.Disagreement as error:
            self.failed = True
            raise EngineError(
                f"engine {self.engine.name!r} and the loop differ on these tasks: {error}. They agreed on the tasks "
                "compared before, so an operation of the model must be mapped wrongly for some values only, such as "
                "padding. What was computed since may be wrong too: start again with engine='loop' or 'threads'."
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):  # float64 takes twice as much; a training that just fits goes on unwatched
                raise


def _extremes(episodes: Episodes) -> Tensor | None:
    """[tasks, columns]: the largest, and the negated smallest, whole number of each input; None where none is whole."""
    if isinstance(episodes, list):
        each = [_extremes(stacked([one])) for one in episodes]
        found = [one for one in each if one is not None]
        return torch.cat(found) if found else None
    inputs = [t for batch in episodes for t in trees.tensors(batch.x) if not t.is_floating_point() and t.numel()]
    if not inputs:
        return None
    flat = [t.reshape(len(t), -1).long() for t in inputs]
    return torch.stack([column for t in flat for column in (t.amax(1), -t.amin(1))], 1)


def _beyond(reach: Tensor, before: Tensor | None) -> list[int]:
    """The tasks that hold the largest number of a column where it is larger than all before; most columns first."""
    best = reach.amax(0)
    held = (reach == best) & (best > before) if before is not None else reach == best
    order = held.sum(1).argsort(descending=True, stable=True)
    return [task for task in order.tolist() if held[task].any()]
