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

from quickstudy.base import memory, seeds, words
from quickstudy.base.timing import timed
from quickstudy.engine import agreement, numerics
from quickstudy.engine.choice import race
from quickstudy.engine.choice.work import Work
from quickstudy.engine.engines import AUTO, BY_NAME, LOOP, Engine
from quickstudy.episodes import first_tasks, moved
from quickstudy.errors import ConfigError
from quickstudy.learner import Learner, Theta, plain_value, setting, takes
from quickstudy.tasks.source import source_of

EXACT = ("unroll", "remat")  # settings `adjoint` to choose from, the fastest first; others are slower or not exact
FEW = 12  # up to this many inner steps all of them are measured
TIMES, ENOUGH = (3, 10), 0.3  # fewest and most timed runs, and the total seconds after which they stop
COPIES = 4  # copies of theta that a training also holds: its gradient, Adam's two averages, the best theta
ENGINES = tuple(name for name, one in BY_NAME.items() if not one.compiled)  # compiling would take too long
Run = Callable[[Work, bool], None]  # computes a meta-gradient; True: checks the engine first
Sized = Callable[[int | None], Work]  # number of inner steps -> the work with that many; None: the learner's own


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
    engine: str | Engine = AUTO,
    chunk: int | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[Setting], None] = lambda setting: None,
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
    engines = _planned(engine)
    numerics.check_precision(precision)
    work = _first_iteration(learner, tasks, meta_batch, seed, torch.device(device))
    if channels_last:
        theta, episodes = numerics.channels_last(work.theta), numerics.images_channels_last(work.episodes)
        work = dataclasses.replace(work, theta=theta, episodes=episodes)
    measured = []
    for one in settings(dataclasses.replace(work, chunk=chunk, precision=precision), limit, engines):
        measured.append(one)
        progress(one)
    return fitting(measured, limit)


def _planned(engine: str | Engine) -> list[Engine]:
    name = engine.name if isinstance(engine, Engine) else engine
    if name not in (AUTO, *ENGINES):
        raise ConfigError(f"plan knows the engines auto, {', '.join(ENGINES)}; got {name!r}.")
    return [one for one in BY_NAME.values() if one.name in (ENGINES if name == AUTO else (name,))]


def _first_iteration(learner: Learner, tasks: Any, meta_batch: int, seed: int, device: torch.device) -> Work:
    """The work of the first iteration of such a training."""
    source = source_of(tasks) if learner.episodic else source_of(tasks).pooled()
    theta = {name: value.detach().clone().to(device) for name, value in learner.init().items()}
    if not theta:
        raise ConfigError(f"{type(learner).__name__} learns nothing across tasks: there is no training to plan.")
    episodes = source.draw(meta_batch, seeds.generator(seed, "train", 0), learner, theta)
    return Work(learner, theta, moved(episodes, device))


def fitting(measured: list[Setting], limit: float | None) -> list[Setting]:
    """The settings that need at most `limit` bytes, the fastest first; None: no limit.

    Raises ConfigError where no setting fits, or where the system does not report memory.
    """
    if limit is not None and any(one.memory is None for one in measured):
        raise ConfigError("this system does not tell how much memory a process took: leave the limit out.")
    if not measured:
        raise ConfigError("none of these engines can run this learner, or what it needs is more than there is.")
    able = [one for one in measured if limit is None or (one.memory or 0.0) <= limit]
    if not able:
        least = min(measured, key=lambda one: one.memory or 0.0)
        raise ConfigError(
            f"no exact setting stays within {words.size(limit or 0.0)}: the least is {words.size(least.memory or 0.0)}"
            f", with {least.options()}. Take fewer queries or a smaller network, or, for another meta-gradient, "
            "adjoint first_order."
        )
    return sorted(able, key=lambda one: one.seconds)


def _limit(given: float | str | None) -> float | None:
    return memory.bytes_of(given) if isinstance(given, str) else given


# --- what each setting needs -----------------------------------------------------------------------------------------


def settings(work: Work, limit: float | None = None, engines: Sequence[Engine] | None = None) -> Iterator[Setting]:
    """The settings with an exact meta-gradient that can do this work, as they are measured.

    Only chunks that should fit into `limit` bytes and into the memory of the machine are tried. `engines`: None means
    all of ENGINES; the engine of `work` does not matter.
    """
    room = (limit, memory.room(work.device))
    most = min([size for size in room if size is not None], default=math.inf)
    beside = COPIES * sum(value.nbytes for value in work.theta.values())
    update = _seconds_of_update(work.theta, work.device)
    for adjoint in _adjoints(work.learner):
        for engine in _planned(AUTO) if engines is None else engines:
            for one in _by_size(dataclasses.replace(work, engine=engine), adjoint, most):
                more = None if one.memory is None else one.memory + beside
                yield one._replace(memory=more, seconds=one.seconds + update)


def _by_size(work: Work, adjoint: str | None, most: float) -> Iterator[Setting]:
    """The work's engine with one adjoint, in chunks of growing size while they fit into `most` bytes.

    Memory and time are those of the meta-gradients alone.
    """
    before, last, checked = memory.taken(work.device) or 0.0, 0.0, None
    for together in _together(work):
        if before + 2 * (last - before) > most:  # an estimate for twice as many tasks
            return
        check = checked is None
        try:
            part = dataclasses.replace(work, episodes=first_tasks(work.episodes, together), chunk=None)
            run = functools.partial(_run, work)
            peak, seconds = _need(functools.partial(_sized, part, adjoint), run, work.device, check)
        except (*race.CANNOT, MemoryError):  # a training would use another engine, or a smaller chunk
            return
        checked = peak if check else checked  # a training needs at least this much before it begins
        peak = None if peak is None else max(peak, checked or 0.0)
        last = peak or 0.0
        chunked = work.engine.together
        rounds = work.tasks / together if chunked else math.ceil(work.tasks / together)
        size = together if chunked and together < work.tasks else None
        yield Setting(work.engine.name, adjoint, size, peak, rounds * seconds)


def _run(whole: Work, part: Work, check: bool) -> None:
    """Compute a part of the work, once it is checked as in training, which may need more than a chunk."""
    if check:
        agreement.check_engine(part.learner, whole.theta, whole.episodes, whole.engine)
    _, drew = seeds.watching_generator(part.gradient)
    if drew and not whole.engine.repeats_draws:
        raise RuntimeError(f"{whole.engine.name} cannot repeat random draws")


def _adjoints(learner: Learner) -> tuple[str | None, ...]:
    """The adjoints to choose from. None means the learner's own: it has none, or one that is not in EXACT."""
    planned = learner.exact() is learner and plain_value(setting(learner, "adjoint")) in EXACT
    return EXACT if planned else (None,)


def _sized(work: Work, adjoint: str | None, steps: int | None) -> Work:
    """The work with another adjoint and number of inner steps; None: with the learner's own."""
    changes = {name: value for name, value in (("adjoint", adjoint), ("steps", steps)) if value is not None}
    learner = dataclasses.replace(work.learner, **changes)  # type: ignore[type-var]
    return dataclasses.replace(work, learner=learner)


def _together(work: Work) -> list[int]:
    """How many tasks to hold in memory at once: 1, 2, 4 ... all if mapped, one per thread, one in a loop."""
    tasks = work.tasks
    if not work.engine.together:
        return [min(torch.get_num_threads(), tasks) if work.engine.parallel else 1]
    return [work.together] if work.chunk else [2**i for i in range(tasks.bit_length()) if 2**i < tasks] + [tasks]


def _need(sized: Sized, run: Run, device: torch.device, check: bool = True) -> tuple[float | None, float]:
    """Peak memory of the process in bytes, and seconds; extrapolated from fewer inner steps where there are many."""
    learner = sized(None).learner
    steps = setting(learner, "steps")
    many = isinstance(steps, int) and steps > FEW and takes(learner, "adjoint")
    measured = []
    for k in (steps // 4, steps // 2) if many else (None,):
        memory.tidy()
        with memory.peak(device) as peak, seeds.seeded(0, "plan"):
            one = sized(k)  # one learner for all runs, because programs are cached by learner
            run(one, check)
            taken = _fastest(lambda one=one: run(one, False), device)
        measured.append((k, peak.bytes, taken))
    (k, memory_, seconds), (fewer, before, _) = measured[-1], measured[0]
    if not many:
        return memory_, seconds
    ahead = (steps - k) / (k - fewer)
    further = None if memory_ is None or before is None else memory_ + max(memory_ - before, 0.0) * ahead
    return further, seconds * (steps + 1) / (k + 1)


def _seconds_of_update(theta: Theta, device: torch.device) -> float:
    """The time of an iteration's other work: the check that the gradient is finite, and a step of Adam."""
    values = [value.clone().requires_grad_() for value in theta.values()]
    optimizer = torch.optim.Adam(values)
    for value in values:
        value.grad = torch.zeros_like(value)

    def update() -> None:
        torch.nn.utils.get_total_norm([value.grad for value in values if value.grad is not None])
        optimizer.step()

    return _fastest(update, device)


def _fastest(compute: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest of a few runs, which is the least disturbed one."""
    taken: list[float] = []
    while len(taken) < TIMES[0] or (len(taken) < TIMES[1] and sum(taken) < ENOUGH):
        taken.append(timed(compute, device)[1])
    return min(taken)


# --- while training --------------------------------------------------------------------------------------------------


def tasks_within(each: float, device: torch.device) -> int | None:
    """How many tasks of `each` bytes fit into the free memory, at least 1; None if the system does not report it."""
    free = memory.free(device)
    return None if free is None or each <= 0 else max(1, int(free / each))


def first_that_fits(work: Work) -> Setting | None:
    """The first setting that works after memory ran out; None if none does.

    Tries smaller chunks, then a loop, then the same with the adjoint that stores less. Each trial computes one
    meta-gradient. The setting's `memory` is None, because it is not measured.
    """
    for adjoint, engine, chunk in _cheaper(work):
        memory.tidy()
        one = dataclasses.replace(_sized(work, adjoint, None), engine=engine, chunk=chunk)
        try:
            _, seconds = timed(one.gradient, one.device)
        except (*race.CANNOT, MemoryError):
            continue
        return Setting(engine.name, adjoint, chunk, None, seconds)
    return None


def _cheaper(work: Work) -> list[tuple[str | None, Engine, int | None]]:
    """Settings that need less memory than the work's own: adjoint, engine and chunk."""
    adjoints, now = _adjoints(work.learner), plain_value(setting(work.learner, "adjoint"))
    own, *others = adjoints[adjoints.index(now) :] if now in adjoints else adjoints
    smaller = [work.together // 2**i for i in range(1, work.together.bit_length())] if work.engine.together else []
    ways: list[tuple[Engine, int | None]] = [(work.engine.uncompiled, size) for size in smaller]
    ways += [] if work.engine.in_turn else [(LOOP, None)]
    # Compiling each trial would take too long.
    with_others = [] if work.engine.compiled else [(work.engine, work.chunk), *ways]
    return [(own, *way) for way in ways] + [(other, *way) for other in others for way in with_others]
