"""Tables as DataFrames: from files and from memory, with their cells as they were written."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quickstudy.base import memory
from quickstudy.errors import DataError, suggest
from quickstudy.tasks.splits import SPLITS

EXTENSIONS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
BYTES = 12  # peak memory for each byte of a file while its cells are read and become numbers
OF_PANDAS: dict[str, Any] = {"na_values": ["?"], "low_memory": False}  # how earlier versions read text files
LISTED = 5  # names listed in one message
SPLIT = "__split__"  # the column of joined tables that says which split a row came from


def need_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise DataError("tables need pandas: pip install 'quickstudy[tables]'.") from error
    return pandas


def as_frame(rows: Any) -> Any:
    """Rows as a DataFrame: from a DataFrame, a dict of columns, or a list of dicts. Raises DataError for others."""
    pandas = need_pandas()
    if isinstance(rows, pandas.DataFrame):
        return tidied(rows)
    if isinstance(rows, Mapping) or (isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows)):
        return tidied(pandas.DataFrame(rows))
    raise DataError(
        f"this learner reads rows of a table: a DataFrame, or a list of dicts from column to value; got "
        f"{type(rows).__name__}."
    )


def tidied(frame: Any) -> Any:
    """The table with its columns named by text, its rows numbered from 0, and cells of nothing but spaces missing.

    Raises DataError where two columns have the same name.
    """
    made = frame.rename(columns=str).reset_index(drop=True)
    _check_names(list(made.columns), "the table")
    for name in made.columns:
        if is_text(made[name]) and (blank := made[name].astype(str).str.strip() == "").any():
            made[name] = made[name].mask(blank)
    return made


def is_text(values: Any) -> bool:
    """Whether a column holds text rather than numbers, booleans or dates."""
    return values.dtype.kind not in "biufmM"


def read_table(path: str | os.PathLike, as_written: bool = True) -> Any:
    """A CSV (also gzipped, also with semicolons or tabs) or Parquet file as a DataFrame.

    The cells of a text file are text as it was written, and only an empty cell is missing: 01 stays 01, and NA is a
    word. Not `as_written` are what pandas takes them for, as learners of earlier versions read them.

    Raises DataError where it cannot be read, or needs more memory than the machine has.
    """
    pandas, path = need_pandas(), Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}. Give a table: {', '.join(EXTENSIONS)}.")
    _check_memory(path)
    try:
        if path.suffix == ".parquet":
            return tidied(pandas.read_parquet(path))
        shape: dict[str, Any] = {"sep": separator(path), "encoding": "utf-8-sig"}
        _check_names(pandas.read_csv(path, header=None, nrows=1, dtype=str, **shape).iloc[0].tolist(), repr(str(path)))
        meaning = {"dtype": str, "keep_default_na": False, "na_values": [""]} if as_written else OF_PANDAS
        frame = pandas.read_csv(path, **shape, **meaning)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not text in UTF-8 (byte {error.start}). Save it again as 'CSV UTF-8'."
        ) from error
    except ImportError as error:
        raise DataError(f"reading {str(path)!r} needs pyarrow: pip install 'quickstudy[tables]'.") from error
    except DataError:
        raise
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{str(path)!r} cannot be read as a table: {str(error).splitlines()[0]}.") from error
    if not isinstance(frame.index, pandas.RangeIndex):  # pandas takes cells without a name for names of rows
        raise DataError(
            f"the rows of {str(path)!r} have more cells than its header has names. Numbers with decimal commas need "
            'quotes in a file separated by commas ("14,0"), or semicolons between the cells.'
        )
    return tidied(frame)


def _check_names(names: Sequence[Any], table: str) -> None:
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise DataError(f"two columns of {table} are named {twice!r}. Rename one.")


def split_files(folder: Path) -> dict[str, Path]:
    """Split -> file, for those of the tables train, val and test that a folder holds."""
    return {split: file for split in SPLITS for end in EXTENSIONS if (file := folder / f"{split}{end}").is_file()}


def check_columns(frame: Any, given: Mapping[str, Sequence[str]], name: str) -> None:
    """Raise DataError unless the table has all columns given for each role; `name` names the table in the error."""
    names = [str(column) for column in frame.columns if column != SPLIT]
    for role, columns in given.items():
        if lacking := next((column for column in columns if column not in names), None):
            raise DataError(
                f"{name} has no column {lacking!r} ({role}); it has {listed(names, 30)}.{suggest(lacking, names)}"
            )


def _check_memory(path: Path) -> None:
    packed = 8 if path.suffix in (".gz", ".parquet") else 1
    needed, there = packed * BYTES * path.stat().st_size, memory.free(torch.device("cpu"))
    if there is not None and needed > there:
        raise DataError(
            f"{str(path)!r} needs about {needed / 1e9:.1f} GB of memory, of which {there / 1e9:.1f} GB are free. Leave "
            "columns out of the file, take a part of its tasks, or use a larger machine."
        )


def separator(path: Path) -> str:
    """What stands between the cells of a text file: the most frequent mark of its first line."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        header = file.readline()
    return max((",", ";", "\t"), key=lambda mark: header.count(mark.encode()))


def read_splits(table: Any, as_written: bool = True) -> tuple[Any, dict[str, Mapping[str, Any]] | None, str]:
    """The rows as a DataFrame, {} if the user made the splits (column `SPLIT` names them) else None, and a name.

    Text files are read `as_written` or not, see `read_table`. Raises DataError where the tables cannot be read, or
    differ in their columns.
    """
    pandas = need_pandas()
    if isinstance(table, pandas.DataFrame):
        return tidied(table), None, "table"
    if isinstance(table, Mapping):
        frames = {split: as_frame(frame) for split, frame in table.items()}
        return _joined(frames, {split: f"the table {split!r}" for split in frames}), {}, "table"
    path = Path(table).expanduser()
    if not path.is_dir():
        return read_table(path, as_written), None, path.name.split(".")[0]
    found = split_files(path)
    if not found:
        raise DataError(f"{str(path)!r} holds no tables train, val, test ({', '.join(EXTENSIONS)}).")
    frames = {split: read_table(file, as_written) for split, file in found.items()}
    return _joined(frames, {split: str(file) for split, file in found.items()}), {}, path.resolve().name


def _joined(frames: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """The tables of several splits as one, with a column that says which."""
    first = next(iter(frames))
    for split, frame in frames.items():
        if lacking := sorted(set(map(str, frames[first].columns)) - set(map(str, frame.columns))):
            raise DataError(f"{names[split]} lacks the column {lacking[0]!r}, which {names[first]} has.")
    whole = need_pandas().concat(list(frames.values()), ignore_index=True)
    whole[SPLIT] = np.repeat(list(frames), [len(frame) for frame in frames.values()])
    return whole


def listed(names: Sequence[Any], most: int = LISTED) -> str:
    """The first names of a table's columns, rows or levels: 'a', 'b' and 3 more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(str(name)) for name in names[:most]) + more


def row_of(index: Any) -> int:
    """The row number as an editor shows it: the header is line 1."""
    return int(index) + 2
