"""Rows with named columns: of a table, and of ratings, whose columns name an item. A support set is a table file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quickstudy.errors import DataError, suggest
from quickstudy.tasks.tabular import columns, ratings, tables
from quickstudy.tasks.texts.sentences import Encoder
from quickstudy.trained.readers.reader import Preprocess, Reader


def _support(preprocess: Preprocess, path: Path, classification: bool) -> tuple[Any, Any]:
    if not path.is_file():
        raise DataError(
            f"{str(path)!r} is not a file: this run was not trained on images, give SUPPORT as a table with the "
            "target's column."
        )
    frame = _of_one_task(preprocess, tables.read_table(path), path)
    target = preprocess["target"]
    if "classes" in preprocess:
        tables.answers_of(preprocess, frame[target])  # raises for classes that training did not know
        return frame, columns.as_words(frame[target]).tolist()
    return frame, columns.as_numbers(frame[target], target)


def _of_one_task(preprocess: Preprocess, frame: Any, path: Path) -> Any:
    """The rows that have a target. Raises DataError where there are none, and for rows of several tasks."""
    task, target = preprocess["task"], preprocess["target"]
    if target not in frame.columns:
        raise DataError(
            f"{str(path)!r} lacks the target {target!r}: the answers of the support rows."
            f"{suggest(target, map(str, frame.columns))}"
        )
    if task in frame.columns and frame[task].nunique() > 1:
        some = ", ".join(map(repr, frame[task].unique()[:3].tolist()))
        raise DataError(f"{str(path)!r} holds rows of {frame[task].nunique()} tasks ({some}, ...): give those of one.")
    frame = frame[~frame[target].isna()]
    if len(frame) == 0:
        raise DataError(f"no row of {str(path)!r} has a target ({target!r}): there is nothing to learn from.")
    return frame


def _ratings_support(preprocess: Preprocess, path: Path, classification: bool) -> tuple[Any, Any]:
    frame, answers = _support(preprocess, path, classification)
    ratings.check_known(preprocess, frame)
    return frame, answers


def _inputs(preprocess: Preprocess, path: Path) -> tuple[Any, list[str]]:
    """The rows, named by file and line; the header is line 1 of a text file, and a Parquet file has none."""
    frame = tables.read_table(path)
    first = 1 if path.suffix == ".parquet" else 2
    return frame, [f"{path}:{first + i}" for i in range(len(frame))]


def _table_encoded(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Rows (a DataFrame, or dicts) as numbers [n, d]; tensors and arrays unchanged."""
    return x if _is_array(x) else columns.encode(preprocess["columns"], columns.as_frame(x))


def _ratings_encoded(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Rows that name items as numbers [n, d]; tensors and arrays unchanged."""
    return x if _is_array(x) else ratings.encode(preprocess, columns.as_frame(x))


def _is_array(x: Any) -> bool:
    return isinstance(x, (Tensor, np.ndarray))


def _targets(preprocess: Preprocess, y: Any) -> Any:
    """Values scaled as in training, [n, d]; classes unchanged."""
    if "classes" in preprocess:
        return y
    values = torch.from_numpy(np.array(y, dtype=np.float64)).reshape(len(y), -1)
    return (values - preprocess["mean"]) / preprocess["std"]


def _in_units(preprocess: Preprocess, values: Tensor) -> Tensor:
    return values * preprocess["std"] + preprocess["mean"] if "std" in preprocess else values


TABLE = Reader(_support, _inputs, _table_encoded, _targets, _in_units)
RATINGS = Reader(_ratings_support, _inputs, _ratings_encoded, _targets, _in_units)
