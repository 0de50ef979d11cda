"""How good is a learner? Scores on unseen tasks with interval, protocol and controls, and paired comparison."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.engine import mapping, ranks
from quickstudy.engine.choice import race
from quickstudy.engine.fitting import (
    check_episodes,
    check_values,
    device_of,
    for_test,
    is_transductive,
    normalisation_of,
)
from quickstudy.episodes import Episodes, concat, count, first_tasks, is_classification, moved, unstack
from quickstudy.errors import ConfigError, NonFiniteError
from quickstudy.evaluation.controls import check_control, control
from quickstudy.evaluation.ensemble import best_thetas, mean_answer
from quickstudy.evaluation.protocol import Protocol
from quickstudy.evaluation.score import Score
from quickstudy.learner import Episode, Learner, Theta
from quickstudy.tasks.source import describe

BLOCK = 25  # episodes evaluated at once: enough to keep the engine busy, few enough for memory
TRIAL = 8  # episodes on which the engines are timed


def evaluate(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 600,
    seed: int = 1,
    steps: int | None = None,
    transductive: bool | None = None,
    ensemble: int = 1,
    controls: Sequence[str] = (),
    engine: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Score:
    """The score of a trained learner on test tasks.

    `trained` has `.learner` and `.theta`. Test episode i depends only on (seed, i), so every learner gets the same
    episodes and scores can be compared in pairs. `steps`: inner steps at test, if other than in training.
    `transductive`: None keeps the network's own setting; False normalises queries with the support set's statistics.
    `ensemble`: this many thetas, those with the best validation scores, learn each task, and their answers (class
    probabilities or values) are averaged. This needs training with `keep`; the controls use the best theta only.
    `controls`: names from `controls.CONTROLS`. `engine`: "auto" times the engines. `progress(n)` is called
    with the number of episodes done since the last call. In a process group every rank makes the same call: the ranks
    divide the episodes, and all get the score.

    Raises ConfigError where a setting does not fit the learner and where training kept fewer thetas than the ensemble
    needs, DataError where the learner cannot use the tasks, NonFiniteError where an output is not finite, and RankError
    where other ranks cannot be reached.
    """

    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}.")
    for name in controls:
        check_control(name)
    thetas = best_thetas(trained, ensemble)
    learner = for_test(trained.learner, tasks, steps, transductive)
    score = _score(learner, thetas, tasks, episodes, seed, engine, progress)
    found = {}
    for name in controls:
        variant, theta, source = control(name, learner, trained.theta, tasks)
        try:
            found[name] = _score(variant, (theta,), source, episodes, seed, engine, progress, control=name)
        except NonFiniteError:
            warnings.warn(f"the control {name!r} diverged on these tasks and is left out", stacklevel=2)
    return dataclasses.replace(score, controls=found) if found else score


def _score(
    learner: Learner,
    thetas: Sequence[Theta],
    tasks: Any,
    episodes: int,
    seed: int,
    engine: str,
    progress: Callable[[int], None] | None,
    control: str | None = None,
) -> Score:
    device = device_of(thetas[0])
    first = sample_block(tasks, episodes, seed, device, 0)
    outputs = check_episodes(learner, thetas[0], first)
    metric = "accuracy" if is_classification(first) else "mean squared error"

    def measure(episodes: Episodes, chosen: str) -> Tensor:
        return mapping.map_learner(lambda one, e: _ensemble_score(one, thetas, e), learner, episodes, chosen)

    few = first_tasks(first, TRIAL)
    with seeds.seeded(seed, "choose"):
        choice = ranks.same_engine(race.choose(lambda name: measure(few, name), engine, count(few), device))
    result = torch.zeros(episodes, dtype=torch.float64)
    for number in range(ranks.rank(), math.ceil(episodes / BLOCK), ranks.size()):  # each rank takes every N-th block
        block = sample_block(tasks, episodes, seed, device, number) if number else first
        check_values(block, outputs)
        begin = number * BLOCK
        with seeds.seeded(seed, "evaluate", number):
            result[begin : begin + BLOCK] = measure(block, choice.engine).double().cpu()
        if progress:
            progress(min(ranks.size() * BLOCK, episodes - begin))
    result = ranks.total(result)
    if not torch.isfinite(result).all():
        first = int((~torch.isfinite(result)).nonzero()[0])
        raise NonFiniteError(
            f"test episode {first} gives an output that is not finite. Lower the inner learning rate or the steps."
        )
    if metric != "accuracy":  # convert to the squared unit of the answers
        result = result * getattr(tasks, "unit", 1.0) ** 2
    protocol = protocol_of(learner, tasks, metric, episodes, seed, control, first, len(thetas))
    return Score(result, protocol, tasks=tasks_of(tasks, episodes, seed))


def tasks_of(tasks: Any, episodes: int, seed: int) -> tuple[str, ...]:
    """The name of each test episode's task; empty if the source draws new tasks each time."""
    if not hasattr(tasks, "facts") or "task" not in tasks.facts(1, seeds.generator(seed, "test", 0)):
        return ()
    return tuple(tasks.facts(1, seeds.generator(seed, "test", i))["task"][0] for i in range(episodes))


def episode_score(learner: Learner, theta: Theta, episode: Episode) -> Tensor:
    """The accuracy on the query set, or the mean squared error for real-valued answers: a scalar."""
    return _ensemble_score(learner, (theta,), episode)


def _ensemble_score(learner: Learner, thetas: Sequence[Theta], episode: Episode) -> Tensor:
    output = mean_answer(learner, thetas, episode)
    if episode.query.y.is_floating_point():
        return ((output - episode.query.y) ** 2).mean()
    # NaN logits would silently count as a wrong answer. Adding them makes the score NaN, which is refused.
    right = (output.argmax(1) == episode.query.y).double().mean()
    return right + 0 * output.sum()


def sample_blocks(tasks: Any, episodes: int, seed: int, device: torch.device) -> Iterator[Episodes]:
    """Episodes 0..episodes-1 of the test seed, in blocks; each episode is drawn with its own generator."""
    for number in range(math.ceil(episodes / BLOCK)):
        yield sample_block(tasks, episodes, seed, device, number)


def sample_block(tasks: Any, episodes: int, seed: int, device: torch.device, number: int) -> Episodes:
    """The block with this number, from 0, of the episodes of `sample_blocks`."""
    places = range(number * BLOCK, min((number + 1) * BLOCK, episodes))
    return moved(concat([tasks.sample(1, seeds.generator(seed, "test", i)) for i in places]), device)


def protocol_of(
    learner: Learner,
    tasks: Any,
    metric: str,
    episodes: int,
    seed: int,
    control: str | None = None,
    seen: Episodes | None = None,
    ensemble: int = 1,
) -> Protocol:
    """The protocol under which `learner` is tested on `tasks`.

    Sizes that the task source does not report are taken from `seen`, a batch of its episodes.
    """
    about = (_sizes(seen) if seen else {}) | describe(tasks)
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
        transductive=is_transductive(learner),
        normalisation=normalisation_of(learner),
        steps=getattr(learner, "steps", None),
        ensemble=ensemble,
        control=control,
    )


def _sizes(episodes: Episodes) -> dict[str, Any]:
    """Ways, shots and queries: the largest of any task."""
    found = [_sizes_of(support.y, query.y) for support, query in unstack(episodes)]
    ways = [one["ways"] for one in found if one["ways"]]
    return {name: max(one[name] for one in found) for name in ("shots", "queries")} | {"ways": max(ways, default=None)}


def _sizes_of(support: Tensor, query: Tensor) -> dict[str, Any]:
    ways = None if support.is_floating_point() else len(support.unique())
    return {"ways": ways, "shots": len(support) // (ways or 1), "queries": len(query) // (ways or 1)}
