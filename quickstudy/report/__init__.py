"""Run folders to one HTML page each, and to one that compares them: self-contained files that need no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from quickstudy import files
from quickstudy.comparing import LearnerComparison
from quickstudy.errors import RunError
from quickstudy.report.comparison import comparison_page
from quickstudy.report.facts import read_run
from quickstudy.report.learners import learners_page
from quickstudy.report.page import run_page

__all__ = ["write_comparison", "write_report"]


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of a run, or of several and their comparison; the path of the page.

    One run is reported in RUN/report.html, several are compared in report.html beside the first of them, each with a
    report of its own; `out` is another place for the page that is returned.

    Raises RunError for what is not a run folder, FileFormatError for a broken file in one.
    """
    read = [read_run(folder) for folder in _distinct(runs)]
    if len(read) == 1:
        return _write(out or read[0].folder / "report.html", run_page(read[0]))
    reports = [_write(run.folder / "report.html", run_page(run)) for run in read]
    page = out or Path(os.path.normpath(read[0].folder / "..")) / "report.html"
    if page.resolve() in [report.resolve() for report in reports]:
        raise RunError(
            f"the comparison would replace the report of one of its runs, {str(page)!r}. Choose another place."
        )
    return _write(page, comparison_page(read, reports, page))


def write_comparison(found: LearnerComparison, folder: Path) -> Path:
    """Write comparison.html, the page of a comparison of learners, into its folder; the path of the page."""
    return _write(folder / "comparison.html", learners_page(found))


def _distinct(runs: Sequence[Path]) -> list[Path]:
    """The folders, each once. `runs/*` also gives the comparison that was written there before: it is passed over."""
    found = {Path(run).resolve(): Path(run) for run in runs if Path(run).name != "report.html"}
    if not found:
        raise RunError("no run was given. Name at least one run folder.")
    return list(found.values())


def _write(path: Path, page: str) -> Path:
    files.write_atomically(path, page.encode())
    return path
