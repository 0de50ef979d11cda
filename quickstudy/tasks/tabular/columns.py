"""How the columns of a table become numbers: learned on training tasks, and kept with the learner as plain values.

    number     (value - mean) / std of training tasks, clipped at 10 std; missing: 0, and 1 in a column of its own
    category   1 in the column of its level, for the 20 most frequent levels; missing: 1 in a column of its own
    list       several levels in one cell, "Action|Drama": 1 in the column of each, for the 20 most frequent levels
    date       a number, in days

A level that training did not see is 0 in all columns; it does not prevent a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quickstudy.errors import DataError, suggest

LEVELS = 20  # levels of a category that get columns of their own
FARTHEST = 10.0  # standard deviations from the mean at which numbers are clipped
MARK = "|"  # separates the levels of a list
ABSURD = 1e6  # a number this many times farther from the median than usual is taken for a mistake

Column = dict[str, Any]  # name, kind, missing; mean and std of a number, levels of a category or list


def learn_columns(
    frame: Any, names: Sequence[str], categories: Sequence[str] = (), lists: Sequence[str] = ()
) -> list[Column]:
    """What `encode` needs to know about the named columns of a DataFrame.

    `categories` are columns of numbers that are only names, `lists` those with several levels in a cell. Raises
    DataError for columns that mix numbers and words, and for absurd numbers.
    """
    return [_learn(frame[name], str(name), name in categories, name in lists) for name in names]


def _learn(values: Any, name: str, category: bool, several: bool) -> Column:
    missing = bool(values.isna().any())
    if several:
        levels = as_words(values.dropna()).str.split(MARK).explode().value_counts().index[:LEVELS]
        return {"name": name, "kind": "list", "levels": sorted(levels), "missing": missing}
    if category or not is_numeric(values, name):
        levels = as_words(values.dropna()).value_counts().index[:LEVELS]
        return {"name": name, "kind": "category", "levels": sorted(levels), "missing": missing}
    numbers = as_numbers(values, name)
    known = numbers[~np.isnan(numbers)]
    check_sane(known, name)
    mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
    return {"name": name, "kind": "number", "mean": mean, "std": std or 1.0, "missing": missing}


def encode(columns: Sequence[Column], frame: Any) -> np.ndarray:
    """The rows of a DataFrame as numbers [n, d], float32.

    Raises DataError where a column is missing, or holds words where training had numbers.
    """
    for column in columns:
        if column["name"] not in frame.columns:
            hint = suggest(column["name"], map(str, frame.columns))
            raise DataError(f"the rows lack the column {column['name']!r}, which training had.{hint}")
    parts = [_encoded(column, frame[column["name"]]) for column in columns]
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(frame), 0), np.float32)


def _encoded(column: Column, values: Any) -> np.ndarray:
    """[n, k]: 1 number or one per level, and one more where training had missing values."""
    absent = values.isna().to_numpy()
    if column["kind"] == "number":
        numbers = (as_numbers(values, column["name"]) - column["mean"]) / column["std"]
        made = [np.clip(np.nan_to_num(numbers, nan=0.0), -FARTHEST, FARTHEST)[:, None]]
    elif column["kind"] == "list":
        words = [set() if gone else set(word.split(MARK)) for word, gone in zip(as_words(values), absent, strict=True)]
        made = [
            np.array([[level in of_row for level in column["levels"]] for of_row in words]).reshape(len(values), -1)
        ]
    else:
        words = as_words(values).to_numpy()
        made = [np.stack([words == level for level in column["levels"]], axis=1)] if column["levels"] else []
    if column["missing"]:
        made.append(absent[:, None])
    return np.concatenate(made, axis=1).astype(np.float32) if made else np.zeros((len(values), 0), np.float32)


def described(columns: Sequence[Column], x: np.ndarray, most: int = 4) -> list[str]:
    """Rows x [n, d] in words, for people. The last numbers of each row are those that `encode` made of the columns.

    Only columns in which the rows differ are described, at most `most` of them for each row.
    """
    ends = np.cumsum([_width(column) for column in columns])
    cells = np.split(x[:, x.shape[1] - ends[-1] :], ends[:-1], axis=1)
    differing = [(c, cell) for c, cell in zip(columns, cells, strict=True) if (cell != cell[0]).any()]
    parts = [[_in_words(column, row) for row in cell] for column, cell in differing]
    return [", ".join([one for one in row if one][:most]) for row in zip(*parts, strict=True)] or [""] * len(x)


def _width(column: Column) -> int:
    """How many numbers `encode` gives for a column."""
    return (1 if column["kind"] == "number" else len(column["levels"])) + column["missing"]


def _in_words(column: Column, cell: np.ndarray) -> str:
    """'age 63', 'sex female'; empty where the value is missing or a level that training did not see."""
    if column["missing"] and cell[-1]:
        return ""
    if column["kind"] == "number":
        return f"{column['name']} {cell[0] * column['std'] + column['mean']:.4g}"
    levels = MARK.join(level for level, there in zip(column["levels"], cell, strict=False) if there)
    return f"{column['name']} {levels}" if levels else ""


def as_words(values: Any) -> Any:
    """Levels as text. 3.0 becomes '3', because pandas reads whole numbers with gaps as floats."""
    if values.dtype.kind == "f":
        return values.map(lambda v: v if math.isnan(v) else f"{v:.15g}").astype(object)
    return values.astype(str).where(~values.isna(), None).astype(object)


def is_numeric(values: Any, name: str) -> bool:
    """Whether a column holds numbers, booleans or dates. Raises DataError for numbers with some words in between."""
    if values.dtype.kind in "biufmM":
        return True
    known = values.dropna()
    if _dates(known) is not None:
        return True
    numbers = _parsed(known)
    words = numbers.isna()
    if len(known) and words.mean() < 0.5 and words.any():
        row, word = words.idxmax(), known[words].iloc[0]
        raise DataError(
            f"column {name!r} holds numbers, and {word!r} in row {_row(row)}. Correct it (an empty cell is a missing "
            "value), or leave the column out with ignore."
        )
    return len(known) > 0 and not words.any()


def as_numbers(values: Any, name: str) -> np.ndarray:
    """A column that `is_numeric` as float64 [n], dates in days; NaN where missing.

    Raises DataError for infinity and words.
    """
    if values.dtype.kind in "mM":
        return _days(values)
    if values.dtype.kind not in "biuf":
        dates = _dates(values.dropna())
        if dates is not None:
            return _days(dates.reindex(values.index))
        parsed = _parsed(values)
        if (wrong := parsed.isna() & ~values.isna()).any():
            raise DataError(f"column {name!r} wants numbers, row {_row(wrong.idxmax())} has {values[wrong].iloc[0]!r}.")
        values = parsed
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(numbers).any():
        raise DataError(f"column {name!r} holds infinity in row {_row(values.index[np.isinf(numbers).argmax()])}.")
    return numbers


def check_sane(known: np.ndarray, name: str) -> None:
    """Raise DataError where one of the numbers [n] is so far off that scaling would hide all others."""
    if len(known) < 4:
        return
    middle = np.median(known)
    away = np.abs(known - middle)
    usual = np.quantile(away, 0.75)
    if usual > 0 and away.max() > ABSURD * usual:
        raise DataError(
            f"column {name!r} holds {known[away.argmax()]:g}, where most values are near {middle:g}. Correct it, or "
            "leave the column out with ignore."
        )


def tells(columns: Sequence[Column], frame: Any, target: np.ndarray) -> str | None:
    """The name of the first column that gives the target [n] away, None if there is none.

    Such a column determines the target: each of its values goes with one value of the target, or the two lie on a line.
    """
    distinct = len(np.unique(target))
    for column in columns:
        values = frame[column["name"]]
        if column["kind"] == "number" and distinct > 2:
            if _on_a_line(as_numbers(values, column["name"]), target):
                return column["name"]
        elif 1 < values.nunique() <= max(2 * distinct, LEVELS) and _determined(as_words(values), target):
            return column["name"]
    return None


def _on_a_line(numbers: np.ndarray, target: np.ndarray) -> bool:
    known = ~np.isnan(numbers)
    x, y = numbers[known], target[known]
    return len(x) > 2 and x.std() > 0 and y.std() > 0 and abs(np.corrcoef(x, y)[0, 1]) > 1 - 1e-9


def _determined(words: Any, target: np.ndarray) -> bool:
    """Whether every word goes with one answer only."""
    pandas = need_pandas()
    return bool((pandas.Series(target).groupby(words.to_numpy(), dropna=False).nunique() == 1).all())


def counts_rows(values: Any, name: str) -> bool:
    """Whether a column only numbers or names the rows, so that nothing can be learned from it."""
    if values.dtype.kind in "iu":
        return len(values) > 2 and bool((np.diff(values.to_numpy()) == 1).all())
    return (
        values.dtype.kind not in "bfmM"
        and not is_numeric(values, name)
        and values.nunique() > max(len(values) / 2, LEVELS)
    )


def as_frame(rows: Any) -> Any:
    """Rows as a DataFrame: from a DataFrame, a dict of columns, or a list of dicts. Raises DataError for others."""
    pandas = need_pandas()
    if isinstance(rows, pandas.DataFrame):
        return rows
    if isinstance(rows, Mapping) or (isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows)):
        return pandas.DataFrame(rows)
    raise DataError(
        f"this learner reads rows of a table: a DataFrame, or a list of dicts from column to value; got "
        f"{type(rows).__name__}."
    )


def need_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise DataError("tables need pandas: pip install 'quickstudy[tables]'.") from error
    return pandas


def _parsed(values: Any) -> Any:
    return need_pandas().to_numeric(values, errors="coerce")


def _dates(known: Any) -> Any:
    """Texts as dates if all of them are written like 2024-05-31, else None."""
    if not len(known) or known.dtype.kind in "biuf" or not known.astype(str).str.match(r"\d{4}-\d\d?-\d\d?").all():
        return None
    try:
        return need_pandas().to_datetime(known, format="ISO8601")
    except ValueError:
        return None


def _days(values: Any) -> np.ndarray:
    pandas = need_pandas()
    if values.dtype.kind == "m":
        return (values / pandas.Timedelta(days=1)).to_numpy(dtype=np.float64)
    if getattr(values.dtype, "tz", None) is not None:
        values = values.dt.tz_convert(None)
    return ((values - pandas.Timestamp("1970-01-01")) / pandas.Timedelta(days=1)).to_numpy(dtype=np.float64)


def _row(index: Any) -> int:
    """The row number as an editor shows it: the header is line 1."""
    return int(index) + 2
