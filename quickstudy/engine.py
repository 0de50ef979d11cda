"""How a function of one task is mapped over many: vmap, compiled or not, threads, or a loop.

Small models are bound by overhead and want `vmap`, in long trainings compiled; convolutions on a CPU want one task per
thread, with one intra-op thread each; recurrent layers of torch have no batching rule and want threads.
`engine="auto"` measures the first iteration with each and says what it chose. The result is the same up to rounding,
whichever runs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.compiling import compiled
from quickstudy.episodes import Episodes, alike, chunks, count, first_tasks, fitted, unstack
from quickstudy.errors import ConfigError, EngineWarning, first_line, suggest
from quickstudy.learner import Episode, Learner, Theta
from quickstudy.model import without_chance
from quickstudy.numerics import autocast
from quickstudy.seeds import drawn_since, random_states

ENGINES = ("auto", "vmap", "threads", "loop", "compile")
CANNOT = (RuntimeError, ValueError, NotImplementedError, TypeError)  # how torch's transforms say no
LONG = 5.0  # seconds after which a trial is not repeated for the sake of a better measurement
ROUNDS = 3  # of trials, otherwise
ROUNDING = (
    0.02  # engines agree up to rounding, which grows in float32 through kinks (ReLU, pooling) to some thousandths
)
SMALL = 0.05  # seconds of an iteration under vmap up to which the start of operations counts, not their arithmetic
COMPILING = 60.0  # seconds that a training must take before a compiler is tried: about four times what it needs
T = TypeVar("T")
Task = TypeVar("Task")  # an episode, or a learner and its episode


class Choice(NamedTuple):
    """The engine that runs, and why."""

    engine: str
    reason: str
    chunk: int | None = None  # how many tasks vmap takes together at the most; None: all


def meta_gradient(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    engine: str = "loop",
    chunk: int | None = None,
    precision: str = "float32",
) -> tuple[Tensor, Theta]:
    """Mean meta-loss over a batch of episodes (a scalar) and its gradient in theta.

    `engine`: "vmap", "threads", "loop" or "compile" (see `choose` for "auto"). `chunk`: how many tasks "vmap" and
    "compile" take together at the most, which bounds their memory; None: all. `precision`: "float32" or "bf16", see
    `quickstudy.numerics`.
    """
    if engine in ("vmap", "compile"):
        together = functools.partial(_compiled if engine == "compile" else _together, precision=precision)
        if engine == "compile" and isinstance(episodes, list):
            raise RuntimeError("a compiled program serves tasks of one size, these have several")
        groups = alike(learner, episodes)
        parts = ((one.learner, part) for one in groups for part in chunks(one.episodes, chunk))
        return _mean((together(one, theta, part), count(part)) for one, part in parts)
    tasks, one = _fitted(learner, episodes), functools.partial(_task_gradient, theta, precision)
    return _mean((found, 1) for found in _map(one, tasks, engine))


def _compiled(learner: Learner, theta: Theta, episodes: Episode, precision: str) -> tuple[Tensor, Theta]:
    return compiled(learner, theta, episodes, _together, precision)(theta, episodes)


def _fitted(learner: Learner, episodes: Episodes) -> list[tuple[Learner, Episode]]:
    """Each task, with the learner in its ways."""
    if isinstance(episodes, list):
        return [fitted(learner, episode) for episode in episodes]
    return [(learner, episode) for episode in unstack(episodes)]


def _mean(parts: Iterable[tuple[tuple[Tensor, Theta], int]]) -> tuple[Tensor, Theta]:
    """The mean of means over so many tasks each, added in their order: the number of threads changes nothing."""
    total, sums, tasks = torch.zeros(()), {}, 0
    for (loss, slope), n in parts:
        total = total.to(loss.device) + n * loss
        sums = {name: n * value + sums[name] if sums else n * value for name, value in slope.items()}
        tasks += n
    return total / tasks, {name: value / tasks for name, value in sums.items()}


def map_tasks(function: Callable[[Episode], T], episodes: Episode, engine: str = "loop") -> T:
    """function(episode) for each episode of a batch, without gradient; the results are stacked along a task axis."""
    with torch.no_grad():
        if engine == "vmap":
            mapped = _vmap(function, episodes)
            # What does not depend on the task comes back as one value with stride 0: make it a tensor of its own.
            return pytree.tree_map(lambda t: t.contiguous(), mapped)
        results = list(_map(function, unstack(episodes), engine))
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def map_learner(
    function: Callable[[Learner, Episode], T], learner: Learner, episodes: Episodes, engine: str = "loop"
) -> T:
    """function(learner, episode) for each episode of a batch, as `map_tasks`, also where sizes or ways differ.

    The results must be of one shape for all tasks.
    """
    if not isinstance(episodes, list):
        return map_tasks(lambda episode: function(learner, episode), episodes, engine)
    if engine == "vmap":
        groups = alike(learner, episodes)
        found = [map_tasks(functools.partial(function, one.learner), one.episodes, engine) for one in groups]
        order = torch.tensor([place for one in groups for place in one.places]).argsort()
        return pytree.tree_map(lambda *leaves: torch.cat(leaves)[order.to(leaves[0].device)], *found)
    with torch.no_grad():
        results = list(_map(lambda task: function(*task), _fitted(learner, episodes), engine))
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def choose(
    attempt: Callable[[str], Any],
    engine: str,
    tasks: int,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
    iterations: int = 0,
    tolerance: float = ROUNDING,
) -> Choice:
    """The engine to use for `attempt(engine) -> tensors`, which is run a few times to find out.

    `check` raises RuntimeError where vmap must not be trusted, see `check_vmap`. `iterations` is how often it will run:
    "auto" compiles what runs long enough. `tolerance`: how far results may be apart, relative to their norm.

    What fails under vmap but runs in a loop falls back to the loop or to threads, and says so once; what fails in the
    loop too is the caller's own error and is raised. Random learners (dropout) do not run on threads, whose order of
    drawing cannot be repeated.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}.{suggest(engine, ENGINES)}")
    if engine == "loop" or tasks == 1:
        return Choice("loop", "as asked" if engine == "loop" else "one task only")
    others = ["vmap", *_other_than_vmap(device)]
    if engine == "auto":
        return _fastest(attempt, others, check, iterations, tolerance)
    try:
        if engine in ("vmap", "compile"):
            check()
        (result, drew), seconds = timed(lambda: watching_generator(lambda: attempt(engine)))
        if engine == "compile":
            _check_same(result, attempt("vmap"), tolerance)
            return Choice(engine, f"as asked, compiled in {seconds:.0f} s")
        if not (engine == "threads" and drew):
            return Choice(engine, "as asked")
        why = "threads cannot repeat random draws (dropout)"
    except CANNOT as error:
        why = f"{engine} cannot: {first_line(error)}"
    others = others if engine == "compile" else others[1:]
    choice = _fastest(attempt, [name for name in others if name != engine], check, 0, tolerance)
    warnings.warn(f"engine {engine!r} is replaced by {choice.engine!r}: {why}", EngineWarning, stacklevel=3)
    return Choice(choice.engine, why)


def _other_than_vmap(device: torch.device) -> list[str]:
    return ["threads"] if device.type == "cpu" and torch.get_num_threads() > 1 else []


def check_vmap(learner: Learner, theta: Theta, episodes: Episodes) -> None:
    """Raise RuntimeError unless vmap and the loop agree on the meta-gradient of two tasks in float64.

    Some of torch's rules for vmap are wrong in second derivatives, without an error (fused normalisation with scale
    and shift is one): by less than float32 rounding shows, by far more than float64 rounding. Dropout is off here.
    """
    exact, theta, few = in_double(learner), to_double(theta), to_double(first_tasks(episodes, 2))
    one, drew = watching_generator(lambda: meta_gradient(exact, theta, few, "loop"))
    if drew:  # a learner that draws numbers of its own draws others under vmap: there is nothing to compare
        return
    apart = relative_difference(meta_gradient(exact, theta, few, "vmap"), one)
    if not apart <= 1e-7:
        raise RuntimeError(f"a second derivative is wrong under vmap (by {apart:.0e} in float64)")


def in_double(learner: Learner) -> Learner:
    fields = {f.name: getattr(learner, f.name) for f in dataclasses.fields(learner)}  # type: ignore[arg-type]
    models = {name: value for name, value in fields.items() if isinstance(value, nn.Module)}
    exact = {name: without_chance(copy.deepcopy(value).double()) for name, value in models.items()}
    return dataclasses.replace(learner, **exact)  # type: ignore[type-var]


def to_double(tree: T) -> T:
    return pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, tree)


def relative_difference(a: Any, b: Any) -> float:
    flat = [torch.cat([t.detach().reshape(-1).double() for t in pytree.tree_leaves(tree)]) for tree in (a, b)]
    difference, size = torch.linalg.vector_norm(flat[0] - flat[1]), torch.linalg.vector_norm(flat[1])
    return float(difference / size.clamp(min=1e-12))


def _fastest(
    attempt: Callable[[str], Any],
    candidates: list[str],
    check: Callable[[], None],
    iterations: int,
    tolerance: float,
) -> Choice:
    """The fastest of the loop and the candidates that can do it and give the loop's result."""
    (reference, drew), first = timed(lambda: watching_generator(lambda: attempt("loop")))
    warm, notes = {"loop": first}, []  # seconds of a first attempt: what can do it has warmed up, or compiled

    def warm_up(name: str) -> None:
        try:
            if name == "vmap":
                check()
            result, warm[name] = timed(lambda: attempt(name))
            if not drew:
                _check_same(result, reference, tolerance)
        except CANNOT as error:
            warm.pop(name, None)
            notes.append(f"{name} cannot: {first_line(error)}")

    for name in candidates:
        if not (name == "threads" and drew):
            warm_up(name)
    seconds = _raced(attempt, warm)
    if _worth_compiling(seconds, iterations) and not drew:
        warm_up("compile")
        if "compile" in warm:
            notes.append(f"compiled in {warm['compile']:.0f} s")
            seconds |= {"compile": min(timed(lambda: attempt("compile"))[1] for _ in range(ROUNDS))}
    best = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    return Choice(best, "; ".join([f"fastest of {times}", *notes]))


def _raced(attempt: Callable[[str], Any], warm: dict[str, float]) -> dict[str, float]:
    """The best of a few rounds in turns, so that what else the machine does for a while hits all alike."""
    quick = [name for name, first in warm.items() if first <= LONG]
    rounds = [{name: timed(lambda name=name: attempt(name))[1] for name in quick} for _ in range(ROUNDS)]
    return {name: min((one[name] for one in rounds if name in quick), default=warm[name]) for name in warm}


def _worth_compiling(seconds: dict[str, float], iterations: int) -> bool:
    vmap = seconds.get("vmap", SMALL + 1)
    return vmap <= min(SMALL, *seconds.values()) and vmap * iterations > COMPILING


def _check_same(result: Any, reference: Any, tolerance: float) -> None:
    if not relative_difference(result, reference) <= tolerance:
        raise RuntimeError("it gives another result than the loop")


def watching_generator(attempt: Callable[[], T]) -> tuple[T, bool]:
    before = random_states()
    result = attempt()
    return result, drawn_since(before)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The function's result, and the seconds until the device had finished it."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


# --- one task, all tasks ---------------------------------------------------------------------------------------------


def _leaves(theta: Theta) -> Theta:
    return {name: value.detach().requires_grad_() for name, value in theta.items()}


def _differentiate(loss: Tensor, leaves: Theta) -> Theta:
    if not leaves or not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in leaves.items()}
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, slopes, strict=True))


def _task_gradient(theta: Theta, precision: str, task: tuple[Learner, Episode]) -> tuple[Tensor, Theta]:
    leaves, (learner, episode) = _leaves(theta), task
    with torch.enable_grad():
        with autocast(precision, episode.query.y.device):
            loss = learner.meta_loss(leaves, episode)
        return loss.detach(), _differentiate(loss, leaves)


def _together(learner: Learner, theta: Theta, episodes: Episode, precision: str) -> tuple[Tensor, Theta]:
    leaves = _leaves(theta)
    with torch.enable_grad():
        with autocast(precision, episodes.query.y.device):
            loss = _vmap(lambda episode: learner.meta_loss(leaves, episode), episodes).mean()
        return loss.detach(), _differentiate(loss, leaves)


def _vmap(function: Callable[[Episode], T], episodes: Episode) -> T:
    with warnings.catch_warnings():
        # Where torch has no rule it loops inside, with a warning. How slow that is, `choose` has measured.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.func.vmap(function, randomness="different")(episodes)


# --- threads ---------------------------------------------------------------------------------------------------------


def _map(function: Callable[[Task], T], tasks: Iterable[Task], engine: str) -> Iterator[T]:
    if engine == "loop":
        yield from map(function, tasks)
    elif engine == "threads":
        with _one_thread_each() as pool:
            yield from pool.map(_in_grad_mode(function, torch.is_grad_enabled()), tasks)
    else:
        raise ConfigError(f"expected engine 'vmap', 'threads' or 'loop', got {engine!r}.{suggest(engine, ENGINES)}")


def _in_grad_mode(function: Callable[[Task], T], enabled: bool) -> Callable[[Task], T]:
    """Grad mode belongs to a thread in torch: carry the caller's over."""

    def run(task: Task) -> T:
        with torch.set_grad_enabled(enabled):
            return function(task)

    return run


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool with as many threads as torch uses, while each operation runs on one."""
    count = torch.get_num_threads()
    pool = _pool(count)
    # Parts of the setting are global in torch (the matrix library's), so the caller's thread is set back afterwards.
    torch.set_num_threads(1)
    try:
        yield pool
    finally:
        torch.set_num_threads(count)


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "quickstudy", initializer=torch.set_num_threads, initargs=(1,))


# A forked child has none of its parent's threads: it needs pools of its own.
os.register_at_fork(after_in_child=_pool.cache_clear)
