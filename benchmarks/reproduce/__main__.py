"""Trains and tests on real data under published settings, together with baselines on the same episodes.

    python -m benchmarks.reproduce omniglot --data FOLDER                       about 45 minutes on 2 cores
    python -m benchmarks.reproduce omniglot --data FOLDER --family gradient     about 2 hours; --budget long: days
    python -m benchmarks.reproduce cifar_fs --data FOLDER --family metric       about 70 minutes; --budget long: days
    python -m benchmarks.reproduce sinusoid                                     about 2 minutes
    python -m benchmarks.reproduce sinusoid --family gradient                   about half an hour

Each row (benchmarks/reproduce/rows/) trains once in runs/reproduce and is tested under its own protocol. Rows are
tested on the same episodes, so their differences are paired. After every row the results are written to
benchmarks/results: a JSON file with everything, and a Markdown table made from it. A row with an existing result is
skipped, and an interrupted row continues.
"""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

import quickstudy as qs
from benchmarks.provenance import IMAGES, RESULTS
from benchmarks.reproduce.measuring import measure, plain_settings
from benchmarks.reproduce.pages import table
from benchmarks.reproduce.pairing import differences
from benchmarks.reproduce.tables import TABLES
from quickstudy.base import files
from quickstudy.base.machine import machine


def main(
    what: str,
    /,
    data: str | None = None,
    family: Literal["foundation", "gradient", "metric", "memory"] = "foundation",
    budget: Literal["short", "long"] = "short",
    only: str = "*",
    folder: Path = Path("runs/reproduce"),
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Reproduce a table. A row with an existing result is skipped; an interrupted row continues from its checkpoint.

    Args:
        what: omniglot, sinusoid or cifar_fs.
        data: folder of the data set.
        family: which learners.
        budget: short (the same few minutes for every learner) or long (the papers' own settings and three seeds).
        only: rows whose names match this pattern, such as 'maml-*'.
        folder: folder of the runs.
        device: device for training and tests; cuda for long rows.
    """
    if (what, family) not in TABLES:
        sys.exit(f"there are {', '.join(map(' --family '.join, TABLES))}; got {what} --family {family}")
    name = what if family == "foundation" else f"{what}-{family}" + ("-long" if budget == "long" else "")
    rows, baselines = TABLES[what, family](budget == "long")
    old = files.read_json(RESULTS / f"{name}.json")["rows"] if (RESULTS / f"{name}.json").exists() else []
    options = f"{' --data DATA' if data else ''}{f' --family {family}' if family != 'foundation' else ''}"
    result = {
        "name": name,
        "command": f"python -m benchmarks.reproduce {what}{options}{' --budget long' if budget == 'long' else ''}",
        "machine": machine(),
    }
    chosen = [row for row in [*rows, *baselines] if fnmatch.fnmatch(row.name, only)]
    # Existing results stay in the table when only other rows are requested.
    now = {r.name: plain_settings(r) for r in [*rows, *baselines] if r not in chosen}
    others = [row for row in old if row["name"] in now and row.get("settings", {}) in ({}, now[row["name"]])]
    order = [row.name for row in [*rows, *baselines]]
    done = list(others)
    for row in measure(chosen, what, data, folder / name, old, device):
        done = sorted([*done, row], key=lambda r: order.index(r["name"]))
        write(result | {"rows": done, "paired": differences(done, baselines, family)})
    print(f"written: benchmarks/results/{name}.json and .md")


def write(result: dict[str, Any]) -> None:
    """Write the result file, the page made from it, and the figure of MAML's layers."""
    files.write_json(RESULTS / f"{result['name']}.json", result)
    (RESULTS / f"{result['name']}.md").write_text(table(result), encoding="utf-8")
    for row in result["rows"]:
        if row["name"] == "maml-1shot" and row.get("movement"):
            qs.Movement.from_dict(row["movement"]).plot(IMAGES / "layers.png")


if __name__ == "__main__":
    tyro.cli(main)
