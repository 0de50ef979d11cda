"""Reads rows of numbers from CSV files, for adapting and querying models that were trained on such rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quickstudy.base.words import plural
from quickstudy.errors import DataError
from quickstudy.tasks.tabular.frames import need_pandas, separator


class Row(NamedTuple):
    """One row of a file, and where an editor shows it: headers and blank lines count."""

    line: int  # of the file, from 1
    cells: list[str]


def read_support(path: Path, classification: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs [n, d] and answers from a CSV whose last column is the answer: names [n], or values [n, 1]; and notes.

    Names are text as it is written; rows without an answer are left out, and a note counts them. Raises DataError where
    the file cannot be read, an input is not a number or no row has an answer.
    """
    _, whole = _read(path)
    if any(len(row.cells) < 2 for row in whole):
        raise DataError(f"{str(path)!r} needs at least two columns: the inputs, and the answer last.")
    table = [row for row in whole if row.cells[-1].strip()]
    if not table:
        raise DataError(f"no row of {str(path)!r} has an answer, in the last column: there is nothing to learn from.")
    lost = len(whole) - len(table)
    notes = [f"{plural(lost, 'row')} of {path} without an answer left out"] if lost else []
    x = _numbers(path, [row._replace(cells=row.cells[:-1]) for row in table])
    if classification:
        return x, np.array([row.cells[-1] for row in table]), notes
    return x, _numbers(path, [row._replace(cells=row.cells[-1:]) for row in table]), notes


def read_inputs(path: Path) -> tuple[np.ndarray, list[str], Any]:
    """Inputs [n, d] from a CSV, a name for each row (file and line), and the rows as a DataFrame where pandas is there.

    Raises DataError as `read_support`.
    """
    header, table = _read(path)
    names = [f"{path}:{row.line}" for row in table]
    return _numbers(path, table), names, _as_frame(header, table)


def _as_frame(header: list[str] | None, table: list[Row]) -> Any:
    try:
        pandas = need_pandas()
    except DataError:  # only the tables of users need it
        return None
    named = header or [f"column {i + 1}" for i in range(len(table[0].cells))]
    return pandas.DataFrame([row.cells for row in table], columns=named)


def _read(path: Path) -> tuple[list[str] | None, list[Row]]:
    """The header, None without one, and the rows with numbers, without blank lines."""
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}. This predictor reads rows of numbers from a CSV file.")
    table, header = _rows(path), None
    if table and not any(map(_is_number, table[0].cells)):
        header, table = table[0].cells, table[1:]
    if not table:
        raise DataError(f"{str(path)!r} holds no rows.")
    first = table[0]
    if uneven := next((row for row in table if len(row.cells) != len(first.cells)), None):
        raise DataError(
            f"line {uneven.line} of {str(path)!r} has {len(uneven.cells)} columns, line {first.line} has "
            f"{len(first.cells)}. Give all rows the same columns."
        )
    return header if header and len(header) == len(first.cells) else None, table


def _rows(path: Path) -> list[Row]:
    found, line = [], 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=separator(path))
            for cells in reader:
                found.append(Row(line, cells))
                line = reader.line_num + 1  # a row with a line break in quotes takes several lines
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} is not a CSV text file in UTF-8: {error}.") from error
    return [row for row in found if row.cells]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(path: Path, table: list[Row]) -> np.ndarray:
    for row in table:
        for value in row.cells:
            if not _is_number(value):
                raise DataError(
                    f"line {row.line} of {str(path)!r} has {value!r} where a number, such as 1234.5, is expected."
                )
    return np.array([row.cells for row in table], dtype=np.float32)
