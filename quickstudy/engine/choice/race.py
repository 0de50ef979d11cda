"""Chooses the engine: each is compared with the loop and timed; the fastest with the loop's result is used."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch

from quickstudy.base.seeds import watching_generator
from quickstudy.engine.agreement import relative_difference
from quickstudy.engine.mapping import ENGINES, PLAIN
from quickstudy.errors import ConfigError, EngineWarning, first_line, suggest

T = TypeVar("T")

CANNOT = (RuntimeError, ValueError, NotImplementedError, TypeError)  # what torch's transforms raise if they cannot
LONG = 5.0  # seconds; a trial that takes longer is not repeated to measure it better
ROUNDS = (3, 12)  # fewest and most rounds of shorter trials
ROUNDING = 0.02  # tolerance between engines: in float32 kinks (ReLU) amplify rounding to some thousandths
RECORDING = 25.0  # what recording, checking and timing programs costs at most, in loops over all tasks
COMPILING = (8.0, 130.0)  # seconds that compiling always takes, plus this many times the time of recording
STARTS = 0.2  # a replay that takes less than this share of the recording is bound by overhead, not by arithmetic


class Choice(NamedTuple):
    """The chosen engine and the reason."""

    engine: str
    reason: str
    chunk: int | None = None  # the most tasks that run together; None: all


def choose(
    attempt: Callable[[str], Any],
    engine: str,
    tasks: int,
    device: torch.device,
    check: Callable[[str], None] = lambda engine: None,
    iterations: int = 0,
    tolerance: float = ROUNDING,
) -> Choice:
    """The engine to use for `attempt(engine) -> tensors`, which is run a few times to find out.

    engine       one of ENGINES
    tasks        how many tasks an attempt computes
    check        raises RuntimeError where an engine must not be trusted, see `check_engine`
    iterations   how many times it will run: "auto" tries programs only where recording them pays off
    tolerance    the largest difference allowed between results, relative to their norm

    If the engine fails but the loop works, the fastest working engine is used instead, with a warning. If the loop
    fails too, the error is the caller's own and is raised. Random learners (dropout) do not run on threads, because
    the order of their draws is not reproducible.

    Raises ConfigError where the engine is unknown.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}.{suggest(engine, ENGINES)}")
    if engine == "loop" or (tasks == 1 and engine in PLAIN):
        return Choice("loop", "as asked" if engine == "loop" else "one task only")
    others = ["vmap", *_threads(device)] if tasks > 1 else []
    if engine == "auto":
        programs = ["replay", *(["replay-threads"] if tasks > 1 and device.type == "cpu" else [])]
        return _fastest(attempt, others, programs, check, iterations, tolerance)
    try:
        check(engine)
        (result, drew), seconds = timed(lambda: watching_generator(lambda: attempt(engine)))
        if engine == "compile":
            _check_same(result, attempt("loop"), tolerance)
            return Choice(engine, f"as asked, compiled in {seconds:.0f} s")
        if not (engine == "threads" and drew):
            return Choice(engine, "as asked")
        why = "threads cannot repeat random draws (dropout)"
    except CANNOT as error:
        why = f"{engine} cannot: {first_line(error)}"
    choice = _fastest(attempt, [name for name in others if name != engine], [], check, 0, tolerance)
    warnings.warn(f"engine {engine!r} is replaced by {choice.engine!r}: {why}", EngineWarning, stacklevel=3)
    return Choice(choice.engine, why)


def _threads(device: torch.device) -> list[str]:
    return ["threads"] if device.type == "cpu" and torch.get_num_threads() > 1 else []


def _fastest(
    attempt: Callable[[str], Any],
    candidates: list[str],
    programs: list[str],
    check: Callable[[str], None],
    iterations: int,
    tolerance: float,
) -> Choice:
    """The fastest among the loop and the candidates that give its result; programs are tried only if they pay off."""
    (reference, drew), first = timed(lambda: watching_generator(lambda: attempt("loop")))
    warm, notes = {"loop": first}, []  # seconds of each first attempt, which includes recording or compiling

    def warm_up(names: Iterable[str]) -> None:
        for name in names:
            try:
                check(name)
                result, warm[name] = timed(lambda name=name: attempt(name))
                if not drew:
                    _check_same(result, reference, tolerance)
            except CANNOT as error:
                warm.pop(name, None)
                notes.append(f"{name} cannot: {first_line(error)}")

    warm_up(name for name in candidates if not (name == "threads" and drew))
    seconds = _raced(attempt, warm, iterations)
    if not drew and _worth_recording(seconds, iterations):
        warm_up(programs)
        seconds |= _raced(
            attempt, {name: warm[name] for name in (_best(seconds), *programs) if name in warm}, iterations
        )
        if _worth_compiling(warm, seconds, iterations):
            warm_up(["compile"])
        if "compile" in warm:
            notes.append(f"compiled in {warm['compile']:.0f} s")
            seconds |= _raced(attempt, {"compile": 0.0}, iterations)
    times = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    return Choice(_best(seconds), "; ".join([f"fastest of {times}", *notes]))


def _best(seconds: dict[str, float]) -> str:
    return min(seconds, key=seconds.__getitem__)


def _raced(attempt: Callable[[str], Any], warm: dict[str, float], iterations: int) -> dict[str, float]:
    """The fastest time of each engine over a few rounds, taken in turns so that other load hits all engines alike.

    A long training gets more rounds, for up to a quarter of a percent of its time.
    """
    quick, began = [name for name, first in warm.items() if first <= LONG], time.perf_counter()
    found: dict[str, list[float]] = {name: [] for name in quick}
    while quick and (done := len(found[quick[0]])) < ROUNDS[1]:
        if done >= ROUNDS[0] and time.perf_counter() - began > 0.0025 * iterations * min(map(min, found.values())):
            break
        for name in quick:
            found[name].append(timed(lambda name=name: attempt(name))[1])
    return warm | {name: min(seconds) for name, seconds in found.items()}


def _worth_recording(seconds: dict[str, float], iterations: int) -> bool:
    """Whether recording and timing programs takes less than a tenth of the training time without them."""
    return RECORDING * seconds["loop"] < 0.1 * iterations * min(seconds.values())


def _worth_compiling(warm: dict[str, float], seconds: dict[str, float], iterations: int) -> bool:
    """Whether a program bound by overhead runs long enough to be worth compiling.

    A compiled program takes 0.6 of the time, so it must run for 2.5 times as long as compiling takes to win that back.
    """
    if _best(seconds) != "replay" or seconds["replay"] > STARTS * warm["replay"]:
        return False
    start, share = COMPILING
    return seconds["replay"] * iterations > 2.5 * (start + share * warm["replay"])


def _check_same(result: Any, reference: Any, tolerance: float) -> None:
    if not relative_difference(result, reference) <= tolerance:
        raise RuntimeError("it gives another result than the loop")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The function's result, and the seconds until the device had finished computing it."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
