"""Measures how much faster two processes train than one.

    python -m benchmarks.scaling                two cases, about ten minutes on 2 quiet cores; nothing else should run
    python -m benchmarks.scaling --smallest     seconds, to see that it works; writes nothing

Each process has one thread. There are four setups: one rank; two ranks at the same global meta-batch (strong scaling);
two ranks at twice that meta-batch (weak scaling); and two independent processes, which show the most that the machine
can do. The setups are measured in turns, each in processes of its own, so that other load on the machine affects all of
them alike. An iteration includes everything in `meta_steps`, with drawing tasks and the all-reduce. The all-reduce is
also timed alone. Writes results/scaling.json and .md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

import quickstudy as qs
from benchmarks.markdown import table
from benchmarks.provenance import RESULTS, ROOT, commit
from quickstudy.base import files
from quickstudy.base.machine import in_words as machine_in_words
from quickstudy.base.machine import machine
from quickstudy.engine import ranks

SEED = 0
WARM_UP = 3  # iterations that are not counted
COLUMNS = ("", "processes", "global meta-batch", "iterations per second", "tasks per second", "times")
COLUMNS += ("times, undisturbed", "drawing (ms)", "all-reduce (ms)")
REDUCED = 30  # all-reduces that are timed


@dataclass(frozen=True)
class Case:
    """A learner and its tasks. `meta_batch` is the global one of the setups "one rank" and "strong"."""

    name: str
    description: str
    build: Callable[[], tuple[qs.Learner, Any]]
    meta_batch: int
    engine: str
    iterations: int


class Setup(NamedTuple):
    name: str
    processes: int
    meta_batches: int  # global meta-batch, as a multiple of the case's
    joined: bool = True  # in a process group; else each process trains alone, with the meta-batch of the case


SETUPS = (Setup("one rank", 1, 1), Setup("strong", 2, 1), Setup("weak", 2, 2), Setup("two alone", 2, 2, joined=False))


def sinusoid() -> tuple[qs.Learner, Any]:
    return qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=1), qs.tasks.sinusoid("train", 10, 10)


def conv4(filters: int = 64) -> tuple[qs.Learner, Any]:
    return qs.MAML(qs.nn.conv4(filters=filters), lr=0.4, steps=1), qs.tasks.glyphs("train", 5, 1, 15)


CASES = {
    case.name: case
    for case in (
        Case("sinusoid", "sine waves, MLP 1-40-40-1, 10 shots, 1 inner step", sinusoid, 24, "replay", 400),
        Case("conv4", "characters, Conv4-64, 5-way 1-shot, 15 queries, 1 inner step", conv4, 16, "replay-threads", 25),
    )
}


# --- one process -----------------------------------------------------------------------------------------------------


def work(case: Case, meta_batch: int, iterations: int, out: Path) -> None:
    """The work of each process: train, and write the seconds of each iteration and of an all-reduce to `out`."""
    with ranks.joined():
        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        learner, tasks = case.build()
        theta = learner.init()
        optimizer = torch.optim.Adam(list(theta.values()))
        sizes = {"iterations": WARM_UP + iterations, "meta_batch": meta_batch, "seed": SEED, "engine": case.engine}
        began, found = time.perf_counter(), []
        for step in qs.meta_steps(learner, theta, tasks, optimizer, **sizes):
            now = time.perf_counter()
            found.append({"seconds": now - began, "sampling": step.sampling})
            began = now
        timed = {"iterations": found[WARM_UP:], "reduce": reduce_seconds(theta), "threads": torch.get_num_threads()}
        if ranks.first():
            files.write_json(out, timed | {"bytes": sum(v.numel() * v.element_size() for v in theta.values())})


def reduce_seconds(theta: dict[str, torch.Tensor]) -> float:
    """Median seconds of one all-reduce of the meta-gradient and the loss; close to 0 for one rank."""
    taken = []
    for _ in range(REDUCED):
        ranks.barrier()
        began = time.perf_counter()
        ranks.begin_mean(torch.zeros(()), theta, 1.0, False)()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


# --- all of them -----------------------------------------------------------------------------------------------------


def measure(case: Case, setup: Setup, iterations: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{i}.json" for i in range(1 if setup.joined else setup.processes)]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setup.processes)]
        command = [sys.executable, *(launch if setup.joined else []), "-m", "benchmarks.scaling", "--worker", case.name]
        command += [str(case.meta_batch * (setup.meta_batches if setup.joined else 1)), str(iterations)]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        started = [subprocess.Popen([*command, str(out)], cwd=ROOT, env=env) for out in outs]
        if any([one.wait() for one in started]):  # a list, so that all processes are waited for
            raise RuntimeError(f"{setup.name}: a process failed, see above")
        found = [json.loads(out.read_text(encoding="utf-8")) for out in outs]
        return max(found, key=lambda one: statistics.median(step["seconds"] for step in one["iterations"]))


def compare(case: Case, rounds: int, iterations: int) -> dict[str, Any]:
    """Measure all setups in turns; a setup's rate is the median over its rounds of the median iteration.

    "Undisturbed" rates use the fastest iteration of all rounds, because other load can only make an iteration slower.
    """
    found: dict[str, list[dict[str, Any]]] = {setup.name: [] for setup in SETUPS}
    for i in range(rounds):
        for setup in SETUPS[i % len(SETUPS) :] + SETUPS[: i % len(SETUPS)]:
            found[setup.name].append(measure(case, setup, iterations))
            print(f"{case.name}, round {i + 1} of {rounds}: {setup.name}", file=sys.stderr)
    rows = [row_of(case, setup, found[setup.name]) for setup in SETUPS]
    for row in rows:
        row["times"] = row["tasks_per_second"] / rows[0]["tasks_per_second"]
        row["times_undisturbed"] = row["meta_batch"] * rows[0]["fastest"] / rows[0]["meta_batch"] / row["fastest"]
    about = {"name": case.name, "description": case.description, "engine": case.engine, "iterations": iterations}
    return about | {"rounds": rounds, "bytes": found["one rank"][0]["bytes"], "rows": rows}


def row_of(case: Case, setup: Setup, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def median(name: str) -> list[float]:
        return [statistics.median(step[name] for step in one["iterations"]) for one in rounds]

    seconds, meta_batch = median("seconds"), case.meta_batch * setup.meta_batches
    middle = statistics.median(seconds)
    return {
        "setup": setup.name,
        "processes": setup.processes,
        "meta_batch": meta_batch,
        "seconds": middle,
        "seconds_of_rounds": seconds,
        "fastest": min(step["seconds"] for one in rounds for step in one["iterations"]),
        "iterations_per_second": 1 / middle,
        "tasks_per_second": meta_batch / middle,
        "sampling": statistics.median(median("sampling")),
        "reduce": statistics.median(one["reduce"] for one in rounds),
    }


def page(result: dict[str, Any]) -> str:
    about = machine_in_words(result["machine"])
    lines = ["# scaling", "", f"Command: `{result['command']}`, seed {SEED} (commit {result['commit']})", ""]
    lines += [f"Machine: {about}; one thread in each process", ""]
    lines += [
        "Strong scaling: the same global meta-batch on more ranks. Weak scaling: the same meta-batch on each rank. "
        "Two alone: two processes that do not talk, the slower one; what the machine gives at best. Times: tasks per "
        "second against one rank, where 2 is perfect; undisturbed: by the fastest iterations. In brackets the slowest "
        "and the fastest round.",
    ]
    for case in result["cases"]:
        lines += ["", f"## {case['name']}", ""]
        lines += [f"{case['description']}; theta {case['bytes']:,} bytes, engine {case['engine']}, {case['rounds']} "]
        lines[-1] += f"rounds of {case['iterations']} iterations."
        lines += ["", *table(COLUMNS, [cells(row) for row in case["rows"]])]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    slowest, fastest = (1 / end(row["seconds_of_rounds"]) for end in (max, min))
    rate = f"{row['iterations_per_second']:.3g} ({slowest:.3g} to {fastest:.3g})"
    found = [row["setup"], str(row["processes"]), str(row["meta_batch"]), rate, f"{row['tasks_per_second']:.3g}"]
    found += [f"{row[key]:.2f}" for key in ("times", "times_undisturbed")]
    return found + [f"{1e3 * row[key]:.2f}" for key in ("sampling", "reduce")]


def main(cases: tuple[str, ...] = tuple(CASES), rounds: int = 5, smallest: bool = False) -> None:
    """Measure and write the tables.

    Args:
        cases: which of sinusoid and conv4.
        rounds: how often each setup is measured.
        smallest: one round of two iterations, to see that it works; writes nothing.
    """
    picked = [CASES[name] for name in cases]
    found = [compare(case, 1, 2) if smallest else compare(case, rounds, case.iterations) for case in picked]
    command = " ".join(["python -m benchmarks.scaling", *sys.argv[1:]])
    result = {"command": command, "seed": SEED, "commit": commit(), "machine": machine(), "cases": found}
    if not smallest:
        files.write_json(RESULTS / "scaling.json", result)
        (RESULTS / "scaling.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(CASES[sys.argv[2]], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        tyro.cli(main)
