"""Support sets and inputs from files, as a learner's reader takes them, and answers written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quickstudy.base import files
from quickstudy.tasks.tabular import columns
from quickstudy.trained.readers.known import reader_of
from quickstudy.trained.readers.reader import Preprocess


def support_of(preprocess: Preprocess, path: Path, classification: bool) -> tuple[Any, Any]:
    """Inputs and answers of a support set from a file or a folder. Raises DataError where they cannot be read."""
    return reader_of(preprocess).support(preprocess, path, classification)


def inputs_of(preprocess: Preprocess, path: Path) -> tuple[Any, list[str]]:
    """Inputs to predict for, from a file or a folder, and a name for each. Raises DataError for unreadable ones."""
    return reader_of(preprocess).inputs(preprocess, path)


def write_answers(path: Path, read: Sequence[tuple[Any, list[str]]], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV of inputs and answers: the columns of the table, else the inputs' names; predicted; probability.

    `read` holds inputs and names as `inputs_of` returns them. Raises RunError where the file cannot be written.
    """
    pandas = columns.need_pandas()
    asked = [x if isinstance(x, pandas.DataFrame) else pandas.DataFrame({"input": names}) for x, names in read]
    frame = pandas.concat(asked, ignore_index=True)
    predicted = {"predicted": [a["label"] for a in answers], "probability": [a["probability"] for a in answers]}
    files.write_atomically(path, frame.assign(**predicted).dropna(axis=1, how="all").to_csv(index=False).encode())
