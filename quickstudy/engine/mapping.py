"""Engines: how a function of one task is applied to many tasks, with or without a recorded program.

Small models are bound by overhead, so their computation is recorded once and then replayed for all tasks together, or
compiled. Convolutions on a CPU run fastest with one task per thread and one intra-op thread each. Code that cannot be
recorded (random draws) or mapped (layers without a batching rule) runs unchanged. `engine="auto"` times the engines on
the first iteration and reports its choice. All engines give the same result up to rounding.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.base import seeds, trees
from quickstudy.engine.engines import LOOP, PLAIN, PROGRAMS, Engine, find_engine
from quickstudy.engine.fitting import alike, fitted
from quickstudy.engine.numerics import autocast
from quickstudy.engine.programs.program import MetaGradient, program_of
from quickstudy.episodes import Episodes, chunks, count, unstack
from quickstudy.learner import Episode, Learner, Theta

__all__ = ["map_each", "map_learner", "map_tasks", "meta_gradient", "without_program"]

T = TypeVar("T")
Task = TypeVar("Task")


def meta_gradient(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    engine: str | Engine = LOOP,
    chunk: int | None = None,
    precision: str = "float32",
    equal_draws: bool = False,
) -> tuple[Tensor, Theta]:
    """The mean meta-loss over a batch of episodes (a scalar) and its gradient with respect to theta.

    `engine`: one of ENGINES except "auto", for which see `choice`, or such an Engine. `chunk`: the largest number of
    tasks that "vmap", "replay" and "compile" process together, which bounds their memory; None: all. `precision`:
    "float32" or "bf16", see `quickstudy.engine.numerics`. `equal_draws`: all tasks draw the same random numbers, equal
    ones under "loop" and "vmap".

    Raises RuntimeError where the engine cannot run this learner or these episodes, ConfigError where the engine is
    unknown.
    """
    how = find_engine(engine)
    if how.recorded and isinstance(episodes, list):
        raise RuntimeError("a program serves tasks of one size, these have several")
    if how.together:
        together = functools.partial(_together, engine=how, precision=precision, equal_draws=equal_draws)
        if not isinstance(episodes, list) and (chunk is None or count(episodes) <= chunk):
            return together(learner, theta, episodes)
        groups = alike(learner, episodes)
        parts = ((one.learner, part) for one in groups for part in chunks(one.episodes, chunk))
        return _mean((together(one, theta, part), count(part)) for one, part in parts)
    tasks, one = _fitted(learner, episodes), functools.partial(_of_task, theta, precision)
    one = _repeating(one) if equal_draws else one
    if how.recorded:
        program = _program(learner, theta, tasks[0][1], how, precision)
        return _mean((each, 1) for each in _map(lambda task: program(theta, task[1]), tasks, how))
    return _mean((each, 1) for each in _map(one, tasks, how))


def _program(learner: Learner, theta: Theta, episodes: Episode, engine: Engine, precision: str) -> MetaGradient:
    def of_task(learner: Learner, theta: Theta, episode: Episode) -> tuple[Tensor, Theta]:
        return _of_task(theta, precision, (learner, episode))

    return program_of(learner, theta, episodes, of_task, engine, key=precision)


def _fitted(learner: Learner, episodes: Episodes) -> list[tuple[Learner, Episode]]:
    """Each task, with the learner fitted to its number of ways."""
    if isinstance(episodes, list):
        return [fitted(learner, episode) for episode in episodes]
    return [(learner, episode) for episode in unstack(episodes)]


def _mean(parts: Iterable[tuple[tuple[Tensor, Theta], int]]) -> tuple[Tensor, Theta]:
    """The mean over all tasks from (mean, number of tasks) pairs.

    They are added in order, so the result does not depend on the number of threads.
    """
    total, sums, tasks = torch.zeros(()), {}, 0
    for (loss, gradient), n in parts:
        total = total.to(loss.device) + n * loss
        sums = {name: n * value + sums[name] if sums else n * value for name, value in gradient.items()}
        tasks += n
    return total / tasks, {name: value / tasks for name, value in sums.items()}


def map_tasks(
    function: Callable[[Episode], T], episodes: Episode, engine: str | Engine = LOOP, equal_draws: bool = False
) -> T:
    """Apply function(episode) to each episode of a batch without gradients; stack the results along a task axis.

    `engine`: one of PLAIN. The result may be any pytree of tensors. `equal_draws` is as in `meta_gradient`. Raises
    ConfigError for another engine.
    """
    how = find_engine(engine, PLAIN)
    with torch.no_grad():
        if how.together:
            mapped = _vmap(function, episodes, equal_draws)
            # A result that does not depend on the task comes back expanded with stride 0: give it its own memory.
            return pytree.tree_map(lambda t: t.contiguous(), mapped)
        one = _repeating(function) if equal_draws else function
        return trees.stacked(list(_map(one, unstack(episodes), how)))


def map_learner(
    function: Callable[[Learner, Episode], T], learner: Learner, episodes: Episodes, engine: str | Engine = LOOP
) -> T:
    """Apply function(learner, episode) to each episode, like `map_tasks`, even where sizes or ways differ.

    The results must have the same shape for all tasks. Raises ConfigError where the engine is not one of PLAIN.
    """
    how = find_engine(engine, PLAIN)
    if not isinstance(episodes, list):
        return map_tasks(lambda episode: function(learner, episode), episodes, how)
    return trees.stacked(map_each(function, learner, episodes, how))


def map_each(
    function: Callable[[Learner, Episode], T],
    learner: Learner,
    episodes: list[Episode],
    engine: str | Engine = LOOP,
    equal_draws: bool = False,
) -> list[T]:
    """Apply function(learner, episode) to each episode of a list, like `map_learner`; results may differ in shape.

    `equal_draws` is as in `meta_gradient`.
    """
    how = find_engine(engine, PLAIN)
    if not how.together:

        def one(task: tuple[Learner, Episode]) -> T:
            return function(*task)

        with torch.no_grad():
            return list(_map(_repeating(one) if equal_draws else one, _fitted(learner, episodes), how))
    found: dict[int, T] = {}
    for group in alike(learner, episodes):
        of_group = functools.partial(function, group.learner)
        leaves, spec = pytree.tree_flatten(map_tasks(of_group, group.episodes, how, equal_draws))
        rows = zip(*(leaf.unbind(0) for leaf in leaves), strict=True)
        found |= {place: pytree.tree_unflatten(row, spec) for place, row in zip(group.places, rows, strict=True)}
    return [found[place] for place in range(len(episodes))]


def without_program(engine: str) -> str:
    """The plain engine that maps tasks the same way, for when no gradient is needed and so nothing is recorded."""
    return find_engine(engine).plain.name if engine in PROGRAMS else engine


# --- one task, all tasks ---------------------------------------------------------------------------------------------


def _leaves(theta: Theta) -> Theta:
    return {name: value.detach().requires_grad_() for name, value in theta.items()}


def _differentiate(loss: Tensor, leaves: Theta) -> Theta:
    if not leaves or not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in leaves.items()}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def _of_task(theta: Theta, precision: str, task: tuple[Learner, Episode]) -> tuple[Tensor, Theta]:
    leaves, (learner, episode) = _leaves(theta), task
    with torch.enable_grad():
        with autocast(precision, episode):
            loss = learner.meta_loss(leaves, episode)
        return loss.detach(), _differentiate(loss, leaves)


def _together(
    learner: Learner, theta: Theta, episodes: Episode, engine: Engine, precision: str, equal_draws: bool
) -> tuple[Tensor, Theta]:
    if engine.recorded:
        return _program(learner, theta, episodes, engine, precision)(theta, episodes)
    leaves = _leaves(theta)
    with torch.enable_grad():
        with autocast(precision, episodes):
            loss = _vmap(lambda episode: learner.meta_loss(leaves, episode), episodes, equal_draws).mean()
        return loss.detach(), _differentiate(loss, leaves)


def _repeating(function: Callable[[Task], T]) -> Callable[[Task], T]:
    """`function`, every call of which draws the random numbers that the first one draws."""
    states = seeds.random_states()

    def run(task: Task) -> T:
        with seeds.as_drawn(states):
            return function(task)

    return run


def _vmap(function: Callable[[Episode], T], episodes: Episode, equal_draws: bool) -> T:
    with warnings.catch_warnings():
        # Where torch has no batching rule it loops internally and warns. `choose` has already timed how slow that is.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.func.vmap(function, randomness="same" if equal_draws else "different")(episodes)


# --- threads ---------------------------------------------------------------------------------------------------------


def _map(function: Callable[[Task], T], tasks: Iterable[Task], engine: Engine) -> Iterator[T]:
    if engine.parallel:
        with _one_thread_each() as pool:
            yield from pool.map(_in_grad_mode(function, torch.is_grad_enabled()), tasks)
    else:
        yield from map(function, tasks)


def _in_grad_mode(function: Callable[[Task], T], enabled: bool) -> Callable[[Task], T]:
    """`function` run in the caller's grad mode, which torch keeps per thread."""

    def run(task: Task) -> T:
        with torch.set_grad_enabled(enabled):
            return function(task)

    return run


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool with as many threads as torch uses; meanwhile each operation runs on a single thread."""
    count = torch.get_num_threads()
    pool = _pool(count)
    # Part of this setting is global in torch (the matrix library's), so it is restored for the caller afterwards.
    torch.set_num_threads(1)
    try:
        yield pool
    finally:
        torch.set_num_threads(count)


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "quickstudy", initializer=torch.set_num_threads, initargs=(1,))


# A forked child does not inherit its parent's threads, so it needs its own pools.
os.register_at_fork(after_in_child=_pool.cache_clear)
