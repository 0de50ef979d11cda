"""Measures the accuracy of `qs.plan`: its predicted peak memory and time against those of real trainings.

    python -m benchmarks.planning [--cases NAME...] [--device cuda]

Every plan and every training runs in a process of its own. A training is a few iterations of `qs.train` with the
planned setting: its memory is the peak of the whole process, and its time is that of the fastest iteration. Takes about
15 minutes on 2 quiet cores. Writes results/planning.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

import quickstudy as qs
from benchmarks.markdown import table
from benchmarks.provenance import RESULTS, ROOT, commit
from benchmarks.speed import cases, peers
from benchmarks.speed.memory import peak_mb
from quickstudy.base import files, seeds
from quickstudy.base.machine import in_words as machine_in_words
from quickstudy.base.machine import machine
from quickstudy.base.words import size

ITERATIONS = {"quick": 10, "slow": 3}  # iterations of a training; slow: an iteration takes a second or more
WITHIN = 0.2
COLUMNS = ("case", "engine", "adjoint", "chunk", "foretold", "measured", "off", "foretold ms", "measured ms", "off")
CASES = (
    cases.sinusoid(5),
    cases.conv4(5, 1, 1, 0.4, tasks=16),
    cases.conv4(5, 5, 5, 0.1, tasks=8),
    replace(cases.conv4(5, 1, 50, 0.01, tasks=4), name="conv4-50step"),
    cases.pooled_conv4(),
    cases.lstm(cases.CellLSTM),
    cases.transformer(),
    cases.learned_rates(),
)


class Same:
    """A task source that always returns the tasks of a case."""

    def __init__(self, episodes: qs.Episode) -> None:
        self.episodes = episodes

    def sample(self, n: int, generator: torch.Generator) -> qs.Episode:
        return qs.Episode(*(qs.Batch(x[:n], y[:n]) for x, y in self.episodes))


def find(name: str) -> cases.Case:
    return next(case for case in CASES if case.name == name)


def built(name: str, device: str, **more: Any) -> tuple[qs.Learner, Same, int]:
    problem = find(name).problem(torch.float32, device)
    return peers.learner(problem, **more), Same(problem.episodes), len(problem.episodes.query.y)


def foretell(name: str, device: str) -> list[dict[str, Any]]:
    learner, tasks, n = built(name, device)
    return [one._asdict() for one in qs.plan(learner, tasks, meta_batch=n, device=device)]


def train(name: str, device: str, setting: dict[str, Any]) -> dict[str, float]:
    """The peak memory of the process in bytes, and the seconds of the fastest iteration."""
    learner, tasks, n = built(name, device, **({"adjoint": setting["adjoint"]} if setting["adjoint"] else {}))
    theta = learner.init()
    given = {"engine": setting["engine"], "chunk": setting["chunk"]}
    # First `qs.train` itself, which includes its check of vmap; then its inner loop alone, to time each iteration.
    qs.train(learner, tasks, iterations=1, meta_batch=n, progress=False, device=device, **given)
    with seeds.seeded(0, "planning"):
        optimizer = torch.optim.Adam(list(theta.values()))
        iterations = ITERATIONS["slow" if setting["seconds"] >= 1 else "quick"]
        steps = qs.meta_steps(learner, theta, tasks, optimizer, iterations=iterations, meta_batch=n, **given)
        taken = [step.computing for step in steps]
    return {"memory": peak_mb(device) * 2**20, "seconds": min(taken)}


def alone(*words: str) -> Any:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.planning", "--worker", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(name: str, device: str) -> list[dict[str, Any]]:
    """A row for each adjoint and engine, at its smallest and its largest chunk."""
    found = sorted(
        alone("foretell", name, device), key=lambda one: (one["adjoint"], one["engine"], one["chunk"] or 1e9)
    )
    rows = []
    for key in sorted({(one["adjoint"], one["engine"]) for one in found}):
        same = [one for one in found if (one["adjoint"], one["engine"]) == key]
        for i in sorted({0, len(same) - 1}):
            measured = alone("train", name, device, json.dumps(same[i]))
            rows.append({"case": name, "foretold": same[i], "measured": measured})
            rows[-1] |= {part: same[i][part] / measured[part] - 1 for part in ("memory", "seconds")}
    return rows


def page(done: dict[str, Any]) -> str:
    about = machine_in_words(done["machine"])
    lines = [
        "# Planning",
        "",
        f"`{done['command']}`, seed {cases.SEED}, commit {done['commit']}. Machine: {about}.",
        "",
    ]
    lines += ["Peak memory is that of the whole process. Off: what was foretold over what was measured, less one.", ""]
    lines += [in_short(done["rows"]), "", *table(COLUMNS, [cells(row) for row in done["rows"]])]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    foretold, measured = row["foretold"], row["measured"]
    sizes = [size(foretold["memory"]), size(measured["memory"]), f"{100 * row['memory']:+.0f} %"]
    times = [f"{1e3 * one['seconds']:.1f}" for one in (foretold, measured)] + [f"{100 * row['seconds']:+.0f} %"]
    return [row["case"], foretold["engine"], foretold["adjoint"] or "", str(foretold["chunk"] or ""), *sizes, *times]


def in_short(rows: list[dict[str, Any]]) -> str:
    parts = []
    for what, name in (("memory", "peak memory"), ("seconds", "time")):
        inside = sum(abs(row[what]) <= WITHIN for row in rows)
        worst = max(rows, key=lambda row: abs(row[what]))
        parts.append(
            f"{name} within 20 % in {inside} of {len(rows)} (worst {100 * worst[what]:+.0f} %, {worst['case']})"
        )
    return "Foretold: " + "; ".join(parts) + "."


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        what, name, device, *rest = sys.argv[2:]
        found = foretell(name, device) if what == "foretell" else train(name, device, json.loads(rest[0]))
        print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args, console = parser.parse_args(), Console()
    done: dict[str, Any] = {"command": " ".join(["python -m benchmarks.planning", *sys.argv[1:]]), "commit": commit()}
    done |= {"machine": machine(), "rows": []}
    for name in args.cases:
        done["rows"] += compare(name, args.device)
        console.print(name, in_short(done["rows"]))
    out = RESULTS / ("planning.json" if args.device == "cpu" else "planning-gpu.json")
    files.write_json(out, done)
    out.with_suffix(".md").write_text(page(done), encoding="utf-8")
    print(page(done))


if __name__ == "__main__":
    main()
