"""A pass over the test episodes: the one loop behind the score and every other measurement.

    episode i = draw(seed, i)            the same for every learner, so that comparisons are paired
    result i  = measure(learner, i)      a function of one task, which gives a tensor or nested tensors

Episodes come in blocks. Each is moved to theta's device, checked, and mapped by one engine, which is chosen once. The
ranks of a process group take turns with the blocks, and all of them get all results.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from quickstudy.base import seeds
from quickstudy.base.timing import timed
from quickstudy.engine import agreement, mapping, ranks
from quickstudy.engine.engines import Engine
from quickstudy.engine.fitting import (
    check_episodes,
    check_values,
    device_of,
    is_transductive,
    normalisation_of,
    shares_queries,
)
from quickstudy.engine.labels import Allowed
from quickstudy.engine.watch import Watch
from quickstudy.episodes import Episodes, are_classes, concat, first_tasks, moved, stacked, unstack
from quickstudy.errors import ConfigError
from quickstudy.evaluation.gathering import gathered
from quickstudy.evaluation.protocol import Protocol
from quickstudy.learner import Episode, Learner, Theta, setting
from quickstudy.tasks.source import Source, source_of

BLOCK = 25  # episodes evaluated at once: enough to keep the engine busy, few enough for memory
LOOK = 6  # what comparing an engine with the loop on two tasks takes, in tasks: both in float64, mapping included

Measure = Callable[[Learner, Episode], Any]  # one task, its learner fitted to its ways -> nested tensors
Arrange = Callable[[int, Episode], Episode]  # number and episode -> the episode as it is measured


@dataclass(frozen=True, eq=False)
class Pass:
    """The test episodes of one learner, and what is known of them before the first is answered."""

    learner: Learner
    theta: Theta
    source: Source
    episodes: int  # how many
    seed: int
    first: Episodes  # the first block, checked
    labels: Allowed  # which labels the learner's classes have
    seconds: float  # that checking the first block took on one thread, which is about what one task takes
    drew: bool  # whether the learner drew from torch's generator there
    transductive: bool  # whether its answers to the queries of a task depend on each other, declared or seen
    arrange: Arrange | None = None

    @property
    def device(self) -> torch.device:
        return device_of(self.theta)

    @property
    def blocks(self) -> int:
        """How many blocks the episodes make."""
        return math.ceil(self.episodes / BLOCK)

    def places(self, number: int) -> range:
        """The numbers of the episodes in the block with this number, from 0."""
        return range(number * BLOCK, min((number + 1) * BLOCK, self.episodes))

    def block(self, number: int) -> Episodes:
        """The block with this number, checked. Raises DataError where the learner cannot use it."""
        if number == 0:
            return self.first
        drawn = _drawn(self.source, self.places(number), self.seed, self.device, self.learner, self.theta)
        check_values(drawn, self.labels)
        return drawn

    def arranged(self, block: Episodes, start: int) -> Episodes:
        """The episodes from number `start` on, as they are measured."""
        if self.arrange is None:
            return block
        ones = [self.arrange(number, one) for number, one in enumerate(unstack(block), start)]
        return ones if isinstance(block, list) else stacked(ones)


def begin(
    learner: Learner,
    theta: Theta,
    tasks: Any,
    episodes: int,
    seed: int,
    arrange: Arrange | None = None,
    check: Callable[[Episodes], None] = lambda first: None,
) -> Pass:
    """A pass over `episodes` test episodes of a seed, of which the first block is drawn and checked.

    arrange   changes each episode after it is checked, given its number
    check     refuses the first block before the learner sees it

    Raises ConfigError for fewer than one episode, DataError where the learner cannot use the tasks.
    """
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}.")
    source = source_of(tasks)
    first = _drawn(source, range(min(BLOCK, episodes)), seed, device_of(theta), learner, theta)
    check(first)
    checked = functools.partial(seeds.watching_generator, lambda: check_episodes(learner, theta, first))
    with _one_thread():
        (labels, drew), seconds = timed(checked, device_of(theta))
        transductive = is_transductive(learner) or (not drew and _seen_to_share(learner, theta, first))
    return Pass(learner, theta, source, episodes, seed, first, labels, seconds, drew, transductive, arrange)


def _seen_to_share(learner: Learner, theta: Theta, first: Episodes) -> bool:
    """Whether answers depend on each other where nothing declares it: then the score is a transductive one."""
    shares = shares_queries(learner, theta, first)
    if shares:
        warnings.warn(
            f"the answer of {type(learner).__name__} to a query changes with the other queries, which nothing "
            "declares. Its score counts as transductive. A learner of your own declares it, transductive: "
            "ClassVar[bool] = True. If its network mixes the rows of a batch, let it normalise by qs.nn.norm.",
            stacklevel=4,
        )
    return shares


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: hundreds of steps on a few examples wait for a second one longer than it saves."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def results(
    one: Pass,
    measure: Measure,
    engine: str,
    progress: Callable[[int], None] | None = None,
    beside: Callable[[Episodes], Sequence[Any]] | None = None,
    watch: Watch | None = None,
) -> Iterator[Any]:
    """measure(learner, episode) of every episode, in order and on the CPU, on every rank.

    engine     as `chosen_engine` gives it
    progress   is called with the number of episodes done since the last call
    beside     what else to note of each episode of a block as it was drawn; the results are then pairs
    watch      compares the engine with the loop now and then; None: one for this pass

    Raises EngineError where the engine and the loop differ, DataError where the learner cannot use a task, RankError
    where other ranks cannot be reached.
    """
    watch = watch or Watch(engine, one.seed, agreement.answers, LOOK * one.seconds)
    for turn in range(0, math.ceil(one.episodes / BLOCK), ranks.size()):  # each rank takes one block of a turn
        own = one.places(turn + ranks.rank())
        done = _measured(one, measure, turn + ranks.rank(), engine, beside, look=watch.look) if own else []
        together = range(turn * BLOCK, one.places(turn + ranks.size() - 1).stop)
        yield from gathered(done, own, together, lambda: _measured(one, measure, 0, "loop", beside, few=1)[0])
        if progress:
            progress(len(together))


def _measured(
    one: Pass,
    measure: Measure,
    number: int,
    engine: str,
    beside: Callable[[Episodes], Sequence[Any]] | None,
    few: int = BLOCK,
    look: Callable[[Learner, Theta, Episodes], None] | None = None,
) -> list[Any]:
    """The results of a block, or of its first few episodes."""
    drawn = first_tasks(one.block(number), few)
    if look is not None and ranks.size() == 1:  # one rank alone must not stop while the others wait for it
        look(one.learner, one.theta, drawn)
    with seeds.seeded(one.seed, "evaluate", number):
        measured = mapped(measure, one.learner, one.arranged(drawn, one.places(number).start), engine)
    return measured if beside is None else list(zip(measured, beside(drawn), strict=True))


def mapped(measure: Measure, learner: Learner, episodes: Episodes, engine: str | Engine) -> list[Any]:
    """measure(learner, episode) of each episode, on the CPU; results of tasks of unequal sizes may differ in shape."""
    if isinstance(episodes, list):
        each = mapping.map_each(measure, learner, episodes, engine)
        return pytree.tree_map(lambda t: t.cpu(), each)
    leaves, structure = pytree.tree_flatten(mapping.map_learner(measure, learner, episodes, engine))
    columns = (leaf.cpu().unbind(0) for leaf in leaves)
    return [pytree.tree_unflatten(row, structure) for row in zip(*columns, strict=True)]


# --- the protocol ----------------------------------------------------------------------------------------------------


def protocol_of(
    learner: Learner,
    tasks: Any,
    metric: str,
    episodes: int,
    seed: int,
    control: str | None = None,
    seen: Episodes | None = None,
    ensemble: int = 1,
    transductive: bool = False,
) -> Protocol:
    """The protocol under which `learner` is tested on `tasks`.

    Sizes that the task source does not report are taken from `seen`, a batch of its episodes. `transductive`: the
    answers were seen to depend on each other, whatever the learner declares.
    """
    about = (_sizes(seen) if seen else {}) | source_of(tasks).describe()
    return Protocol(
        learner=type(learner).__name__,
        tasks=about["name"],
        split=about.get("split", "unknown"),
        ways=about.get("ways"),
        shots=about.get("shots", 0),
        queries=about.get("queries", 0),
        metric=metric,
        episodes=episodes,
        seed=seed,
        transductive=transductive or is_transductive(learner),
        normalisation=normalisation_of(learner),
        steps=setting(learner, "steps"),
        ensemble=ensemble,
        control=control,
    )


def _sizes(episodes: Episodes) -> dict[str, Any]:
    """Ways, shots and queries: the largest of any task."""
    sizes = [_sizes_of(support.y, query.y) for support, query in unstack(episodes)]
    ways = [one["ways"] for one in sizes if one["ways"]]
    return {name: max(one[name] for one in sizes) for name in ("shots", "queries")} | {"ways": max(ways, default=None)}


def _sizes_of(support: Any, query: Any) -> dict[str, Any]:
    ways = len(support[support >= 0].unique()) if are_classes(support) else None  # below 0: a loss ignores it
    shown, asked = (len(pytree.tree_leaves(y)[0]) for y in (support, query))
    return {"ways": ways, "shots": shown // (ways or 1), "queries": asked // (ways or 1)}


# --- drawing ---------------------------------------------------------------------------------------------------------


def sample_blocks(tasks: Any, episodes: int, seed: int, device: torch.device) -> Iterator[Episodes]:
    """Episodes 0..episodes-1 of the test seed, in blocks; each episode is drawn with its own generator."""
    for number in range(math.ceil(episodes / BLOCK)):
        yield sample_block(tasks, episodes, seed, device, number)


def sample_block(tasks: Any, episodes: int, seed: int, device: torch.device, number: int) -> Episodes:
    """The block with this number, from 0, of the episodes of `sample_blocks`."""
    places = range(number * BLOCK, min((number + 1) * BLOCK, episodes))
    return moved(concat([source_of(tasks).sample(1, seeds.generator(seed, "test", i)) for i in places]), device)


def _drawn(
    source: Source, places: Sequence[int], seed: int, device: torch.device, learner: Learner, theta: Theta
) -> Episodes:
    """The test episodes at these places; where the source is on-policy, as this learner meets them."""
    generators = (seeds.generator(seed, "test", i) for i in places)
    return moved(concat([source.draw(1, generator, learner, theta) for generator in generators]), device)


def tasks_of(tasks: Any, episodes: int, seed: int) -> tuple[str, ...]:
    """The name of each test episode's task; empty if the source draws new tasks each time."""
    source = source_of(tasks)
    if "task" not in source.facts(1, seeds.generator(seed, "test", 0)):
        return ()
    return tuple(source.facts(1, seeds.generator(seed, "test", i))["task"][0] for i in range(episodes))
