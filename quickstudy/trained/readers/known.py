"""All readers, by the kind of input that `preprocess` names."""

from __future__ import annotations

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
    """The reader of a learner's inputs. Raises FileFormatError for a kind that this version does not know."""
    kind = preprocess.get("kind") or ""
    if kind not in READERS:
        raise FileFormatError(
            f"this learner reads inputs of the kind {kind!r}, which this Quickstudy does not know; it knows "
            f"{', '.join(filter(None, READERS))}.{suggest(str(kind), READERS)} Upgrade it."
        )
    return READERS[kind]
