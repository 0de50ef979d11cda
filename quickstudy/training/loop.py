"""The one outer loop: a generator that meta-trains any learner."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from quickstudy.base import seeds
from quickstudy.engine import numerics, ranks
from quickstudy.engine.choice.choose import share_gradient
from quickstudy.engine.watch import Watch
from quickstudy.episodes import Episodes, count, moved
from quickstudy.errors import NonFiniteError
from quickstudy.learner import Learner, Theta
from quickstudy.nn.parameters import first_non_finite
from quickstudy.tasks.source import Source, source_of

Draw = Callable[[int, torch.Generator, Learner, Theta], Episodes]  # so many tasks, for this learner at this theta


class Step(NamedTuple):
    """One iteration of the outer loop, after its update."""

    iteration: int  # iterations done, from 1
    loss: float  # mean meta-loss before the update, over the tasks of all ranks
    episodes: Episodes  # this rank's share of the tasks
    sampling: float  # seconds spent waiting for the episodes, which are drawn in the background, or on policy
    computing: float  # seconds spent on the meta-gradient, its mean over the ranks, and the update
    interrupted: bool = False  # whether any rank was asked to stop before the update


def meta_steps(
    learner: Learner,
    theta: Theta,
    tasks: Any,
    optimizer: Optimizer,
    *,
    iterations: int,
    meta_batch: int,
    seed: int = 0,
    start: int = 0,
    engine: str = "loop",
    chunk: int | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    clip: float | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> Iterator[Step]:
    """Run iterations start+1..iterations, updating theta in place and yielding a Step after each.

    Iteration i draws its episodes and random numbers from (seed, i) only, so an interrupted and resumed run gives the
    same result as an uninterrupted one. The next iteration's episodes are drawn in the background, except where `tasks`
    are `on_policy`: then they are drawn after the update, with the learner and the current theta. `optimizer` must have
    been built on `list(theta.values())`. The other settings are those of `train`, except that `engine` must not be
    "auto". In a process group the tasks are divided among the ranks, which all yield at the same iterations;
    `interrupted()` says whether this rank was asked to stop. `watch` compares the engine with the loop now and then.

    Raises NonFiniteError, before the update, where the loss or a gradient is not finite, OutOfMemoryError where memory
    runs out, EngineError where the watch finds a wrong gradient, and RankError where the other ranks cannot be reached.
    """
    source, device = source_of(tasks), next(iter(theta.values())).device

    def draw(iteration: int) -> Episodes:
        share = functools.partial(ranks.draw, source)
        tasks = moved(drawn_tasks(share, source, learner, theta, meta_batch, seed, iteration, iterations), device)
        return numerics.images_channels_last(tasks) if channels_last else tasks

    drawn = _now if source.on_policy else _ahead
    with contextlib.closing(drawn(draw, range(start, iterations))) as batches:
        for iteration in range(start, iterations):
            began = time.perf_counter()
            episodes = next(batches)
            begun = time.perf_counter()
            with seeds.seeded(seed, ranks.stream("iteration"), iteration):
                now = learner.at(iteration / iterations)
                loss, gradient = _share_gradient(now, theta, episodes, engine, chunk, precision)
            if watch is not None:
                watch.look(now, theta, episodes)
            weight = count(episodes) / meta_batch
            loss, gradient, stop = ranks.begin_mean(loss, gradient, weight, interrupted())()
            _check_finite(iteration + 1, loss, gradient)
            _update(theta, gradient, optimizer, clip)
            yield Step(iteration + 1, float(loss), episodes, begun - began, time.perf_counter() - begun, stop)


# --- the tasks of an iteration ---------------------------------------------------------------------------------------


def _ahead(draw: Callable[[int], Episodes], iterations: range) -> Generator[Episodes, None, None]:
    """The tasks of each iteration; the next ones are drawn in the background while the caller uses these."""
    with ThreadPoolExecutor(1, "episodes", initializer=torch.set_num_threads, initargs=(1,)) as background:
        ahead = background.submit(draw, iterations.start) if iterations else None
        for iteration in iterations:
            assert ahead is not None  # every iteration has its draw
            episodes = ahead.result()
            ahead = background.submit(draw, iteration + 1) if iteration + 1 < iterations.stop else None
            yield episodes


def _now(draw: Callable[[int], Episodes], iterations: range) -> Generator[Episodes, None, None]:
    """The tasks of each iteration, drawn when the caller asks for them: after the update of the iteration before."""
    yield from map(draw, iterations)


def drawn_tasks(
    draw: Draw, source: Source, learner: Learner, theta: Theta, n: int, seed: int, iteration: int, iterations: int
) -> Episodes:
    """`draw(n, generator, learner, theta)` for an iteration: this rank's share of the tasks, or all of them.

    They depend on (seed, iteration) alone, and for a source that is `on_policy` on the learner and theta. A policy may
    draw its actions from torch's generator, so that is seeded for it, equally on all ranks.
    """
    generator = seeds.generator(seed, "train", iteration)
    if not source.on_policy:
        return draw(n, generator, learner, theta)
    with seeds.seeded(seed, "act", iteration):
        return draw(n, generator, learner.at(iteration / iterations), theta)


# --- the gradient and the update -------------------------------------------------------------------------------------


def _share_gradient(
    learner: Learner, theta: Theta, episodes: Episodes, engine: str, chunk: int | None, precision: str
) -> tuple[Tensor, Theta]:
    if count(episodes):
        return share_gradient(learner, theta, episodes, engine, chunk, precision)
    nothing = {name: torch.zeros_like(value) for name, value in theta.items()}  # more ranks than tasks
    return next(iter(nothing.values())).sum(), nothing


def _update(theta: Theta, gradient: Theta, optimizer: Optimizer, clip: float | None) -> None:
    for name, value in theta.items():
        value.grad = gradient[name]
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(theta.values(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check_finite(iteration: int, loss: Tensor, gradient: Theta) -> None:
    total = torch.nn.utils.get_total_norm(gradient.values())
    if torch.isfinite(loss) and torch.isfinite(total):
        return
    name = first_non_finite(gradient)
    where = (
        f"the meta-gradient of {name!r}" if name else "the loss" if not torch.isfinite(loss) else "the gradient norm"
    )
    raise NonFiniteError(
        f"iteration {iteration}: {where} is not finite (loss {float(loss):g}). theta was not updated. Lower the inner "
        "or outer learning rate or the inner steps, or clip the gradient."
    )
