"""Texts: a support set is a table of texts and labels, or a folder with a folder of .txt files for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from quickstudy.errors import DataError, suggest
from quickstudy.tasks.tabular import tables
from quickstudy.tasks.texts import text
from quickstudy.tasks.texts.sentences import Encoder, as_vectors
from quickstudy.trained.readers.reader import Preprocess, Reader, unchanged


def _support(preprocess: Preprocess, path: Path, classification: bool) -> tuple[list[str], list[str]]:
    if path.is_dir():
        classes = text.read_folders(path)
    else:
        classes = text.read_classes(tables.read_table(path), preprocess["text"], preprocess["label"], str(path))
    return [one for texts in classes.values() for one in texts], [k for k, texts in classes.items() for _ in texts]


def _inputs(preprocess: Preprocess, path: Path) -> tuple[list[str], list[str]]:
    """The lines of a .txt file, the text column of a table, or one text for each .txt file in a folder."""
    if path.is_dir():
        found = [text.read_text(file) for file in sorted(path.rglob("*.txt"))]
    elif path.suffix == ".txt":
        found = [line.strip() for line in text.read_text(path).splitlines() if line.strip()]
    else:
        found = _column(preprocess["text"], path)
    if not found:
        raise DataError(f"{str(path)!r} holds no text.")
    return found, found


def _column(name: str, path: Path) -> list[str]:
    frame = tables.read_table(path)
    if name not in frame.columns:
        hint = suggest(name, map(str, frame.columns))
        raise DataError(f"{str(path)!r} lacks the column of texts {name!r}.{hint}")
    return frame[name].dropna().astype(str).tolist()


def _encoded(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Texts as subword numbers, or as vectors of the encoder used in training; numbers unchanged.

    Raises DataError for anything but texts, ConfigError where the encoder is missing.
    """
    if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind in "fiu"):
        return x
    if "encoder" in preprocess:
        return as_vectors(preprocess, text.as_texts(x), text_encoder)
    return text.hashed(text.as_texts(x), preprocess["buckets"], preprocess["words"])


TEXTS = Reader(_support, _inputs, _encoded, unchanged, unchanged)
