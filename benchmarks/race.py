"""One case of the speed benchmark: which ways are correct, how long they take in interleaved rounds, their memory.

First each way (see peers.py) is compared in float64 with Quickstudy's loop. The race runs in float32 in rounds: every
contestant once per round, in rotating order, so that whatever else the machine does hits all alike. Of Quickstudy all
correct ways race, so that the automatic choice is held against the best of them; of a peer its first correct one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks import memory, peers, work
from benchmarks.cases import SEED, Case, Problem
from benchmarks.memory import relative_error, told
from quickstudy import choosing

TOLERANCE = 1e-8  # relative error in float64, where rounding gives 1e-15
CASE_SECONDS = 15.0  # of racing per case; without compile and memory a quarter
ROUNDS = (7, 200)  # fewest and most that are planned for it
ITERATIONS = 60_000  # of the training that the automatic choice is made for: as of MAML on images (Finn 2017)
BRIEF = 3_000  # of one in which a small network is not compiled
FIXED = {  # contestants that are Quickstudy's fastest out of these ways
    "quickstudy without compile": ("vmap", "threads", "loop", "replay", "replay-threads"),
    "quickstudy with compile": ("compile",),
    "quickstudy loop": ("loop",),
}
Key = tuple[str, str]  # library, way
LOOP, FLOOR = ("quickstudy", "loop"), ("floor", "plain training")


@dataclass
class Tried:
    """A library's ways in one case, before the race."""

    errors: dict[str, float] = field(default_factory=dict)  # relative, of each way
    correct: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # of the other ways


@dataclass
class Entry:
    """A contestant in one case."""

    name: str
    contestant: str
    way: str | None  # the one that races, if any is correct
    reason: str  # why that one, or why none
    median_ms: float | None = None
    quartiles_ms: list[float] | None = None
    ratio: float | None = None  # its time over that of Quickstudy's automatic choice
    floors: float | None = None  # floor = 1, more is slower
    share: float | None = None  # of the rate of matrix products, by the operations that the loop (the floor) needs
    launches: int | None = None  # kernels started on a GPU
    memory: dict[str, float] | None = None  # of memory.Memory
    no_memory: str | None = None  # why it could not be measured
    made_s: float = 0.0  # before the first iteration of a training: choosing, compiling


def run(case: Case, repeats: int | None, device: str, rate: float) -> dict[str, Any]:
    """Everything about one case, as plain values. `rate`: see work.matrix_rate."""
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
    """Which ways of a library compute the right gradient."""
    found = Tried()
    for way, prepare in peers.ways(library, single).items():
        if way == "compile" and not case.thorough:
            continue
        try:
            if way == "compile":
                memory.alone(case.name, library, way, device)  # what takes too long is stopped there
                error, limit = in_single(prepare, single, reference)
            else:
                error, limit = relative_error(prepare(double)(), reference), TOLERANCE
            found.errors[way] = error
            if not error <= limit:
                raise RuntimeError(f"WRONG by {error:.1e}")
            prepare(single)()
            found.correct.append(way)
        except Exception as error:  # whatever goes wrong in a way is its result; the others go on
            found.problems[way] = "not installed" if peers.missing(library) else told(error)
    return found


def in_single(prepare: peers.Way, single: Problem, reference: peers.Result) -> tuple[float, float]:
    """A float32 gradient's error, and what the loop's own rounding allows: compiling twice would take minutes."""
    doubled = [
        (loss.double(), [slope.double() for slope in slopes])
        for loss, slopes in (prepare(single)(), peers.quickstudy(single, "loop")())
    ]
    error, rounding = (relative_error(result, reference) for result in doubled)
    return error, max(10 * rounding, 1e-5)


def automatic(problem: Problem, iterations: int) -> Entry:
    """Quickstudy as `train` runs it: with the engine that it chooses by itself."""
    own, began = peers.learner(problem), time.perf_counter()
    choice = choosing.choose_engine(own, own.init(), problem.episodes, "auto", SEED, iterations)
    return Entry("quickstudy", "quickstudy", choice.engine, told(choice.reason), made_s=time.perf_counter() - began)


def of_peer(name: str, found: Tried) -> Entry:
    way = next(iter(found.correct), None)
    return Entry(name, name, way, "its first correct way" if way else reasons(found, found.problems))


def fixed(name: str, times: dict[Key, list[float]], found: Tried) -> Entry:
    """The fastest in the race out of these ways of Quickstudy."""
    medians = {way: float(np.median(times["quickstudy", way])) for way in FIXED[name] if ("quickstudy", way) in times}
    way = min(medians, key=medians.__getitem__, default=None)
    return Entry(name, "quickstudy", way, "fastest in the race" if way else reasons(found, FIXED[name]))


def reasons(found: Tried, ways: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(found.problems.get(way, "not tried here") for way in ways))


# --- the race --------------------------------------------------------------------------------------------------------


def race(computes: dict[Key, Callable[[], Any]], repeats: int | None, budget: float) -> dict[Key, list[float]]:
    """Seconds of every contestant, once per round, in rotating order; `budget` seconds of rounds in all."""
    for compute in computes.values():
        compute()  # warms up
    planned = budget / sum(work.seconds(compute) for compute in computes.values())
    keys, times = list(computes), {key: [] for key in computes}
    for i in range(repeats or int(np.clip(planned, *ROUNDS))):
        shift = i % len(keys)
        gc.collect()
        gc.disable()  # nobody pays for another's cycles
        for key in keys[shift:] + keys[:shift]:
            times[key].append(work.seconds(computes[key]))
        gc.enable()
    return times


def medians(case: Case, keys: Iterable[Key], repeats: int | None, device: str) -> dict[Key, float]:
    """Seconds of ways that are known to be correct."""
    problem = case.problem(torch.float32, device)
    times = race({key: peers.ways(key[0], problem)[key[1]](problem) for key in keys}, repeats, CASE_SECONDS)
    return {key: float(np.median(taken)) for key, taken in times.items()}


# --- after the race --------------------------------------------------------------------------------------------------


def settle(entry: Entry, taken: list[float], times: dict[Key, list[float]], at_best: float) -> None:
    """Times and their relations. `at_best`: seconds for the operations at the rate of matrix products."""
    low, median, high = np.percentile(taken, [25, 50, 75]).tolist()
    entry.median_ms, entry.quartiles_ms = 1e3 * median, [1e3 * low, 1e3 * high]
    entry.floors = median / float(np.median(times[FLOOR]))
    entry.share = at_best / median


def remember(entry: Entry, case: Case, device: str) -> None:
    try:
        entry.memory = asdict(memory.alone(case.name, entry.contestant, str(entry.way), device))
    except RuntimeError as error:
        entry.no_memory = told(error)


def compiling(entry: Entry, case: Case, device: str) -> float:
    """Seconds that a compiler took of a way of Quickstudy, with an empty cache."""
    if entry.way != "compile" and "compiled in" not in entry.reason:
        return 0.0
    return memory.alone(case.name, "quickstudy", "compile", device).warm_up_s


def plain(case: Case, entries: list[Entry], found: dict[str, Tried], times: dict[Key, list[float]]) -> dict[str, Any]:
    """The case as plain values: ratios, and the regret of the automatic choice.

    Regret is the time of a training with it, choosing and compiling included, over that with the best fixed way.
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
