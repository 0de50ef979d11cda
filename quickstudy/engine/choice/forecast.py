"""Estimates the peak memory and time of a meta-gradient before it runs at full size, and finds settings that fit.

Each setting is measured on a small part of the work. Chunks of tasks run one after another, so measuring one chunk is
enough. If there are many inner steps, a quarter and a half of them are measured: memory is affine in the number of
steps, and time is proportional to it, counting the pass over the query set as one more step. Chunks grow from one task
and stop where the next one would not fit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from quickstudy.base import memory, seeds
from quickstudy.engine import agreement, mapping, numerics
from quickstudy.engine.choice import race
from quickstudy.episodes import Episodes, count, first_tasks, moved
from quickstudy.errors import ConfigError
from quickstudy.learner import Learner, Theta

EXACT = ("unroll", "remat")  # the adjoints to choose from; others give another meta-gradient or are slower
FEW = 12  # up to this many inner steps all of them are measured
TIMES, ENOUGH = (3, 10), 0.3  # fewest and most timed runs, and the total seconds after which they stop
COPIES = 4  # copies of theta that a training also holds: its gradient, Adam's two averages, the best theta
ENGINES = ("vmap", "replay", "threads", "replay-threads", "loop")
Sized = Callable[[int | None], Learner]  # number of inner steps -> the learner with that many
Run = Callable[[Learner, Episodes, str, bool], None]  # a meta-gradient with this engine; True: check the engine first


class Setting(NamedTuple):
    """A way to run the tasks of an iteration, and the memory and time that it needs."""

    engine: str
    adjoint: str | None  # None: the learner's own
    chunk: int | None  # tasks that run together; None: all
    memory: float | None  # peak memory of the whole process in bytes; None if the system does not report it
    seconds: float  # time of an iteration on an otherwise idle machine, without drawing its tasks

    def options(self) -> str:
        """The setting as options of the command line."""
        words = {"engine": self.engine, "adjoint": self.adjoint, "chunk": self.chunk}
        return " ".join(f"--{name} {value}" for name, value in words.items() if value is not None)


def plan(
    learner: Learner,
    tasks: Any,
    *,
    meta_batch: int = 16,
    memory: float | str | None = None,
    engine: str = "auto",
    chunk: int | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[Setting], None] = lambda found: None,
) -> list[Setting]:
    """The settings in which `train` could run this learner on these tasks, the fastest first.

    memory     a limit in bytes, or a size such as "2GB", for the whole process (on a GPU: for torch's allocations
               there); only settings within the limit are returned
    engine     "auto", or one of ENGINES to plan that engine only
    chunk      plan only chunks of this many tasks
    progress   is called with each setting as soon as it is measured

    All settings give the same meta-gradient up to rounding. Each is run a few times, so a plan takes as long as some
    dozens of iterations. The other arguments are those of `train`.

    Raises ConfigError, with the least memory that is needed, where no setting stays within the limit, and where there
    is nothing to plan.
    """
    limit = _limit(memory)
    if engine not in ("auto", *ENGINES):
        raise ConfigError(f"plan knows the engines auto, {', '.join(ENGINES)}; got {engine!r}.")
    numerics.check_precision(precision)
    if not learner.episodic and hasattr(tasks, "pooled"):
        tasks = tasks.pooled()
    theta = {name: value.detach().clone().to(device) for name, value in learner.init().items()}
    if not theta:
        raise ConfigError(f"{type(learner).__name__} learns nothing across tasks: there is no training to plan.")
    episodes = moved(tasks.sample(meta_batch, seeds.generator(seed, "train", 0)), torch.device(device))
    if channels_last:
        theta, episodes = numerics.channels_last(theta), numerics.images_channels_last(episodes)
    names, found = ENGINES if engine == "auto" else (engine,), []
    for setting in settings(learner, theta, episodes, limit, names, chunk, precision):
        found.append(setting)
        progress(setting)
    return fitting(found, limit)


def fitting(found: list[Setting], limit: float | None) -> list[Setting]:
    """The settings that need at most `limit` bytes, the fastest first; None: no limit.

    Raises ConfigError where no setting fits, or where the system does not report memory.
    """
    if limit is not None and any(one.memory is None for one in found):
        raise ConfigError("this system does not tell how much memory a process took: leave the limit out.")
    if not found:
        raise ConfigError("none of these engines can run this learner, or what it needs is more than there is.")
    able = [one for one in found if limit is None or (one.memory or 0.0) <= limit]
    if not able:
        least = min(found, key=lambda one: one.memory or 0.0)
        raise ConfigError(
            f"no exact setting stays within {memory.in_words(limit or 0.0)}: the least is "
            f"{memory.in_words(least.memory or 0.0)}, with {least.options()}. Take fewer queries or a smaller network, "
            "or, for another meta-gradient, adjoint first_order."
        )
    return sorted(able, key=lambda one: one.seconds)


def _limit(given: float | str | None) -> float | None:
    return memory.bytes_of(given) if isinstance(given, str) else given


# --- what each setting needs -----------------------------------------------------------------------------------------


def settings(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    limit: float | None = None,
    names: Sequence[str] = ENGINES,
    chunk: int | None = None,
    precision: str = "float32",
) -> Iterator[Setting]:
    """The settings with an exact meta-gradient that can run this learner on these episodes, as they are measured.

    Only chunks that should fit into `limit` bytes and into the memory of the machine are tried. `names`: the engines.
    """
    device = next(iter(theta.values())).device
    most = min([size for size in (limit, memory.room(device)) if size is not None], default=math.inf)
    beside, update = COPIES * sum(value.nbytes for value in theta.values()), _seconds_of_update(theta)

    def run(learner: Learner, part: Episodes, name: str, check: bool) -> None:
        if check:
            agreement.check_engine(learner, theta, episodes, name)  # as in training; may need more than a chunk
        _, drew = seeds.watching_generator(lambda: mapping.meta_gradient(learner, theta, part, name, None, precision))
        if drew and name == "threads":
            raise RuntimeError("threads cannot repeat random draws")

    for adjoint in _adjoints(learner):
        for name in names:
            before, last, checked = memory.taken(device) or 0.0, 0.0, None
            for together in _together(name, count(episodes), chunk):
                if before + 2 * (last - before) > most:  # an estimate for twice as many tasks
                    break
                try:
                    few, check = first_tasks(episodes, together), checked is None
                    peak, seconds = _need(_sized(learner, adjoint), few, name, run, device, check)
                    checked = peak if check else checked  # a training needs at least this much before it begins
                    peak = peak and max(peak, checked or 0.0)
                except (*race.CANNOT, MemoryError):  # a training would use another engine, or a smaller chunk
                    break
                last = peak or 0.0
                chunked = name in mapping.TOGETHER
                size = together if chunked and together < count(episodes) else None
                rounds = count(episodes) / together if chunked else math.ceil(count(episodes) / together)
                yield Setting(name, adjoint, size, None if peak is None else peak + beside, rounds * seconds + update)


def _adjoints(learner: Learner) -> tuple[str | None, ...]:
    """The adjoints to choose from. None means the learner's own: it has none, or one that is not in EXACT."""
    exact = getattr(learner, "adjoint", None) in EXACT and not getattr(learner, "first_order", False)
    return EXACT if exact else (None,)


def _sized(learner: Learner, adjoint: str | None) -> Sized:
    def with_steps(steps: int | None) -> Learner:
        given = {"adjoint": adjoint, "steps": steps}
        return dataclasses.replace(learner, **{k: v for k, v in given.items() if v is not None})  # type: ignore[type-var]

    return with_steps


def _together(name: str, tasks: int, chunk: int | None) -> list[int]:
    """How many tasks to hold in memory at once: 1, 2, 4 ... all if mapped, one per thread, one in a loop."""
    if name not in mapping.TOGETHER:
        return [1 if name == "loop" else min(torch.get_num_threads(), tasks)]
    return [min(chunk, tasks)] if chunk else [2**i for i in range(tasks.bit_length()) if 2**i < tasks] + [tasks]


def _need(
    sized: Sized, episodes: Episodes, name: str, run: Run, device: torch.device, check: bool = True
) -> tuple[float | None, float]:
    """Peak memory of the process in bytes, and seconds; extrapolated from fewer inner steps where there are many."""
    steps = getattr(sized(None), "steps", None)
    many = isinstance(steps, int) and steps > FEW and hasattr(sized(None), "adjoint")
    found = []
    for k in (steps // 4, steps // 2) if many else (None,):  # type: ignore[operator]
        memory.tidy()
        with memory.peak(device) as peak, seeds.seeded(0, "plan"):
            one = sized(k)  # one learner for all runs, because programs are cached by learner
            run(one, episodes, name, check)
            taken = _fastest(lambda one=one: run(one, episodes, name, False))
        found.append((k, peak.bytes, taken))
    (k, memory_, seconds), (fewer, before, _) = found[-1], found[0]
    if not many:
        return memory_, seconds
    ahead = (steps - k) / (k - fewer)  # type: ignore[operator]
    further = None if memory_ is None or before is None else memory_ + max(memory_ - before, 0.0) * ahead
    return further, seconds * (steps + 1) / (k + 1)  # type: ignore[operator]


def _seconds_of_update(theta: Theta) -> float:
    """The time of an iteration's other work: the check that the gradient is finite, and a step of Adam."""
    values = [value.clone().requires_grad_() for value in theta.values()]
    optimizer = torch.optim.Adam(values)
    for value in values:
        value.grad = torch.zeros_like(value)

    def update() -> None:
        torch.nn.utils.get_total_norm([value.grad for value in values if value.grad is not None])
        optimizer.step()

    return _fastest(update)


def _fastest(compute: Callable[[], None]) -> float:
    """Seconds of the fastest of a few runs, which is the least disturbed one."""
    taken: list[float] = []
    while len(taken) < TIMES[0] or (len(taken) < TIMES[1] and sum(taken) < ENOUGH):
        taken.append(race.timed(compute)[1])
    return min(taken)


# --- while training --------------------------------------------------------------------------------------------------


def tasks_within(each: float, device: torch.device) -> int | None:
    """How many tasks of `each` bytes fit into the free memory, at least 1; None if the system does not report it."""
    room, own = memory.room(device), memory.taken(device)
    return None if room is None or own is None or each <= 0 else max(1, int((room - own) / each))


def first_that_fits(
    learner: Learner, theta: Theta, episodes: Episodes, engine: str, chunk: int | None, precision: str = "float32"
) -> Setting | None:
    """The first setting that works after memory ran out; None if none does.

    Tries smaller chunks, then a loop, then the same with the adjoint that stores less. Each trial computes one
    meta-gradient. The setting's `memory` is None, because it is not measured.
    """
    together = min(chunk or count(episodes), count(episodes))
    smaller = [together // 2**i for i in range(1, together.bit_length())] if engine in mapping.TOGETHER else []
    own, *others = _adjoints(learner) if getattr(learner, "adjoint", None) != "remat" else ("remat",)
    mapped = "replay" if engine == "compile" else engine  # compiling each trial would take too long
    ways = [(mapped, size) for size in smaller] + ([("loop", None)] if engine != "loop" else [])
    tried = [(own, *way) for way in ways]
    tried += [(other, *way) for other in others for way in [(engine, chunk), *ways] if engine != "compile"]
    for adjoint, name, size in tried:
        memory.tidy()
        one = _sized(learner, adjoint)(None)
        compute = functools.partial(mapping.meta_gradient, one, theta, episodes, name, size, precision)
        try:
            _, seconds = race.timed(compute)
        except (*race.CANNOT, MemoryError):
            continue
        return Setting(name, adjoint, size, None, seconds)
    return None
