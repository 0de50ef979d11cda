"""Neural processes on sinusoids and on growth and concentration curves: are their 90 % intervals right on unseen tasks?

    python -m benchmarks.neural_processes --data DATA                      about 8 minutes of one core
    python -m benchmarks.neural_processes --data DATA --omniglot-run RUN   also draws the picture of Omniglot's tasks

Runs are kept in runs/neural-processes. Results that exist there or in benchmarks/results are reused, and interrupted
trainings continue. Writes benchmarks/results/neural-processes.json and .md, and the pictures of
benchmarks/neural_processes/figures.py.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.neural_processes import figures, pages
from benchmarks.neural_processes.measure import (
    CURVES,
    EPISODES,
    LEVELS,
    ROUNDS,
    SPLITS,
    WAVES,
    kept,
    measure_curves,
    measure_wave,
)
from benchmarks.neural_processes.subjects import TABLES
from benchmarks.provenance import RESULTS
from quickstudy.base import files
from quickstudy.base.machine import machine

NAME = "neural-processes"


def main(
    data: str,
    folder: Path = Path("runs") / NAME,
    omniglot_run: Path | None = None,
) -> None:
    """Train, measure, write the tables and draw the pictures.

    Args:
        data: folder of the data sets, which contains grouped_tabular.
        folder: folder of the runs.
        omniglot_run: a trained run with a task embedding, such as protonet or cnaps; its embedding is drawn too.
    """
    torch.set_num_threads(1)
    path = RESULTS / f"{NAME}.json"
    old = files.read_json(path) if path.exists() else {"sinusoid": {}, "curves": {}}
    result: dict[str, Any] = {
        "name": NAME,
        "command": f"python -m benchmarks.{NAME.replace('-', '_')} --data DATA",
        "machine": machine(),
        "sinusoid": dict(old["sinusoid"]),  # what stands stays, until its row is reached
        "curves": dict(old["curves"]),
    }
    for wave in WAVES:
        settings = {k: v for k, v in asdict(wave).items() if k != "remark"} | {"episodes": EPISODES, "levels": LEVELS}
        run, known = folder / wave.name, old["sinusoid"].get(wave.name)
        made = kept(run, settings, known, lambda wave=wave, run=run: measure_wave(wave, run))
        result["sinusoid"][wave.name] = made | {"remark": wave.remark}
        write(result)
        print(pages.in_short(wave.name, made), flush=True)
    for table, learner in CURVES:
        name = f"{table.lower()}-{learner}"
        settings = {"learner": learner, **asdict(TABLES[table]), "rounds": ROUNDS, "splits": SPLITS, "levels": LEVELS}
        run, known = folder / name, old["curves"].get(name)
        made = kept(run, settings, known, lambda t=table, n=learner, run=run: measure_curves(t, n, data, run))
        result["curves"][name] = made
        write(result)
        print(pages.in_short(name, made), flush=True)
    figures.draw(folder, data, omniglot_run)
    print(f"written: benchmarks/results/{NAME}.json and .md")


def write(result: dict[str, Any]) -> None:
    """Write the result file and the page made from it."""
    files.write_json(RESULTS / f"{NAME}.json", result)
    (RESULTS / f"{NAME}.md").write_text(pages.page(result), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
