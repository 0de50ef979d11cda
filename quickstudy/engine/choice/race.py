"""Chooses the engine: each is compared with the loop and timed; the fastest with the loop's result is used."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from quickstudy.base.seeds import watching_generator
from quickstudy.base.timing import timed
from quickstudy.engine.agreement import relative_difference
from quickstudy.engine.engines import AUTO, BY_NAME, LOOP, Engine, find_engine, name_of
from quickstudy.errors import EngineWarning, first_line

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
    checked: float = 0.0  # seconds that comparing the engine with the loop took


class Entrant(NamedTuple):
    """An engine in a race, after its check."""

    compute: Callable[[], Any]  # -> tensors
    chunk: int | None = None  # the most tasks that it runs together; None: all
    checked: float = 0.0  # seconds that the check took


@dataclass(frozen=True)
class Race:
    """What engines are raced on."""

    enter: Callable[[Engine], Entrant]  # raises RuntimeError where an engine must not be trusted
    tasks: int  # computed by each entrant
    device: torch.device
    iterations: int = 0  # how many times the winner will run: programs are tried only where recording them pays off
    tolerance: float = ROUNDING  # the largest difference allowed between results, relative to their norm

    @property
    def plain(self) -> list[Engine]:
        """The engines that race in every case, beside the loop."""
        able = [one for one in BY_NAME.values() if not (one.recorded or one.in_turn) and self.tasks > 1]
        return [one for one in able if not one.parallel or (self._on_cpu and torch.get_num_threads() > 1)]

    @property
    def programs(self) -> list[Engine]:
        """The engines that race only where recording them pays off."""
        able = [one for one in BY_NAME.values() if one.recorded and not one.compiled]
        return [one for one in able if not one.parallel or (self._on_cpu and self.tasks > 1)]

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"


def chosen(race: Race, engine: str | Engine) -> Choice:
    """The engine to use: the one that is asked for, or the winner of a race for "auto".

    If the engine fails but the loop works, the fastest working engine is used instead, with a warning. If the loop
    fails too, the error is the caller's own and is raised. Random learners (dropout) do not run on threads, because
    the order of their draws is not reproducible.

    Raises ConfigError where the engine is unknown.
    """
    if name_of(engine) == AUTO:
        return _fastest(race, race.plain, race.programs)
    asked = find_engine(engine)
    if asked.in_turn or (race.tasks == 1 and not asked.recorded):
        return Choice(LOOP.name, "as asked" if asked.in_turn else "one task only", race.enter(LOOP).chunk)
    try:
        choice, drew = _as_asked(race, asked)
        if not (asked.parallel and drew):
            return choice
        why = f"{asked.name} cannot repeat random draws (dropout)"
    except CANNOT as error:
        why = f"{asked.name} cannot: {first_line(error)}"
    choice = _fastest(dataclasses.replace(race, iterations=0), [one for one in race.plain if one != asked], [])
    warnings.warn(f"engine {asked.name!r} is replaced by {choice.engine!r}: {why}", EngineWarning, stacklevel=3)
    return choice._replace(reason=why)


def _as_asked(race: Race, asked: Engine) -> tuple[Choice, bool]:
    """The engine that is asked for, and whether it drew random numbers."""
    entrant = race.enter(asked)
    (result, drew), seconds = timed(lambda: watching_generator(entrant.compute), race.device)
    if not asked.compiled:
        return Choice(asked.name, "as asked", entrant.chunk, entrant.checked), drew
    _check_same(result, race.enter(LOOP).compute(), race.tolerance)
    return Choice(asked.name, f"as asked, compiled in {seconds:.0f} s", entrant.chunk, entrant.checked), drew


# --- the race --------------------------------------------------------------------------------------------------------


class _Ready(NamedTuple):
    """An entrant that has run once."""

    entrant: Entrant
    first: float  # seconds of that run, which includes recording or compiling


def _fastest(race: Race, plain: list[Engine], programs: list[Engine]) -> Choice:
    """The fastest among the loop and the engines that give its result; programs are tried only if they pay off."""
    loop = race.enter(LOOP)
    (result, drew), first = timed(lambda: watching_generator(loop.compute), race.device)
    reference = None if drew else result
    ready = {LOOP.name: _Ready(loop, first)}
    others, notes = _warmed_up(race, [one for one in plain if one.repeats_draws or not drew], reference)
    ready |= others
    seconds = _raced(race, ready)
    if not drew and _worth_recording(seconds, race.iterations):
        recorded, cannot = _warmed_up(race, programs, reference)
        ready |= recorded
        best = _best(seconds)
        seconds |= _raced(race, {best: ready[best]} | recorded)
        compiled, never = _compiled(race, {name: one.first for name, one in ready.items()}, seconds, reference)
        ready |= compiled
        seconds |= _raced(race, {name: one._replace(first=0.0) for name, one in compiled.items()})
        notes = [*notes, *cannot, *never, *(f"compiled in {one.first:.0f} s" for one in compiled.values())]
    times = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    best = _best(seconds)
    winner = ready[best].entrant
    return Choice(best, "; ".join([f"fastest of {times}", *notes]), winner.chunk, winner.checked)


def _compiled(
    race: Race, warm: dict[str, float], seconds: dict[str, float], reference: Any
) -> tuple[dict[str, _Ready], list[str]]:
    """The compiled program where compiling it pays off, else nothing."""
    engines = [one for one in BY_NAME.values() if one.compiled]
    return _warmed_up(race, engines if _worth_compiling(warm, seconds, race.iterations) else [], reference)


def _warmed_up(race: Race, engines: Iterable[Engine], reference: Any) -> tuple[dict[str, _Ready], list[str]]:
    """The engines that run and give the reference's result, each after its first run, and why others cannot.

    `reference` None: results are not comparable.
    """
    ready, notes = {}, []
    for engine in engines:
        try:
            entrant = race.enter(engine)
            result, first = timed(entrant.compute, race.device)
            if reference is not None:
                _check_same(result, reference, race.tolerance)
            ready[engine.name] = _Ready(entrant, first)
        except CANNOT as error:
            notes.append(f"{engine.name} cannot: {first_line(error)}")
    return ready, notes


def _best(seconds: dict[str, float]) -> str:
    return min(seconds, key=seconds.__getitem__)


def _raced(race: Race, ready: dict[str, _Ready]) -> dict[str, float]:
    """The fastest time of each engine over a few rounds, taken in turns so that other load hits all engines alike.

    A long training gets more rounds, for up to a quarter of a percent of its time.
    """
    quick, began = [name for name, one in ready.items() if one.first <= LONG], time.perf_counter()
    taken: dict[str, list[float]] = {name: [] for name in quick}
    while quick and (done := len(taken[quick[0]])) < ROUNDS[1]:
        if done >= ROUNDS[0] and time.perf_counter() - began > 0.0025 * race.iterations * min(map(min, taken.values())):
            break
        for name in quick:
            taken[name].append(timed(ready[name].entrant.compute, race.device)[1])
    return {name: one.first for name, one in ready.items()} | {name: min(each) for name, each in taken.items()}


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
