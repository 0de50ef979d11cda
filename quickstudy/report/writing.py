"""Writes run folders as HTML reports, one page for each run and one that compares them. Pages need no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quickstudy.base import files
from quickstudy.errors import RunError
from quickstudy.experiments.comparison import LearnerComparison
from quickstudy.experiments.run import Run, read_run
from quickstudy.report.exports import folder_of, write_pictures, write_tables
from quickstudy.report.one_run import run_values
from quickstudy.report.render import render
from quickstudy.report.several_learners import learners_values
from quickstudy.report.several_runs import comparison_values, distinct_names

__all__ = ["folder_of", "write_comparison", "write_report"]


def write_report(runs: Sequence[Path], out: Path | None = None, *, png: bool = False, csv: bool = False) -> Path:
    """Write the report of one run, or the reports of several runs and their comparison; returns the path of the page.

    The report of a run is RUN/report.html. For several runs the comparison is the page that is returned, and it is
    written to report.html beside the first run folder. `out` is another path for the returned page. `png` also writes
    the plots of each page as pictures, and `csv` its numbers as tables, into a folder beside the page (`folder_of`).

    Raises RunError where a folder is not a run folder, where none is given, or where the comparison would replace the
    report of a run. Raises FileFormatError where a file of a run is broken.
    """
    read, extras = [read_run(folder) for folder in _distinct(runs)], (png, csv)
    if len(read) == 1:
        return _write_run(out or read[0].folder / "report.html", read[0], *extras)
    reports = [run.folder / "report.html" for run in read]
    page = out or Path(os.path.normpath(read[0].folder / "..")) / "report.html"
    if page.resolve() in [report.resolve() for report in reports]:
        raise RunError(
            f"the comparison would replace the report of one of its runs, {str(page)!r}. Choose another place."
        )
    for path, run in zip(reports, read, strict=True):
        _write_run(path, run, *extras)
    return _write(page, "comparison", comparison_values(read, reports, page), read, *extras)


def write_comparison(comparison: LearnerComparison, folder: Path, *, png: bool = False, csv: bool = False) -> Path:
    """Write comparison.html, the page of a comparison of learners, into `folder`; returns the path of the page.

    `png` and `csv` work as in `write_report`.
    """
    return _write(folder / "comparison.html", "learners", learners_values(comparison), [], png, csv)


def _distinct(runs: Sequence[Path]) -> list[Path]:
    """The folders without duplicates. `runs/*` also matches an earlier comparison and its files: these are skipped."""
    before = ("report.html", folder_of(Path("report.html")).name)
    folders = {Path(run).resolve(): Path(run) for run in runs if Path(run).name not in before}
    if not folders:
        raise RunError("no run was given. Name at least one run folder.")
    return list(folders.values())


def _write_run(path: Path, run: Run, png: bool, csv: bool) -> Path:
    return _write(path, "run", run_values(run), [run], png, csv)


def _write(path: Path, kind: str, values: dict[str, Any], runs: Sequence[Run], png: bool, csv: bool) -> Path:
    files.write_atomically(path, render(kind, **values).encode())
    if png:
        write_pictures(values, runs, folder_of(path))
    if csv:
        write_tables(values, dict(zip(distinct_names(runs) if runs else (), runs, strict=True)), folder_of(path))
    return path
