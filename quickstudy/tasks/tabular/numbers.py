"""Reads rows of numbers from CSV files, for adapting and querying models that were trained on such rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quickstudy.errors import DataError


class Row(NamedTuple):
    """One row of a file, and where an editor shows it: headers and blank lines count."""

    line: int  # of the file, from 1
    cells: list[str]


def read_support(path: Path, classification: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, d] and answers from a CSV whose last column is the answer: names [n], or values [n, 1].

    Raises DataError where the file cannot be read or an input is not a number.
    """
    table = _read(path)
    if any(len(row.cells) < 2 for row in table):
        raise DataError(f"{str(path)!r} needs at least two columns: the inputs, and the answer last.")
    x = _numbers(path, [row._replace(cells=row.cells[:-1]) for row in table])
    if classification:
        return x, np.array([row.cells[-1] for row in table])
    return x, _numbers(path, [row._replace(cells=row.cells[-1:]) for row in table])


def read_inputs(path: Path) -> tuple[np.ndarray, list[str]]:
    """Inputs [n, d] from a CSV, and a name for each row: file and line. Raises DataError as `read_support`."""
    table = _read(path)
    return _numbers(path, table), [f"{path}:{row.line}" for row in table]


def _read(path: Path) -> list[Row]:
    """The rows with numbers: blank lines and a header are left out."""
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}. This predictor reads rows of numbers from a CSV file.")
    table = _rows(path)
    if table and not any(map(_is_number, table[0].cells)):
        table = table[1:]  # a header
    if not table:
        raise DataError(f"{str(path)!r} holds no rows.")
    first = table[0]
    if uneven := next((row for row in table if len(row.cells) != len(first.cells)), None):
        raise DataError(
            f"line {uneven.line} of {str(path)!r} has {len(uneven.cells)} columns, line {first.line} has "
            f"{len(first.cells)}. Give all rows the same columns."
        )
    return table


def _rows(path: Path) -> list[Row]:
    found, line = [], 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
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
                raise DataError(f"line {row.line} of {str(path)!r} has {value!r} where a number is expected.")
    return np.array([row.cells for row in table], dtype=np.float32)
