"""Where results are written, and which code measured them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"


def commit() -> str:
    """The current commit, with "+dirty" where code has uncommitted changes; results and docs do not count as code."""
    current = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return f"{current}+dirty" if current and changed else current or "unknown"


def _git(*words: str) -> str:
    """The output of a git command; empty where git is missing."""
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


COMMIT = commit()  # read at the start, because the code that runs is the code of that moment
