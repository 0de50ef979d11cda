"""Rows with named columns: of a table, and of ratings, whose columns name an item. A support set is a table file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quickstudy.base.words import plural
from quickstudy.errors import DataError, noted, suggest
from quickstudy.tasks.tabular import columns, frames, ratings, tables, targets
from quickstudy.tasks.texts.sentences import Encoder
from quickstudy.trained.readers.reader import Asked, Preprocess, Reader, Shown


def _support(preprocess: Preprocess, path: Path, classification: bool) -> Shown:
    if not path.is_file():
        raise DataError(
            f"{str(path)!r} is not a file: this run was not trained on images, give SUPPORT as a table with the "
            "target's column."
        )
    frame, answers, notes = _of_one_task(preprocess, _opened(preprocess, path), path)
    if "classes" in preprocess:
        targets.answers_of(preprocess, answers)  # raises for classes that training did not know
        return Shown(frame, columns.as_levels(answers, preprocess["classes"]).tolist(), notes)
    return Shown(frame, columns.as_numbers(answers, preprocess["target"]), notes)


def _opened(preprocess: Preprocess, path: Path) -> Any:
    return frames.read_table(path, tables.as_written(preprocess))


def _of_one_task(preprocess: Preprocess, written: Any, path: Path) -> tuple[Any, Any, list[str]]:
    """The rows that have a target, the targets, and notes.

    Raises DataError where there are none, and for rows of several tasks.
    """
    task, target = preprocess["task"], preprocess["target"]
    if target not in written.columns:
        raise DataError(
            f"{str(path)!r} lacks the target {target!r}: the answers of the support rows."
            f"{suggest(target, written.columns)}"
        )
    if task in written.columns and written[task].nunique() > 1:
        some = ", ".join(map(repr, written[task].unique()[:3].tolist()))
        raise DataError(
            f"{str(path)!r} holds rows of {written[task].nunique()} tasks ({some}, ...): give those of one."
        )
    answers = tables.as_trained(preprocess, written)[target]
    lacking = answers.isna()
    if lacking.all():
        raise DataError(f"no row of {str(path)!r} has a target ({target!r}): there is nothing to learn from.")
    notes = [f"{plural(int(lacking.sum()), 'row')} of {path} without target ({target!r}) left out"]
    return written[~lacking], answers[~lacking], notes * bool(lacking.any())


def _ratings_support(preprocess: Preprocess, path: Path, classification: bool) -> Shown:
    shown = _support(preprocess, path, classification)
    ratings.check_known(preprocess, shown.x)
    return shown


def _inputs(preprocess: Preprocess, path: Path) -> Asked:
    """The rows, named by file and line; the header is line 1 of a text file, and a Parquet file has none."""
    frame = _opened(preprocess, path)
    first = 1 if path.suffix == ".parquet" else 2
    return Asked(frame, [f"{path}:{first + i}" for i in range(len(frame))], frame)


def _table_encoded(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Rows (a DataFrame, dicts, or the numbers of all columns in order [n, columns]) as numbers [n, d]."""
    rows = frames.as_frame(_named(preprocess, x) if isinstance(x, (Tensor, np.ndarray)) else x)
    frame = tables.as_trained(preprocess, rows)
    encoded = columns.encode(preprocess["columns"], frame)
    for note in columns.remarks(preprocess["columns"], frame):
        noted(note)
    return encoded


def _named(preprocess: Preprocess, x: Any) -> Any:
    """Numbers without names [n, columns] as a DataFrame. Raises DataError where they cannot be the table's columns."""
    names = [column["name"] for column in preprocess["columns"]]
    wordy = [column["name"] for column in preprocess["columns"] if column["kind"] != "number"]
    if wordy or x.ndim != 2 or x.shape[1] != len(names):
        why = f"of which {frames.listed(wordy)} hold words" if wordy else f"not numbers of shape {list(x.shape)}"
        raise DataError(
            f"this learner reads rows with the columns {frames.listed(names, 30)}, {why}. Give a DataFrame or a list "
            "of dicts with these names; it scales them as in training."
        )
    return frames.need_pandas().DataFrame(np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x), columns=names)


def _ratings_encoded(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Rows that name items as numbers [n, d]."""
    if isinstance(x, (Tensor, np.ndarray)):
        raise DataError(
            f"this learner reads rows that name items: a DataFrame or a list of dicts with the column "
            f"{preprocess['item']!r}; got an array of shape {list(x.shape)}."
        )
    return ratings.encode(preprocess, tables.as_trained(preprocess, frames.as_frame(x)))


def _targets(preprocess: Preprocess, y: Any) -> Any:
    """Values scaled as in training, [n, d]; classes unchanged."""
    if "classes" in preprocess:
        return y
    target = preprocess["target"]
    if np.asarray(y).dtype.kind not in "fiub":
        frame = frames.tidied(frames.need_pandas().DataFrame({target: np.asarray(y).reshape(-1)}))
        y = columns.as_numbers(tables.as_trained(preprocess, frame)[target], target)
    values = torch.from_numpy(np.array(y, dtype=np.float64)).reshape(len(y), -1)
    return (values - preprocess["mean"]) / preprocess["std"]


def _in_units(preprocess: Preprocess, values: Tensor) -> Tensor:
    return values * preprocess["std"] + preprocess["mean"] if "std" in preprocess else values


TABLE = Reader(_support, _inputs, _table_encoded, _targets, _in_units)
RATINGS = Reader(_ratings_support, _inputs, _ratings_encoded, _targets, _in_units)
