"""Converts the users' inputs and answers to what a learner reads, by the kind of input that it was trained on.

`preprocess` of a trained learner names the kind: "image", "table", "ratings", "text", or none for rows of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import files
from quickstudy.errors import DataError, suggest
from quickstudy.tasks.images.folders import EXTENSIONS, load_image, read_classes
from quickstudy.tasks.tabular import columns, numbers, ratings, tables
from quickstudy.tasks.texts import text
from quickstudy.trained.reading import TABLES, Preprocess


def support_of(preprocess: Preprocess, path: Path, classification: bool) -> tuple[Any, Any]:
    """Inputs and answers of a support set from a file or a folder. Raises DataError where they cannot be read."""
    kind = preprocess.get("kind")
    if kind == "image":
        return _class_folders(preprocess, path)
    if kind == "text":
        return _labelled_texts(preprocess, path)
    if not path.is_file():
        what = "a table with the target's column" if kind in TABLES else "a CSV file (inputs..., answer last)"
        raise DataError(f"{str(path)!r} is not a file: this run was not trained on images, give SUPPORT as {what}.")
    return _table_support(preprocess, path) if kind in TABLES else numbers.read_support(path, classification)


def _class_folders(preprocess: Preprocess, path: Path) -> tuple[Tensor, list[str]]:
    if not path.is_dir():
        raise DataError(f"there is no folder {str(path)!r}. SUPPORT is a folder with a subfolder of images per class.")
    classes = read_classes(path, **_reading(preprocess))
    names = [name for name, images in classes.items() for _ in range(len(images))]
    return torch.cat(list(classes.values())), names


def _labelled_texts(preprocess: Preprocess, path: Path) -> tuple[list[str], list[str]]:
    """A table with the columns used in training, or a folder with one folder of .txt files per class."""
    if path.is_dir():
        classes = text.read_folders(path)
    else:
        classes = text.read_classes(tables.read_table(path), preprocess["text"], preprocess["label"], str(path))
    return [one for texts in classes.values() for one in texts], [k for k, texts in classes.items() for _ in texts]


def _table_support(preprocess: Preprocess, path: Path) -> tuple[Any, Any]:
    frame = tables.read_table(path)
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
    if preprocess["kind"] == "ratings":
        ratings.check_known(preprocess, frame)
    if "classes" in preprocess:
        tables.answers_of(preprocess, frame[target])  # raises for classes that training did not know
        return frame, columns.as_words(frame[target]).tolist()
    return frame, columns.as_numbers(frame[target], target)


def inputs_of(preprocess: Preprocess, path: Path) -> tuple[Any, list[str]]:
    """Inputs to predict for, from a file or a folder, and a name for each. Raises DataError for unreadable ones."""
    kind = preprocess.get("kind")
    if kind in TABLES:
        frame = tables.read_table(path)
        return frame, [f"{path}:{i + 1}" for i in range(len(frame))]
    if kind == "text":
        found = _texts(preprocess, path)
        return found, found
    if kind != "image":
        return numbers.read_inputs(path)
    paths = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in EXTENSIONS] if path.is_dir() else [path]
    if not paths:
        raise DataError(f"the folder {str(path)!r} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    return torch.stack([load_image(p, **_reading(preprocess)) for p in paths]), [str(p) for p in paths]


def write_answers(path: Path, read: Sequence[tuple[Any, list[str]]], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV of inputs and answers: the columns of the table, else the inputs' names; predicted; probability.

    `read` holds inputs and names as `inputs_of` returns them. Raises RunError where the file cannot be written.
    """
    pandas = columns.need_pandas()
    asked = [x if isinstance(x, pandas.DataFrame) else pandas.DataFrame({"input": names}) for x, names in read]
    frame = pandas.concat(asked, ignore_index=True)
    found = {"predicted": [a["label"] for a in answers], "probability": [a["probability"] for a in answers]}
    files.write_atomically(path, frame.assign(**found).dropna(axis=1, how="all").to_csv(index=False).encode())


def _texts(preprocess: Preprocess, path: Path) -> list[str]:
    """The lines of a .txt file, the text column of a table, or one text for each .txt file in a folder."""
    if path.is_dir():
        found = [text.read_text(file) for file in sorted(path.rglob("*.txt"))]
    elif path.suffix == ".txt":
        found = [line.strip() for line in text.read_text(path).splitlines() if line.strip()]
    else:
        frame = tables.read_table(path)
        if preprocess["text"] not in frame.columns:
            hint = suggest(preprocess["text"], map(str, frame.columns))
            raise DataError(f"{str(path)!r} lacks the column of texts {preprocess['text']!r}.{hint}")
        found = frame[preprocess["text"]].dropna().astype(str).tolist()
    if not found:
        raise DataError(f"{str(path)!r} holds no text.")
    return found


def _reading(preprocess: Preprocess) -> dict[str, Any]:
    return {key: preprocess[key] for key in ("size", "channels", "invert")}
