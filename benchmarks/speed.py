"""How long one meta-gradient takes: Quickstudy, its peers, and plain training as the floor.

    python -m benchmarks.speed [--cases NAME...] [--smallest] [--repeats N] [--out benchmarks/results/speed.json]

Every contestant computes the mean meta-loss of MAML over a batch of tasks and its exact second-order gradient, from
the same weights and data. First each of its ways (see peers.py) is compared in float64 with Quickstudy's loop; the
fastest correct one, by a short trial, enters the race. The race runs in float32 in rounds: every contestant once per
round, in rotating order, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import gc
import re
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/speed.py`

import quickstudy as qs
from benchmarks import peers
from quickstudy import engine, files, seeds
from quickstudy.machine import machine

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
TOLERANCE = 1e-8  # relative error in float64, where rounding gives 1e-15
CASE_SECONDS = 25.0  # of racing per case
ROUNDS = (7, 200)  # fewest and most that are planned for it
COLUMNS = ("contestant", "way", "median ms (quartiles)", "ratio", "floors")
LEGEND = (
    "One meta-gradient in float32. Ratio: a contestant's time over Quickstudy's; above 1 is slower than Quickstudy. "
    "WRONG: its gradient is not that of the loop in float64, and it does not race. Floors: its time over the floor's, "
    "which is as many forward and backward passes of plain training with all examples in one batch."
)


@dataclass(frozen=True)
class Case:
    """A network, its inner loop and its tasks."""

    name: str
    description: str
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float
    steps: int
    episodes: Callable[[torch.Generator], qs.Episode]

    def problem(self, dtype: torch.dtype) -> peers.Problem:
        """The same weights and data whenever it is called, in any precision."""
        with seeds.seeded(SEED, f"weights of {self.name}"):
            model = self.model().to(dtype)
        drawn = self.episodes(seeds.generator(SEED, f"data of {self.name}"))
        cast = (qs.Batch(x.to(dtype), y.to(dtype) if y.is_floating_point() else y) for x, y in drawn)
        return peers.Problem(model, self.loss, self.lr, self.steps, qs.Episode(*cast))


def sinusoid(steps: int, tasks: int = 25) -> Case:
    text = f"sinusoids, MLP 1-40-40-1, tasks {tasks}, shots 10, queries 10, inner steps {steps}, lr 0.01"
    source = qs.tasks.sinusoid("train", shots=10, queries=10)
    return Case(f"sinusoid-{steps}", text, _mlp, F.mse_loss, 0.01, steps, lambda g: source.sample(tasks, g))


def conv4(shots: int, steps: int, lr: float, tasks: int, filters: int = 64) -> Case:
    text = (
        f"random 28x28 images, strided Conv4-{filters} with batch norm, tasks {tasks}, ways 5, shots {shots}, "
        f"queries 5 per class, inner steps {steps}, lr {lr}"
    )
    model, images = partial(_conv4, filters), partial(_random_images, tasks, shots)
    return Case(f"conv4-{shots}shot", text, model, F.cross_entropy, lr, steps, images)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def _conv4(filters: int) -> nn.Module:
    """Conv4 of torch's own layers, which every contestant can read."""
    layers: list[nn.Module] = []
    for channels in (1, filters, filters, filters):
        layers += [nn.Conv2d(channels, filters, 3, stride=2, padding=1)]
        layers += [nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * 2 * 2, 5))


def _random_images(tasks: int, shots: int, generator: torch.Generator, ways: int = 5, queries: int = 5) -> qs.Episode:
    def batch(each: int) -> qs.Batch:
        images = torch.rand(tasks, ways * each, 1, 28, 28, generator=generator)
        return qs.Batch(images, torch.arange(ways).repeat(tasks, each))

    return qs.Episode(batch(shots), batch(queries))


CASES = (sinusoid(1), sinusoid(5), conv4(1, 1, 0.4, tasks=16), conv4(5, 5, 0.1, tasks=8))
SMALLEST = (sinusoid(1, tasks=4), conv4(1, 1, 0.4, tasks=2, filters=8))


# --- the race --------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A contestant in one case."""

    name: str
    way: str | None = None  # the one that races, if any is correct
    reason: str = ""  # why that one
    errors: dict[str, float] = field(default_factory=dict)  # relative, in float64, of each way
    tried_ms: dict[str, float] = field(default_factory=dict)  # a short trial of each correct way
    problems: dict[str, str] = field(default_factory=dict)  # of the other ways
    median_ms: float | None = None
    quartiles_ms: list[float] | None = None
    ratio: float | None = None  # its time over Quickstudy's
    floors: float | None = None  # floor = 1, more is slower


def enter(name: str, single: peers.Problem, double: peers.Problem, reference: peers.Result) -> Entry:
    """A contestant with its fastest correct way, or with the reasons why it has none."""
    entry = Entry(name)
    for way, prepare in peers.CONTESTANTS[name].items():
        try:
            error = entry.errors[way] = relative_error(prepare(double)(), reference)
            if error <= TOLERANCE:
                compute = prepare(single)
                entry.tried_ms[way] = 1e3 * min(seconds(compute) for _ in range(5))
            else:
                entry.problems[way] = f"WRONG by {error:.1e}"
        except Exception as error:  # whatever goes wrong in a peer is its result; the others go on
            missing = name in peers.PEERS and util.find_spec(peers.PEERS[name]) is None
            entry.problems[way] = "not installed" if missing else told(f"{type(error).__name__}: {error}")
    way, entry.reason = pick(entry, single)
    entry.way = way if way in entry.tried_ms else None
    return entry


def pick(entry: Entry, problem: peers.Problem) -> tuple[str | None, str]:
    """The way to race, and why: Quickstudy's own automatic choice; for everybody else the fastest in the trial."""
    if entry.name != "quickstudy":
        return min(entry.tried_ms, key=entry.tried_ms.__getitem__, default=None), "fastest in the trial"
    tasks = len(problem.episodes.query.x)
    choice = engine.choose(lambda e: peers.quickstudy(problem, e)(), "auto", tasks, torch.device("cpu"))
    return choice.engine, told(choice.reason)


def race(computes: dict[str, Callable[[], Any]], repeats: int | None) -> dict[str, list[float]]:
    """Seconds of every contestant, once per round, in rotating order."""
    for compute in computes.values():
        compute()  # warms up
    planned = CASE_SECONDS / sum(seconds(compute) for compute in computes.values())
    names, times = list(computes), {name: [] for name in computes}
    for i in range(repeats or int(np.clip(planned, *ROUNDS))):
        shift = i % len(names)
        gc.collect()
        gc.disable()  # nobody pays for another's cycles
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(computes[name]))
        gc.enable()
    return times


def run(case: Case, repeats: int | None) -> dict[str, Any]:
    """Everything about one case, as plain values."""
    single, double = case.problem(torch.float32), case.problem(torch.float64)
    reference = peers.quickstudy(double, "loop")()
    entries = [enter(name, single, double, reference) for name in peers.CONTESTANTS]
    ways = {entry.name: peers.CONTESTANTS[entry.name][entry.way] for entry in entries if entry.way}
    ways["floor"] = peers.plain_training
    times = race({name: way(single) for name, way in ways.items()}, repeats)
    quartiles = {name: (1e3 * np.percentile(values, [25, 50, 75])).tolist() for name, values in times.items()}
    ours = quartiles["quickstudy"][1]
    entries.append(Entry("floor", "plain training"))
    for entry in entries:
        if entry.name in quartiles:
            low, entry.median_ms, high = quartiles[entry.name]
            entry.quartiles_ms = [low, high]
            entry.ratio = entry.median_ms / ours
            entry.floors = entry.median_ms / quartiles["floor"][1]
    plain = {"name": case.name, "description": case.description, "rounds": len(times["floor"])}
    return plain | {"contestants": [asdict(entry) for entry in entries]}


def seconds(compute: Callable[[], Any]) -> float:
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


def relative_error(result: peers.Result, reference: peers.Result) -> float:
    """The larger one of the loss's and of the whole gradient's."""
    (loss, slope), (true_loss, true_slope) = ((a, torch.cat([g.flatten() for g in b])) for a, b in (result, reference))
    return max(float((a - b).norm() / b.norm()) for a, b in ((loss, true_loss), (slope, true_slope)))


def told(text: str) -> str:
    """The first line, without the folders of this machine."""
    return re.sub(r"\S*/", "", text.strip().splitlines()[0])[:300]


# --- the report ------------------------------------------------------------------------------------------------------


def report(command: str, repeats: int | None, cases: Sequence[Case], console: Console) -> dict[str, Any]:
    """Run the cases and print each one's table as soon as it is done."""
    done = {"command": command, "seed": SEED, "commit": commit(), "date": datetime.now(UTC).isoformat(" ", "seconds")}
    installed = {
        name: metadata.version(name) for name in ("torch", *dict.fromkeys(peers.PEERS.values())) if util.find_spec(name)
    }
    done |= {"machine": machine(), "versions": installed, "legend": LEGEND, "tolerance": TOLERANCE, "cases": []}
    for case in cases:
        console.print(f"\n[bold]{case.name}[/bold]: {case.description}")
        done["cases"].append(run(case, repeats))
        table = Table(*COLUMNS)
        for entry in done["cases"][-1]["contestants"]:
            table.add_row(*row(entry))
        console.print(table, *notes(done["cases"][-1]), sep="\n")
    console.print(LEGEND)
    return done


def row(entry: dict[str, Any]) -> list[str]:
    if not entry["way"]:
        return [entry["name"], "; ".join(dict.fromkeys(entry["problems"].values())), "-", "-", "-"]
    low, high = entry["quartiles_ms"]
    times = f"{entry['median_ms']:.2f} ({low:.2f} to {high:.2f})"
    return [entry["name"], entry["way"], times, *(f"{entry[k]:.2f}" if entry[k] else "-" for k in ("ratio", "floors"))]


def notes(case: dict[str, Any]) -> list[str]:
    """What each contestant tried before the race, where it had a choice."""
    tried = {e["name"]: {way: f"{ms:.1f} ms" for way, ms in e["tried_ms"].items()} | e["problems"]
             for e in case["contestants"]}  # fmt: skip
    return [f"{name} tried: " + ", ".join(f"{way} {text}" for way, text in ways.items()) + "."
            for name, ways in tried.items() if len(ways) > 1]  # fmt: skip


def markdown(done: dict[str, Any]) -> str:
    """The report as a page of tables."""
    machine, versions = (", ".join(f"{k} {v}" for k, v in done[part].items() if v) for part in ("machine", "versions"))
    lines = ["# Speed of one meta-gradient", "", f"`{done['command']}`, seed {done['seed']}, {done['date']}, commit "
             f"{done['commit']}. Machine: {machine}. Versions: {versions}.", "", done["legend"]]  # fmt: skip
    for case in done["cases"]:
        lines += ["", f"## {case['name']}", "", f"{case['description']}; {case['rounds']} rounds.", ""]
        cells = [COLUMNS, ["---"] * len(COLUMNS), *(row(entry) for entry in case["contestants"])]
        lines += [f"| {' | '.join(cell)} |" for cell in cells]
        lines += [line for note in notes(case) for line in ("", note)]
    return "\n".join(lines) + "\n"


def commit() -> str:
    """The commit, "+dirty" if anything but earlier results differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", ":!benchmarks/results") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def as_typed(words: list[str]) -> str:
    """The command with paths relative to the repository, or only a file's name when it lies elsewhere."""
    start = ["python", "-m", "benchmarks.speed"] if __package__ else ["python", "benchmarks/speed.py"]
    return shlex.join(start + [re.sub(r"^(--out=)?/.*/", r"\1", word.replace(f"{ROOT}/", "")) for word in words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--smallest", action="store_true", help="seconds only, to see it work; saves only with --out")
    parser.add_argument("--repeats", type=int, help="rounds per case (default: about 25 s of them)")
    parser.add_argument(
        "--out", type=Path, help="JSON file, a markdown table beside it (benchmarks/results/speed.json)"
    )
    args = parser.parse_args()
    pool, repeats = (SMALLEST, args.repeats or 2) if args.smallest else (CASES, args.repeats)
    cases = [case for case in pool if not args.cases or case.name in args.cases]
    if not cases or (repeats or 1) < 1:
        parser.error("nothing to run: --repeats must be at least 1, and --smallest has no such case")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' deprecations
        done = report(as_typed(sys.argv[1:]), repeats, cases, Console())
    out = args.out or (None if args.smallest else ROOT / "benchmarks/results/speed.json")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(out, done)
        files.write_atomically(out.with_suffix(".md"), markdown(done).encode())


if __name__ == "__main__":
    main()
