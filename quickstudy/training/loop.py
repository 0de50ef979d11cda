"""The one outer loop: a generator that meta-trains any learner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from quickstudy.base import seeds
from quickstudy.engine import numerics, ranks
from quickstudy.engine.choice.choose import share_gradient
from quickstudy.episodes import Episodes, count, moved
from quickstudy.errors import NonFiniteError
from quickstudy.learner import Learner, Theta
from quickstudy.nn.parameters import first_non_finite


class Step(NamedTuple):
    """One iteration of the outer loop, after its update."""

    iteration: int  # iterations done, from 1
    loss: float  # mean meta-loss before the update, over the tasks of all ranks
    episodes: Episodes  # this rank's share of the tasks
    sampling: float  # seconds spent waiting for the episodes, which are drawn in the background
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
) -> Iterator[Step]:
    """Run iterations start+1..iterations, updating theta in place and yielding a Step after each.

    Iteration i draws its episodes and random numbers from (seed, i) only, so an interrupted and resumed run gives the
    same result as an uninterrupted one. `optimizer` must have been built on `list(theta.values())`. The other settings
    are those of `train`, except that `engine` must not be "auto". In a process group the tasks are divided among the
    ranks, which all yield at the same iterations; `interrupted()` says whether this rank was asked to stop.

    Raises NonFiniteError, before the update, where the loss or a gradient is not finite, OutOfMemoryError where memory
    runs out, and RankError where the other ranks cannot be reached.
    """
    device = next(iter(theta.values())).device
    with ThreadPoolExecutor(1, "episodes", initializer=torch.set_num_threads, initargs=(1,)) as background:

        def draw(iteration: int) -> Future[Episodes]:
            return background.submit(_draw, tasks, meta_batch, seed, device, channels_last, iteration)

        ahead = draw(start) if start < iterations else None
        for iteration in range(start, iterations):
            began = time.perf_counter()
            assert ahead is not None  # every iteration has its draw
            episodes = ahead.result()
            drawn = time.perf_counter()
            # Draw the next tasks while this iteration computes and the ranks communicate.
            ahead = draw(iteration + 1) if iteration + 1 < iterations else None
            with seeds.seeded(seed, ranks.stream("iteration"), iteration):
                now = learner.at(iteration / iterations)
                loss, slope = _share_gradient(now, theta, episodes, engine, chunk, precision)
            loss, slope, stop = ranks.begin_mean(loss, slope, count(episodes) / meta_batch, interrupted())()
            _check_finite(iteration + 1, loss, slope)
            _update(theta, slope, optimizer, clip)
            yield Step(iteration + 1, float(loss), episodes, drawn - began, time.perf_counter() - drawn, stop)


def _draw(
    tasks: Any, meta_batch: int, seed: int, device: torch.device, channels_last: bool, iteration: int
) -> Episodes:
    """This rank's share of the tasks of an iteration."""
    drawn = moved(ranks.draw(tasks, meta_batch, seeds.generator(seed, "train", iteration)), device)
    return numerics.images_channels_last(drawn) if channels_last else drawn


def _share_gradient(
    learner: Learner, theta: Theta, episodes: Episodes, engine: str, chunk: int | None, precision: str
) -> tuple[Tensor, Theta]:
    if count(episodes):
        return share_gradient(learner, theta, episodes, engine, chunk, precision)
    nothing = {name: torch.zeros_like(value) for name, value in theta.items()}  # more ranks than tasks
    return next(iter(nothing.values())).sum(), nothing


def _update(theta: Theta, slope: Theta, optimizer: Optimizer, clip: float | None) -> None:
    for name, value in theta.items():
        value.grad = slope[name]
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(theta.values(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check_finite(iteration: int, loss: Tensor, slope: Theta) -> None:
    total = torch.nn.utils.get_total_norm(slope.values())
    if torch.isfinite(loss) and torch.isfinite(total):
        return
    name = first_non_finite(slope)
    where = (
        f"the meta-gradient of {name!r}" if name else "the loss" if not torch.isfinite(loss) else "the gradient norm"
    )
    raise NonFiniteError(
        f"iteration {iteration}: {where} is not finite (loss {float(loss):g}). theta was not updated. Lower the inner "
        "or outer learning rate or the inner steps, or clip the gradient."
    )
