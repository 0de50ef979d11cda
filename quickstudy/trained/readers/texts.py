"""Texts: a support set is a table of texts and labels, or a folder with a folder of .txt files for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from quickstudy.base.words import plural
from quickstudy.errors import DataError, noted, suggest
from quickstudy.tasks.tabular import columns, frames
from quickstudy.tasks.texts import text
from quickstudy.tasks.texts.sentences import Encoder, as_vectors
from quickstudy.trained.readers.reader import Asked, Preprocess, Reader, Shown, unchanged


def _support(preprocess: Preprocess, path: Path, classification: bool) -> Shown:
    notes: list[str] = []
    if path.is_dir():
        classes = text.read_folders(path)
    else:
        table = frames.read_table(path)
        classes = text.read_classes(table, preprocess["text"], preprocess["label"], str(path), notes)
    texts = [one for of_class in classes.values() for one in of_class]
    return Shown(texts, [name for name, of_class in classes.items() for _ in of_class], notes)


def _inputs(preprocess: Preprocess, path: Path) -> Asked:
    """The lines of a .txt file, the text column of a table, or one text for each .txt file in a folder."""
    if path.is_dir():
        found = [text.read_text(file) for file in sorted(path.rglob("*.txt"))]
    elif path.suffix == ".txt":
        found = [line.strip() for line in text.read_text(path).splitlines() if line.strip()]
    else:
        return _of_table(preprocess["text"], path)
    if not found:
        raise DataError(f"{str(path)!r} holds no text.")
    return Asked(found, found)


def _of_table(name: str, path: Path) -> Asked:
    frame = frames.read_table(path)
    if name not in frame.columns:
        raise DataError(f"{str(path)!r} lacks the column of texts {name!r}.{suggest(name, frame.columns)}")
    rows = frame[~frame[name].isna()]
    if not len(rows):
        raise DataError(f"{str(path)!r} holds no text.")
    lost = len(frame) - len(rows)
    notes = [f"{plural(lost, 'row')} of {path} without text ({name!r}) left out"] if lost else []
    found = columns.as_words(rows[name]).tolist()
    return Asked(found, found, rows, notes)


def _encoded(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Texts as subword numbers, or as vectors of the encoder used in training; numbers unchanged.

    Raises DataError for anything but texts, ConfigError where the encoder is missing.
    """
    if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind in "fiu"):
        return x
    texts = text.as_texts(x)
    if "encoder" in preprocess:
        return as_vectors(preprocess, texts, text_encoder)
    for note in text.cut_short(texts, preprocess["words"]):
        noted(note)
    return text.hashed(texts, preprocess["buckets"], preprocess["words"])


TEXTS = Reader(_support, _inputs, _encoded, unchanged, unchanged)
