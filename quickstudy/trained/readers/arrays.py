"""Numbers that need no preparation: arrays in memory, one or several in a dict or tuple; CSV files of rows on disk."""

from __future__ import annotations

from pathlib import Path

from quickstudy.errors import DataError
from quickstudy.tasks.tabular import numbers
from quickstudy.trained.readers.reader import Asked, Preprocess, Reader, Shown, as_given, unchanged


def _support(preprocess: Preprocess, path: Path, classification: bool) -> Shown:
    if not path.is_file():
        raise DataError(
            f"{str(path)!r} is not a file: this run was not trained on images, give SUPPORT as a CSV file (inputs..., "
            "answer last)."
        )
    x, y, notes = numbers.read_support(path, classification)
    return Shown(x, y, notes)


def _inputs(preprocess: Preprocess, path: Path) -> Asked:
    return Asked(*numbers.read_inputs(path))


ARRAYS = Reader(_support, _inputs, as_given, unchanged, unchanged)
