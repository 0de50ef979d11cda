"""Runs one case of the speed benchmark: checks which ways are correct, times them, and measures their memory.

First each way (see peers.py) is compared in float64 with Quickstudy's loop. Then the ways race in float32. In each
round every contestant runs once, in rotating order, so that other load on the machine affects all of them alike. All
correct ways of Quickstudy race, so that its automatic choice can be compared with the best of them. A peer races with
its first correct way.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.speed import memory, peers, work
from benchmarks.speed.cases import SEED, Case, Problem
from benchmarks.speed.memory import first_line, problem_of, relative_error
from quickstudy.engine.choice import choose

TOLERANCE = 1e-8  # largest relative error in float64, where rounding gives 1e-15
CASE_SECONDS = 15.0  # seconds of racing per case; a quarter of it for cases without compile and memory
ROUNDS = (7, 200)  # fewest and most rounds
ITERATIONS = 60_000  # the automatic choice assumes a training of this length, that of MAML on images (Finn 2017)
BRIEF = 3_000  # a shorter training, in which compiling a small network does not pay
FIXED = {  # contestant: the ways of Quickstudy of which it is the fastest
    "quickstudy without compile": ("vmap", "threads", "loop", "replay", "replay-threads"),
    "quickstudy with compile": ("compile",),
    "quickstudy loop": ("loop",),
}
Key = tuple[str, str]  # library, way
LOOP, FLOOR = ("quickstudy", "loop"), ("floor", "plain training")


@dataclass
class Tried:
    """The check of a library's ways in one case, before the race."""

    errors: dict[str, float] = field(default_factory=dict)  # relative error of each way
    correct: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # why the other ways do not race


@dataclass
class Entry:
    """A contestant in one case."""

    name: str
    contestant: str
    way: str | None  # the way that races; None where none is correct
    reason: str  # why this way races, or why none does
    median_ms: float | None = None
    quartiles_ms: list[float] | None = None
    ratio: float | None = None  # its time over that of Quickstudy's automatic choice
    floors: float | None = None  # its time over that of the floor
    share: float | None = None  # ideal time, for the loop's (the floor's) operations at the matrix rate, over its time
    launches: int | None = None  # kernels started on a GPU
    memory: dict[str, float] | None = None  # fields of memory.Memory
    no_memory: str | None = None  # why memory could not be measured
    made_s: float = 0.0  # seconds before the first iteration of a training: choosing, compiling


def run(case: Case, repeats: int | None, device: str, rate: float) -> dict[str, Any]:
    """Check, time and measure one case; returns the results as plain values. `rate` is that of work.matrix_rate."""
    single, double = (case.problem(dtype, device) for dtype in (torch.float32, torch.float64))
    reference = peers.quickstudy(double, "loop")()
    found = {name: tried(name, case, single, double, reference, device) for name in ("quickstudy", *peers.PEERS)}
    entries = [
        automatic(single, ITERATIONS if case.thorough else BRIEF),
        *(of_peer(name, found[name]) for name in peers.PEERS),
    ]
    entries.append(Entry("floor", *FLOOR, "what plain training takes"))
    keys = [("quickstudy", way) for way in found["quickstudy"].correct]
    keys += [(entry.contestant, entry.way) for entry in entries[1:] if entry.way]
    computes = {key: peers.ways(key[0], single)[key[1]](single) for key in keys}
    times = race(computes, repeats, CASE_SECONDS if case.thorough else CASE_SECONDS / 4)
    entries[1:1] = [fixed(name, times, found["quickstudy"]) for name in FIXED]
    loop, floor = (work.operations(computes[key]) / rate for key in (LOOP, FLOOR))
    for entry in entries:
        if (key := (entry.contestant, entry.way)) in times:
            settle(entry, times[key], times, at_best=floor if key == FLOOR else loop)
            entry.launches = work.launches(computes[key], device)
            if case.thorough:
                remember(entry, case, device)
    for entry in entries[: 1 + len(FIXED)]:
        entry.made_s += compiling(entry, case, device)
    return plain(case, entries, found, times)


# --- before the race -------------------------------------------------------------------------------------------------


def tried(library: str, case: Case, single: Problem, double: Problem, reference: peers.Result, device: str) -> Tried:
    """Check which ways of a library compute the right gradient."""
    found = Tried()
    for way, prepare in peers.ways(library, single).items():
        if way == "compile" and not case.thorough:
            continue
        try:
            if way == "compile":
                memory.alone(case.name, library, way, device)  # raises where compiling takes too long
                error, limit = in_single(prepare, single, reference)
            else:
                error, limit = relative_error(prepare(double)(), reference), TOLERANCE
            found.errors[way] = error
            if not error <= limit:
                raise RuntimeError(f"WRONG by {error:.1e}")
            prepare(single)()
            found.correct.append(way)
        except Exception as error:  # any error of a way is its result, and the other ways continue
            found.problems[way] = "not installed" if peers.missing(library) else problem_of(error)
    return found


def in_single(prepare: peers.Way, single: Problem, reference: peers.Result) -> tuple[float, float]:
    """The error of a way in float32, and the tolerance from the loop's own rounding in float32.

    Compiled ways are checked in float32, because compiling them again in float64 would take minutes.
    """
    doubled = [
        (loss.double(), [one.double() for one in gradient])
        for loss, gradient in (prepare(single)(), peers.quickstudy(single, "loop")())
    ]
    error, rounding = (relative_error(result, reference) for result in doubled)
    return error, max(10 * rounding, 1e-5)


def automatic(problem: Problem, iterations: int) -> Entry:
    """Quickstudy as `train` runs it: with the engine that it chooses automatically."""
    own, began = peers.learner(problem), time.perf_counter()
    choice = choose.choose_engine(own, own.init(), problem.episodes, "auto", SEED, iterations)
    return Entry(
        "quickstudy", "quickstudy", choice.engine, first_line(choice.reason), made_s=time.perf_counter() - began
    )


def of_peer(name: str, found: Tried) -> Entry:
    way = next(iter(found.correct), None)
    return Entry(name, name, way, "its first correct way" if way else reasons(found, found.problems))


def fixed(name: str, times: dict[Key, list[float]], found: Tried) -> Entry:
    """The contestant `name`: the fastest in the race of its ways of Quickstudy (see FIXED)."""
    medians = {way: float(np.median(times["quickstudy", way])) for way in FIXED[name] if ("quickstudy", way) in times}
    way = min(medians, key=medians.__getitem__, default=None)
    return Entry(name, "quickstudy", way, "fastest in the race" if way else reasons(found, FIXED[name]))


def reasons(found: Tried, ways: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(found.problems.get(way, "not tried here") for way in ways))


# --- the race --------------------------------------------------------------------------------------------------------


def race(computes: dict[Key, Callable[[], Any]], repeats: int | None, budget: float) -> dict[Key, list[float]]:
    """The seconds of every contestant in each round. Each runs once per round, in rotating order.

    `repeats` is the number of rounds; None: as many as fit into `budget` seconds, within ROUNDS.
    """
    for compute in computes.values():
        compute()  # warms up
    planned = budget / sum(work.seconds(compute) for compute in computes.values())
    keys, times = list(computes), {key: [] for key in computes}
    for i in range(repeats or int(np.clip(planned, *ROUNDS))):
        shift = i % len(keys)
        gc.collect()
        gc.disable()  # so that no contestant pays for the garbage of another
        for key in keys[shift:] + keys[:shift]:
            times[key].append(work.seconds(computes[key]))
        gc.enable()
    return times


def medians(case: Case, keys: Iterable[Key], repeats: int | None, device: str) -> dict[Key, float]:
    """Median seconds of ways that are known to be correct."""
    problem = case.problem(torch.float32, device)
    times = race({key: peers.ways(key[0], problem)[key[1]](problem) for key in keys}, repeats, CASE_SECONDS)
    return {key: float(np.median(taken)) for key, taken in times.items()}


# --- after the race --------------------------------------------------------------------------------------------------


def settle(entry: Entry, taken: list[float], times: dict[Key, list[float]], at_best: float) -> None:
    """Fill in an entry's times and ratios. `at_best`: seconds for its operations at the rate of matrix products."""
    low, median, high = np.percentile(taken, [25, 50, 75]).tolist()
    entry.median_ms, entry.quartiles_ms = 1e3 * median, [1e3 * low, 1e3 * high]
    entry.floors = median / float(np.median(times[FLOOR]))
    entry.share = at_best / median


def remember(entry: Entry, case: Case, device: str) -> None:
    try:
        entry.memory = asdict(memory.alone(case.name, entry.contestant, str(entry.way), device))
    except RuntimeError as error:
        entry.no_memory = problem_of(error)


def compiling(entry: Entry, case: Case, device: str) -> float:
    """Seconds that compiling this way of Quickstudy took with an empty cache; 0 for ways that do not compile."""
    if entry.way != "compile" and "compiled in" not in entry.reason:
        return 0.0
    return memory.alone(case.name, "quickstudy", "compile", device).warm_up_s


def plain(case: Case, entries: list[Entry], found: dict[str, Tried], times: dict[Key, list[float]]) -> dict[str, Any]:
    """The case as plain values, with the ratios and the regret of the automatic choice.

    Regret is the time of a training with the automatic choice, including choosing and compiling, over the time of one
    with the best fixed way.
    """
    ours = entries[0].median_ms
    for entry in entries:
        entry.ratio = entry.median_ms / ours if ours and entry.median_ms else None
    ways = {way: 1e3 * float(np.median(taken)) for (library, way), taken in times.items() if library == "quickstudy"}
    made = {entry.way: entry.made_s for entry in entries if entry.way == "compile" and entry.name != "quickstudy"}
    whole = {way: ms + 1e3 * made.get(way, 0.0) / ITERATIONS for way, ms in ways.items()}
    own = ours + 1e3 * entries[0].made_s / ITERATIONS if ours else None
    return {
        "name": case.name,
        "description": case.description,
        "rounds": len(times[FLOOR]),
        "regret": own / min(whole.values()) if own else None,
        "best_way": min(whole, key=whole.__getitem__),
        "ways_ms": ways,
        "tried": {name: asdict(one) for name, one in found.items()},
        "contestants": [asdict(entry) for entry in entries],
    }
