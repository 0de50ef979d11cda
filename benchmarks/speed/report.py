"""The report of the speed benchmark as plain values: its beginning, what an earlier run of it may give, its files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit
from benchmarks.speed import cases, figures, pages, peers, race, work
from quickstudy.base import files
from quickstudy.base.machine import machine

Report = dict[str, Any]  # plain values, which are written to speed.json
INNER_STEPS = "inner-steps"  # name of the part about inner steps, for --again


def fresh(command: str, device: str, peers_built: list[str]) -> Report:
    return {
        "command": command,
        "seed": cases.SEED,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(" ", "seconds"),
        "machine": machine(),
        "device": device,
        "versions": peers.versions(),
        "peers": peers_built,
        "matrix_rate": work.matrix_rate(device),
        "tolerance": race.TOLERANCE,
        "legend": pages.LEGEND,
        "cases": [],
        "inner_steps": None,
        "growth": [],
    }


def origin(report: Report) -> Report:
    """The command and the commit of a run; each part of a report stores those of the run that measured it."""
    return {key: report[key] for key in ("command", "commit")}


def resumed(done: Report, out: Path, again: Sequence[str] = ()) -> Report:
    """The report `done` with the results of an earlier run, if that measured the same code on the same machine.

    Where some parts are to be measured `again`, the code may differ: the page names the run of each part.
    """
    if not out.exists():
        return done
    before = files.read_json(out)
    same = all(done[key] == before.get(key) for key in ("machine", "device", "versions"))
    clean = done["commit"] == before["commit"] and "+" not in done["commit"] and done["commit"] != "unknown"
    if not same or not (again or clean):
        return done
    cases = [origin(before) | case for case in before["cases"] if case["name"] not in again]
    steps = before["inner_steps"] and origin(before) | before["inner_steps"]
    kept = {"cases": cases, "inner_steps": None if INNER_STEPS in again else steps}
    return done | kept | {"matrix_rate": before["matrix_rate"]}


def save(done: Report, out: Path) -> None:
    """Write the numbers as JSON to `out`, and a page and a plot beside it."""
    files.write_json(out, done)
    files.write_atomically(out.with_suffix(".md"), pages.markdown(done).encode())
    files.write_atomically(out.with_suffix(".svg"), figures.svg(done))
