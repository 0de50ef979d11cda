"""Answers written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quickstudy.base import files
from quickstudy.tasks.tabular import columns


def write_answers(path: Path, read: Sequence[tuple[Any, list[str]]], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV of inputs and answers: the columns of the table, else the inputs' names; predicted; probability.

    `read` holds inputs and names as a reader's `inputs` returns them. Raises RunError where the file cannot be written.
    """
    pandas = columns.need_pandas()
    asked = [x if isinstance(x, pandas.DataFrame) else pandas.DataFrame({"input": names}) for x, names in read]
    frame = pandas.concat(asked, ignore_index=True)
    predicted = {"predicted": [a["label"] for a in answers], "probability": [a["probability"] for a in answers]}
    files.write_atomically(path, frame.assign(**predicted).dropna(axis=1, how="all").to_csv(index=False).encode())
