"""Answers written to a file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quickstudy.base import files
from quickstudy.tasks.tabular.frames import need_pandas
from quickstudy.trained.readers.reader import Asked


def write_answers(path: Path, read: Sequence[Asked], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV of inputs and answers: the user's own columns in their order, else the inputs' names; predicted; and
    for classes probability.

    Where a column of the user has such a name, a number is added to ours. Raises RunError where the file cannot be
    written.
    """
    pandas = need_pandas()
    asked = [pandas.DataFrame({"input": one.names}) if one.rows is None else one.rows for one in read]
    frame = pandas.concat([rows.astype(object) for rows in asked], ignore_index=True)  # whole numbers stay whole
    for ours, key in (("predicted", "label"), ("probability", "probability")):
        values = [answer[key] for answer in answers]
        if any(value is not None for value in values) or ours == "predicted":
            frame[_free(ours, list(frame.columns))] = values
    files.write_atomically(path, frame.to_csv(index=False).encode())


def _free(name: str, taken: Sequence[str]) -> str:
    names = itertools.chain([name], (f"{name} {i}" for i in itertools.count(2)))
    return next(one for one in names if one not in taken)
