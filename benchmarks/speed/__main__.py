"""Measures the time and memory of one meta-gradient: Quickstudy, its peers, and plain training as the floor.

    python -m benchmarks.speed [--cases NAME...] [--resume] [--again NAME...] [--device cuda] [--smallest] [--out FILE]

Every contestant computes the mean meta-loss of MAML over a batch of tasks and its exact second-order gradient, from
the same weights and data (cases.py, peers.py). race.py checks and times the contestants, memory.py measures each in a
process of its own, and growth.py varies the size of one case. Takes about an hour on 2 quiet cores; nothing else should
run. Every finished case is saved, and `--resume` continues from there. To install the peers: pip install
'higher==0.2.1' 'torchopt==0.7.3'; learn2learn is built from its archive into the user's cache (built.py), but not for
`--smallest`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks.provenance import RESULTS, ROOT
from benchmarks.speed import built, cases, growth, memory, pages, race
from benchmarks.speed.report import INNER_STEPS, Report, fresh, origin, resumed, save


class Plan(NamedTuple):
    """The measurements to make."""

    cases: tuple[cases.Case, ...]
    growth: growth.Growth
    inner_steps: tuple[cases.Case, ...]  # one case with few and one with many inner steps
    stepping: Sequence[tuple[str, str]]  # (library, way) whose memory is measured on them


FULL = Plan(cases.CASES, growth.GROWTH, cases.INNER_STEPS, memory.STEPPING)
SMALLEST = Plan(cases.SMALLEST, growth.SMALLEST_GROWTH, cases.SMALLEST_INNER_STEPS, memory.STEPPING[2:3])


def measure(plan: Plan, done: Report, args: argparse.Namespace, console: Console) -> Iterator[Report]:
    """Yield the report after each case; results that `done` already contains are kept."""
    wanted = [case for case in plan.cases if not args.cases or case.name in args.cases]
    order = {case.name: i for i, case in enumerate(plan.cases)}
    further = [] if args.cases else growth.further(plan.growth, plan.cases)
    for case in (*wanted, *further):
        if case.name not in {known["name"] for known in done["cases"]}:
            console.print(f"\n[bold]{case.name}[/bold]: {case.description}")
            found = race.run(case, args.repeats, args.device, done["matrix_rate"]) | {"shown": case in wanted}
            found |= origin(done)
            done["cases"] = sorted([*done["cases"], found], key=lambda one: order.get(one["name"], len(order)))
            console.print(pages.terminal(found), *pages.notes(found), sep="\n")
            yield done
    if not args.cases and not done["inner_steps"]:
        console.print("\n[bold]Memory of inner steps[/bold]")
        done["inner_steps"] = found = memory.inner_steps(*plan.inner_steps, plan.stepping, args.device)
        able = {(row["name"], row["way"]): row for row in found["rows"] if "problem" not in row}
        for key, seconds in race.medians(plan.inner_steps[1], able, args.repeats, args.device).items():
            able[key]["seconds"] = seconds
        found |= origin(done)
        console.print(*pages.stepping(done["inner_steps"]), sep="\n", markup=False)
    done["growth"] = growth.curves(plan.growth, {case["name"]: case for case in done["cases"]})
    verdict = pages.verdict([case for case in done["cases"] if case["shown"]])
    console.print("", pages.LEGEND, verdict, sep="\n")
    yield done


def as_typed(words: list[str]) -> str:
    """The command as typed, with paths relative to the repository, and only the name of a file elsewhere."""
    start = ["python", "-m", "benchmarks.speed"]
    return shlex.join(start + [re.sub(r"^(--out=)?/.*/", r"\1", word.replace(f"{ROOT}/", "")) for word in words])


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = [case.name for case in cases.CASES]
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=named, help="only these: " + ", ".join(named))
    parser.add_argument("--resume", action="store_true", help="keep the cases that were saved by the same commit")
    parser.add_argument(
        "--again",
        nargs="+",
        metavar="NAME",
        choices=[*named, INNER_STEPS],
        default=[],
        help=f"measure these (or {INNER_STEPS}) anew and keep the others, whichever commit they were measured at",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--smallest", action="store_true", help="seconds only, to see it work; saves only with --out")
    parser.add_argument("--repeats", type=int, help="rounds per case (default: about 15 s of them)")
    parser.add_argument("--out", type=Path, help="JSON file; .md and .svg beside it (benchmarks/results/speed.json)")
    args = parser.parse_args()
    if (args.repeats is not None and args.repeats < 1) or (args.smallest and args.cases):
        parser.error("--repeats must be at least 1, and --smallest measures its own cases")
    args.repeats = args.repeats or (2 if args.smallest else None)
    args.out = args.out or (None if args.smallest else RESULTS / "speed.json")
    return args


def main() -> None:
    args, console = read_arguments(), Console()
    peer = "learn2learn is not built for --smallest." if args.smallest else built.build()
    console.print(peer)
    # The compile cache starts empty. Later processes and the race reuse what the first process compiled.
    with tempfile.TemporaryDirectory() as compiled, warnings.catch_warnings():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        warnings.simplefilter("ignore")  # deprecation warnings of the peers
        done = fresh(as_typed(sys.argv[1:]), args.device, [peer])
        done = resumed(done, args.out, args.again) if (args.resume or args.again) and args.out else done
        for report in measure(SMALLEST if args.smallest else FULL, done, args, console):
            if args.out:
                save(report, args.out)


if __name__ == "__main__":
    main()
