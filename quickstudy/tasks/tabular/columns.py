"""How the columns of a table become numbers: learned on training tasks, and kept with the learner as plain values.

    number     (value - mean) / std of training tasks, clipped at 10 std; missing: 0, and 1 in a column of its own
    category   1 in the column of its level, for the 20 most frequent levels; missing: 1 in a column of its own
    list       several levels in one cell, "Action|Drama": 1 in the column of each, for the 20 most frequent levels
    date       a number, in days

A level that training did not see is 0 in all columns; it does not prevent a prediction. How the text of a file becomes
numbers, words and dates is said in `tabular.cells`; here columns are read already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from quickstudy.base.words import percent, plural
from quickstudy.errors import DataError, suggest
from quickstudy.tasks.tabular.frames import is_text, listed, need_pandas, row_of

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
    DataError for absurd numbers.
    """
    return [_learn(frame[name], str(name), name in categories, name in lists) for name in names]


def _learn(values: Any, name: str, category: bool, several: bool) -> Column:
    missing = bool(values.isna().any())
    if several:
        levels = as_words(values.dropna()).str.split(MARK).explode().value_counts().index[:LEVELS]
        return {"name": name, "kind": "list", "levels": sorted(levels), "missing": missing}
    if category or is_text(values):
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
        words = as_levels(values, column["levels"]).to_numpy()
        made = [np.stack([words == level for level in column["levels"]], axis=1)] if column["levels"] else []
    if column["missing"]:
        made.append(absent[:, None])
    return np.concatenate(made, axis=1).astype(np.float32) if made else np.zeros((len(values), 0), np.float32)


def remarks(columns: Sequence[Column], frame: Any) -> list[str]:
    """What `encode` cannot tell of these rows, in words: numbers far outside training, and levels without a column."""
    notes = [(_far if column["kind"] == "number" else _unkept)(column, frame[column["name"]]) for column in columns]
    return list(filter(None, notes))


def _far(column: Column, values: Any) -> str:
    known = as_numbers(values, column["name"])
    far = np.abs(known - column["mean"]) > FARTHEST * column["std"]
    if not far.any():
        return ""
    return (
        f"column {column['name']!r}: {plural(int(far.sum()), 'number')} far outside training, such as "
        f"{known[far][0]:g}, taken for the nearest within {FARTHEST:g} standard deviations of its mean, "
        f"{column['mean']:.4g} ± {FARTHEST * column['std']:.4g}"
    )


def _unkept(column: Column, values: Any) -> str:
    words = as_levels(values.dropna(), column["levels"])
    words = words.str.split(MARK).explode() if column["kind"] == "list" else words
    others = words[~words.isin(column["levels"])]
    if not len(others):
        return ""
    return (
        f"column {column['name']!r}: {percent(len(others) / len(words))} of its cells hold one of "
        f"{plural(others.nunique(), 'level')} without a column ({listed(others.value_counts().index.tolist())}); "
        f"the {len(column['levels'])} levels most frequent in training have one"
    )


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


def as_levels(values: Any, known: Sequence[str]) -> Any:
    """The same as text, named as the known levels are: the number 1 is '1.0' where a text file had that level."""
    words = as_words(values)
    if values.dtype.kind not in "iuf":
        return words
    written: dict[float, list[str]] = {}
    for level in known:
        with suppress(ValueError):
            written.setdefault(float(level), []).append(level)
    names = {number: levels[0] for number, levels in written.items() if len(levels) == 1}
    return words.map(lambda word: word if word is None or word in known else names.get(float(word), word))


def as_numbers(values: Any, name: str) -> np.ndarray:
    """A column of numbers, booleans or dates as float64 [n], dates in days; NaN where missing.

    Raises DataError for infinity and words.
    """
    if values.dtype.kind in "mM":
        return _days(values)
    if is_text(values) and not values.isna().all():
        row = values.first_valid_index()
        raise DataError(f"column {name!r} wants numbers, row {row_of(row)} has {values[row]!r}.")
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(numbers).any():
        raise DataError(f"column {name!r} holds infinity in row {row_of(values.index[np.isinf(numbers).argmax()])}.")
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


def counts_rows(values: Any) -> bool:
    """Whether a column only numbers or names the rows, so that nothing can be learned from it."""
    if values.dtype.kind in "iu":
        return len(values) > 2 and bool((np.diff(values.to_numpy()) == 1).all())
    return is_text(values) and values.nunique() > max(len(values) / 2, LEVELS)


def _days(values: Any) -> np.ndarray:
    pandas = need_pandas()
    if values.dtype.kind == "m":
        return (values / pandas.Timedelta(days=1)).to_numpy(dtype=np.float64)
    if getattr(values.dtype, "tz", None) is not None:
        values = values.dt.tz_convert(None)
    return ((values - pandas.Timestamp("1970-01-01")) / pandas.Timedelta(days=1)).to_numpy(dtype=np.float64)
