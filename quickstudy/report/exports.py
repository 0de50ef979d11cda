"""Writes the contents of a page as files to use elsewhere: its plots as pictures, its numbers as CSV tables.

The files are in a folder beside the page: report-files beside report.html. Tables have one line per number and the run
in the first column, so one run and a comparison of several give the same tables. Accuracies and other shares are from 0
to 1. Intervals are at 95 %: half the width, and the two ends, which need not be symmetric. A value that does not exist,
such as the interval of one episode, is empty.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quickstudy.base import files
from quickstudy.base.figures import Picture, save, with_legend
from quickstudy.errors import ProtocolError
from quickstudy.evaluation.measures.confusion import READABLE
from quickstudy.evaluation.measures.movement import KINDS as MOVED
from quickstudy.evaluation.measures.probabilities import HEADINGS
from quickstudy.evaluation.score import Difference, Score, compare
from quickstudy.experiments.run import Run
from quickstudy.report.sections.section import Section

Rows = Iterator[dict[str, Any]]


def folder_of(page: Path) -> Path:
    """The folder for the files of a page: report-files for report.html."""
    return page.with_name(f"{page.stem}-files")


# --- pictures --------------------------------------------------------------------------------------------------------


def write_pictures(values: Mapping[str, Any], runs: Sequence[Run], folder: Path) -> None:
    """Write the plots of a page into `folder` as .png files, named after their headings; `values` are the page's."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in _pictures(values):
        save(folder / f"{_file_name(one.heading)}.png", with_legend(one.draw, one.legend))
    confusion = runs[0].answers.confusion if len(runs) == 1 and runs[0].answers else None
    if confusion and len(confusion.names) <= READABLE:  # on the page this matrix is a table, not a plot
        confusion.plot(folder / "what-is-taken-for-what.png")


def _pictures(values: Mapping[str, Any]) -> Iterator[Picture]:
    for value in values.values():
        for one in value if isinstance(value, list) else [value.picture if isinstance(value, Section) else value]:
            if isinstance(one, Picture):
                yield one
    for episode in values.get("episodes", ()):
        if episode["kind"] == "fit":
            yield Picture(f"Test task {episode['number']}", episode["draw"], "", episode["legend"], "")


def _file_name(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


# --- tables ----------------------------------------------------------------------------------------------------------


def write_tables(values: Mapping[str, Any], runs: Mapping[str, Run], folder: Path) -> None:
    """Write the numbers of a page into `folder` as .csv files; empty tables are left out. `runs` is by run name."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        name: [{"run": run_name} | row for run_name, run in runs.items() for row in rows_of(run)]
        for name, rows_of in TABLES.items()
    }
    tables |= {"ranking": list(_ranking(values)), "learners": list(_learners(values))}
    for name, rows in tables.items():
        if rows:
            files.write_atomically(folder / f"{name}.csv", _as_csv(rows).encode())


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def _scores(run: Run) -> Rows:
    for score in run.evaluation.scores if run.evaluation else ():
        yield _measured(score)
        for control in score.controls.values():
            yield _measured(control) | _difference(score, control)


def _ranking(values: Mapping[str, Any]) -> Rows:
    """Each run against the best run under the same protocol; only a comparison has such groups."""
    for number, group in enumerate(values.get("groups", ()), 1):
        best = group["rows"][0]["score"]
        for row in group["rows"]:
            away = compare(row["score"], best)
            yield {
                "run": row["name"],
                "group": number,
                **_measured(row["score"]),
                "minus_best": away.mean,
                **_ends(away),
            }


def _learners(values: Mapping[str, Any]) -> Rows:
    """One line for each training of each learner; only a comparison of learners has them."""
    costs = ("adapt_seconds", "predict_seconds", "bytes", "calibration_error")
    for entry in values.get("entries", ()):
        for trial in entry.trials:
            trained = {name: getattr(trial, name) for name in ("seed", "iterations", "seconds", "wall_seconds")}
            spent = {name: getattr(entry, name) for name in costs}
            measured = _measured(trial.score)
            measured["test_seed"] = measured.pop("seed")  # of the test episodes, which is not that of the training
            yield {"name": entry.name, "meta": entry.meta, **trained, **spent, **measured}


def _measured(score: Score) -> dict[str, Any]:
    ends = {name: getattr(score, name) for name in ("mean", "interval", "low", "high")}
    return ends | {"trainings": len(score.each)} | score.protocol.to_dict()


def _difference(score: Score, other: Score) -> dict[str, Any]:
    """The paired difference between two scores; empty where their protocols cannot be compared."""
    try:
        away = score.against(other)
    except ProtocolError:
        return {}
    return {"score_minus_control": away.mean, **_ends(away)}


def _ends(away: Difference) -> dict[str, Any]:
    """The interval of a paired difference, its p-value, and whether it is decided."""
    ends = {f"difference_{name}": getattr(away, name) for name in ("interval", "low", "high")}
    return ends | {"p": away.p, "decided": away.decided}


def _per_task(run: Run) -> Rows:
    for score in run.evaluation.scores if run.evaluation else ():
        for one in (score, *score.controls.values()):
            p = one.protocol
            what = {"metric": p.metric, "control": p.control, "transductive": p.transductive}
            for i, value in enumerate(one.values.tolist()):
                yield {"episode": i, "task": score.tasks[i] if score.tasks else None, **what, "value": value}


def _curve(run: Run) -> Rows:
    yield from run.metrics


def _steps(run: Run) -> Rows:
    for point in run.evaluation.steps if run.evaluation else ():
        yield point._asdict()


def _calibration(run: Run) -> Rows:
    if answers := run.answers:
        yield {"what": "expected calibration error", "mean": answers.ece}
        yield {"what": "expected calibration error, debiased", "mean": answers.debiased_ece}
        for kind, heading in HEADINGS.items():
            yield {"what": heading, **getattr(answers, kind).to_dict()}


def _reliability(run: Run) -> Rows:
    for one in run.answers.bins if run.answers else ():
        yield vars(one)


def _confusion(run: Run) -> Rows:
    for one in run.answers.confusion.pairs if run.answers and run.answers.confusion else ():
        yield vars(one) | {"rate": one.rate}


def _instances(run: Run) -> Rows:
    if measured := run.instances:
        for instance, amount in zip(measured.instances, measured.amounts, strict=True):
            yield {"instance": instance, **amount.to_dict()}


def _movement(run: Run) -> Rows:
    for layer in run.movement.layers if run.movement else ():
        for kind in MOVED:
            if amount := getattr(layer, kind):
                yield {"layer": layer.name, "what": kind, **amount.to_dict()}


def _coverage(run: Run) -> Rows:
    for size in run.calibration.sizes if run.calibration else ():
        for level, share in zip(run.calibration.levels, size.coverage, strict=True):  # type: ignore[union-attr]
            yield {"support_points": size.points, "level": level, "coverage": share.mean} | {
                name: getattr(share, name) for name in ("interval", "low", "high")
            }


TABLES: dict[str, Callable[[Run], Rows]] = {
    "scores": _scores,
    "scores-per-task": _per_task,
    "learning-curve": _curve,
    "inner-steps": _steps,
    "calibration": _calibration,
    "reliability": _reliability,
    "confusion": _confusion,
    "interval-coverage": _coverage,
    "instances": _instances,
    "movement": _movement,
}
