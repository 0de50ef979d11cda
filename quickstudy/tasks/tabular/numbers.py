"""Reads rows of numbers from CSV files, for adapting and querying models that were trained on such rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from quickstudy.errors import DataError


def read_support(path: Path, classification: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, d] and answers from a CSV whose last column is the answer: names [n], or values [n, 1].

    Raises DataError where the file cannot be read or an input is not a number.
    """
    table = _read(path)
    if any(len(row) < 2 for row in table):
        raise DataError(f"{str(path)!r} needs at least two columns: the inputs, and the answer last.")
    x = _numbers(path, [row[:-1] for row in table])
    return x, np.array([row[-1] for row in table]) if classification else _numbers(path, [row[-1:] for row in table])


def read_inputs(path: Path) -> tuple[np.ndarray, list[str]]:
    """Inputs [n, d] from a CSV, and a name for each row: file and row number. Raises DataError as `read_support`."""
    table = _read(path)
    return _numbers(path, table), [f"{path}:{i + 1}" for i in range(len(table))]


def _read(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}. This predictor reads rows of numbers from a CSV file.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} is not a CSV text file in UTF-8: {error}.") from error
    if table and not any(_is_number(value) for value in table[0]):
        table = table[1:]  # a header
    if not table:
        raise DataError(f"{str(path)!r} holds no rows.")
    if uneven := next((i for i, row in enumerate(table) if len(row) != len(table[0])), None):
        raise DataError(
            f"row {uneven + 1} of {str(path)!r} has {len(table[uneven])} columns, the first has {len(table[0])}."
        )
    return table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(path: Path, table: list[list[str]]) -> np.ndarray:
    for i, row in enumerate(table):
        for value in row:
            if not _is_number(value):
                raise DataError(f"row {i + 1} of {str(path)!r} has {value!r} where a number is expected.")
    return np.array(table, dtype=np.float32)
