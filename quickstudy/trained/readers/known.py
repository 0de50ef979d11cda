"""All readers, by the kind of input that `preprocess` names."""

from __future__ import annotations

from typing import Any

from quickstudy.base.version import is_later
from quickstudy.errors import FileFormatError, suggest
from quickstudy.trained.readers.arrays import ARRAYS
from quickstudy.trained.readers.images import IMAGES
from quickstudy.trained.readers.reader import Preprocess, Reader
from quickstudy.trained.readers.rows import RATINGS, TABLE
from quickstudy.trained.readers.texts import TEXTS

READERS: dict[str, Reader] = {
    "": ARRAYS,  # tasks that say nothing of how their numbers came about
    "image": IMAGES,
    "table": TABLE,
    "ratings": RATINGS,
    "text": TEXTS,
}


def reader_of(preprocess: Preprocess) -> Reader:
    """The reader of a learner's inputs: arrays for a kind that only the user's own task source knows."""
    return READERS.get(preprocess.get("kind") or "", ARRAYS)


def check_kind(path: Any, preprocess: Preprocess, written_by: str) -> None:
    """Raise FileFormatError for a file of a later version whose kind of input this one does not know.

    In a file that this version or an earlier one wrote, an unknown kind is that of the user's own task source.
    """
    kind = preprocess.get("kind") or ""
    if kind not in READERS and is_later(written_by):
        raise FileFormatError(
            f"{str(path)!r} reads inputs of the kind {kind!r}, which this Quickstudy does not know; it knows "
            f"{', '.join(filter(None, READERS))}.{suggest(str(kind), READERS)} It was written by Quickstudy "
            f"{written_by}: pip install --upgrade quickstudy"
        )
