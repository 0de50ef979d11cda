"""Whether an engine and the plain loop agree, in float64 and with equal random draws.

Some of torch's vmap rules give wrong derivatives without an error: fused normalisation with scale and shift is one, an
embedding's `padding_idx` another. The error may be too small to see among float32 rounding, but is far larger than
float64 rounding. It may also show for some values only, so engines are compared again on later tasks, see `watch`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.engine.draws import InLogicalOrder
from quickstudy.engine.engines import LOOP, Engine, find_engine
from quickstudy.engine.mapping import map_each, meta_gradient
from quickstudy.episodes import Episodes, first_tasks, unstack
from quickstudy.learner import Episode, Learner, Theta, networks
from quickstudy.nn.model import without_chance

T = TypeVar("T")
Compute = Callable[[Learner, Theta, Episodes, Engine], Any]  # what engines are compared on -> tensors, by name

TOLERANCE = 1e-7  # of the norm, in float64


class Disagreement(RuntimeError):
    """An engine gives another result than the loop."""


def gradients(learner: Learner, theta: Theta, episodes: Episodes, engine: Engine) -> dict[str, Any]:
    """The meta-loss and the meta-gradient, by name. All tasks draw the same random numbers, under all engines."""
    loss, gradient = meta_gradient(learner, theta, episodes, engine, equal_draws=True)
    return {"the meta-loss": loss, **{f"the meta-gradient of {name!r}": g for name, g in gradient.items()}}


def answers(learner: Learner, theta: Theta, episodes: Episodes, engine: Engine) -> dict[str, Any]:
    """The predictions for each task's queries. All tasks draw the same random numbers, under all engines."""

    def answer(learner: Learner, episode: Episode) -> Any:
        return learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x)

    return {"the predictions": map_each(answer, learner, unstack(episodes), engine, equal_draws=True)}


def check_engine(
    learner: Learner, theta: Theta, episodes: Episodes, engine: str | Engine, compute: Compute = gradients
) -> None:
    """Raise Disagreement unless an engine and the loop agree on two tasks: on `gradients`, or on `answers`.

    The check also confirms that a program recorded on one task holds for another, and for another theta. Layers that
    draw are off; all other draws are the same in all tasks. What the engine itself raises, it raises here too.
    """
    how = find_engine(engine)
    if not how.own_operations:
        compare(in_double(learner, without_chance), to_double(theta), to_double(first_tasks(episodes, 2)), how, compute)


def compare(exact: Learner, theta: Theta, episodes: Episodes, engine: Engine, compute: Compute = gradients) -> None:
    """Raise Disagreement, naming what differs most, unless an engine and the loop agree on these tasks.

    All tensors are in float64. A compiled program is compared before it is compiled.
    """
    engine = engine.uncompiled
    with InLogicalOrder():
        wanted = compute(exact, theta, episodes, LOOP)
        if engine.recorded:
            compute(exact, elsewhere(theta), episodes, engine)
        found = compute(exact, theta, episodes, engine)
    apart = relative_difference(found, wanted)
    if not apart <= TOLERANCE:
        worst = max(wanted, key=lambda name: _distance(found[name], wanted[name]))
        raise Disagreement(f"{worst} is wrong (by {apart:.0e} in float64)")


def _distance(a: Any, b: Any) -> float:
    """|a - b|, infinite where that is not a number, so that the first such is the largest."""
    difference = torch.linalg.vector_norm(_flat(a) - _flat(b))
    return float(difference.nan_to_num(nan=torch.inf))


def elsewhere(theta: Theta) -> Theta:
    """A different theta. If a program recorded there is right at theta, it has no value of theta as a constant."""
    return {name: 1.01 * value + 0.001 if value.is_floating_point() else value for name, value in theta.items()}


def in_double(learner: Learner, change: Callable[[nn.Module], nn.Module] = lambda model: model) -> Learner:
    """The learner with float64 copies of its networks. `change` may change them in place, as `without_chance` does."""
    exact = {name: change(copy.deepcopy(model).double()) for name, model in networks(learner).items()}
    return dataclasses.replace(learner, **exact)  # type: ignore[type-var]


def to_double(tree: T) -> T:
    """The same nested value with its floating-point tensors in float64. Whole numbers stay as they are."""
    return pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, tree)


def relative_difference(a: Any, b: Any) -> float:
    """|a - b| / |b| in the Euclidean norm over all tensors of two nested values."""
    difference, size = torch.linalg.vector_norm(_flat(a) - _flat(b)), torch.linalg.vector_norm(_flat(b))
    return float(difference / size.clamp(min=1e-12))


def _flat(tree: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in pytree.tree_leaves(tree)])
