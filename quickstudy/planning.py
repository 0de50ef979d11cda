"""What a meta-gradient will need, before it runs at full size: peak memory and time, and the setting that fits.

Each setting is measured where that is cheap. Tasks come one chunk after another, so one chunk tells for all. Of many
inner steps a quarter and half are taken: memory is affine in them, and time proportional, with the pass over the query
set as one more. Chunks grow from one task on, and stop where the next one would not fit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from quickstudy import engine as engines
from quickstudy import memory, numerics, seeds, trials
from quickstudy.episodes import Episodes, count, first_tasks, moved
from quickstudy.errors import ConfigError
from quickstudy.learner import Learner, Theta

EXACT = ("unroll", "remat")  # the adjoints to choose from; the others are another meta-gradient, or slower
FEW = 12  # inner steps up to which they are taken as they are
TIMES, ENOUGH = (3, 10), 0.3  # how often one is timed, fewest and most, and the seconds that are enough
COPIES = 4  # of theta that a training holds beside: its gradient, Adam's two averages, the best one
ENGINES = ("vmap", "replay", "threads", "replay-threads", "loop")
Sized = Callable[[int | None], Learner]  # inner steps -> the learner with so many
Run = Callable[[Learner, Episodes, str, bool], None]  # a meta-gradient with this engine, which is checked first or not


class Setting(NamedTuple):
    """How tasks are run together, and what one iteration needs for that."""

    engine: str
    adjoint: str | None  # None: as the learner has it
    chunk: int | None  # tasks mapped together under vmap; None: all
    memory: float | None  # peak of the whole process in bytes; None: the system does not tell
    seconds: float  # of an iteration on a machine that does nothing else, without drawing its tasks

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
    """The settings in which `train` could run these, the fastest first; with `memory` only those that stay within.

    memory     bytes, or a size such as "2GB", of the whole process (on a GPU: of what torch allocates there)
    engine     one of ENGINES for that one alone; `chunk` for chunks of this size alone
    progress   is told each setting as soon as it is known

    All give the same meta-gradient up to rounding. Each is run a few times, so that a plan takes as long as some dozens
    of iterations. Raises ConfigError, with the least that is needed, where nothing stays within.
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
    """Those that need at most so many bytes, the fastest first. Raises ConfigError where there is none."""
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


# --- what each needs -------------------------------------------------------------------------------------------------


def settings(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    limit: float | None = None,
    names: Sequence[str] = ENGINES,
    chunk: int | None = None,
    precision: str = "float32",
) -> Iterator[Setting]:
    """The exact settings that can run these; of chunks those that should fit into `limit`, or into what there is."""
    device = next(iter(theta.values())).device
    most = min([size for size in (limit, memory.room(device)) if size is not None], default=math.inf)
    beside, update = COPIES * sum(value.nbytes for value in theta.values()), _seconds_of_update(theta)

    def run(learner: Learner, part: Episodes, name: str, check: bool) -> None:
        if check:
            trials.check_engine(learner, theta, episodes, name)  # as before a training: it may need more than a chunk
        _, drew = trials.watching_generator(lambda: engines.meta_gradient(learner, theta, part, name, None, precision))
        if drew and name == "threads":
            raise RuntimeError("threads cannot repeat random draws")

    for adjoint in _adjoints(learner):
        for name in names:
            before, last, checked = memory.taken(device) or 0.0, 0.0, None
            for together in _together(name, count(episodes), chunk):
                if before + 2 * (last - before) > most:  # about what twice as many tasks would take
                    break
                try:
                    few, check = first_tasks(episodes, together), checked is None
                    peak, seconds = _need(_sized(learner, adjoint), few, name, run, device, check)
                    checked = peak if check else checked  # a training needs as much before it begins
                    peak = peak and max(peak, checked or 0.0)
                except (*trials.CANNOT, MemoryError):  # a training would take another engine, or a smaller chunk
                    break
                last = peak or 0.0
                chunked = name in engines.TOGETHER
                size = together if chunked and together < count(episodes) else None
                rounds = count(episodes) / together if chunked else math.ceil(count(episodes) / together)
                yield Setting(name, adjoint, size, None if peak is None else peak + beside, rounds * seconds + update)


def _adjoints(learner: Learner) -> tuple[str | None, ...]:
    """Those to choose from; a learner without, or with one that is not exact, keeps what it has."""
    exact = getattr(learner, "adjoint", None) in EXACT and not getattr(learner, "first_order", False)
    return EXACT if exact else (None,)


def _sized(learner: Learner, adjoint: str | None) -> Sized:
    def with_steps(steps: int | None) -> Learner:
        given = {"adjoint": adjoint, "steps": steps}
        return dataclasses.replace(learner, **{k: v for k, v in given.items() if v is not None})  # type: ignore[type-var]

    return with_steps


def _together(name: str, tasks: int, chunk: int | None) -> list[int]:
    """How many tasks are in memory at once: 1, 2, 4 ... all where mapped, one in each thread, one in a loop."""
    if name not in engines.TOGETHER:
        return [1 if name == "loop" else min(torch.get_num_threads(), tasks)]
    return [min(chunk, tasks)] if chunk else [2**i for i in range(tasks.bit_length()) if 2**i < tasks] + [tasks]


def _need(
    sized: Sized, episodes: Episodes, name: str, run: Run, device: torch.device, check: bool = True
) -> tuple[float | None, float]:
    """Peak of the process in bytes, and seconds, from few inner steps where there are many."""
    steps = getattr(sized(None), "steps", None)
    many = isinstance(steps, int) and steps > FEW and hasattr(sized(None), "adjoint")
    found = []
    for k in (steps // 4, steps // 2) if many else (None,):  # type: ignore[operator]
        memory.tidy()
        with memory.peak(device) as peak, seeds.seeded(0, "plan"):
            one = sized(k)  # a program belongs to its learner
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
    """What an iteration takes beside the meta-gradient: whether it is finite, and a step of Adam."""
    values = [value.clone().requires_grad_() for value in theta.values()]
    optimizer = torch.optim.Adam(values)
    for value in values:
        value.grad = torch.zeros_like(value)

    def update() -> None:
        torch.nn.utils.get_total_norm([value.grad for value in values if value.grad is not None])
        optimizer.step()

    return _fastest(update)


def _fastest(compute: Callable[[], None]) -> float:
    """Seconds of the fastest of a few runs: what it takes where nothing disturbs."""
    taken: list[float] = []
    while len(taken) < TIMES[0] or (len(taken) < TIMES[1] and sum(taken) < ENOUGH):
        taken.append(trials.timed(compute)[1])
    return min(taken)


# --- while training --------------------------------------------------------------------------------------------------


def tasks_within(each: float, device: torch.device) -> int | None:
    """How many tasks of so many bytes fit into what is free; None where the system does not tell."""
    room, own = memory.room(device), memory.taken(device)
    return None if room is None or own is None or each <= 0 else max(1, int((room - own) / each))


def first_that_fits(
    learner: Learner, theta: Theta, episodes: Episodes, engine: str, chunk: int | None, precision: str = "float32"
) -> Setting | None:
    """After memory ran out: smaller chunks, then a loop, then the same with less to remember; None if none fits.

    Each is tried, one meta-gradient long.
    """
    together = min(chunk or count(episodes), count(episodes))
    smaller = [together // 2**i for i in range(1, together.bit_length())] if engine in engines.TOGETHER else []
    own, *others = _adjoints(learner) if getattr(learner, "adjoint", None) != "remat" else ("remat",)
    mapped = "replay" if engine == "compile" else engine  # what fits is not compiled to be found
    ways = [(mapped, size) for size in smaller] + ([("loop", None)] if engine != "loop" else [])
    tried = [(own, *way) for way in ways]
    tried += [(other, *way) for other in others for way in [(engine, chunk), *ways] if engine != "compile"]
    for adjoint, name, size in tried:
        memory.tidy()
        one = _sized(learner, adjoint)(None)
        compute = functools.partial(engines.meta_gradient, one, theta, episodes, name, size, precision)
        try:
            _, seconds = trials.timed(compute)
        except (*trials.CANNOT, MemoryError):
            continue
        return Setting(name, adjoint, size, None, seconds)
    return None
