"""Few-shot classes of short texts: intents, topics, relations."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quickstudy.base.words import percent, plural
from quickstudy.errors import DataError
from quickstudy.tasks.classes import ClassTasks, stack_classes
from quickstudy.tasks.splits import by_name, check_disjoint, check_split
from quickstudy.tasks.tabular.columns import as_words
from quickstudy.tasks.tabular.frames import as_frame, check_columns, need_pandas, read_table, split_files
from quickstudy.tasks.tabular.tables import READINGS, as_written
from quickstudy.tasks.tabular.targets import named_like_gaps
from quickstudy.tasks.texts.sentences import embedded, facts, opened

WORD = re.compile(r"\w+|[^\w\s]")
LONGEST = 24  # words that are read of a text
SUBWORDS = 16  # kept for each word: the word itself and parts of it
LENGTHS = (3, 4, 5)  # of the parts, in characters
TOGETHER = "Put all texts of a class into one file, or give one file and it is split by class."


def from_text(
    texts: Any,
    split: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    text: str = "text",
    label: str = "label",
    buckets: int = 16384,
    words: int = LONGEST,
    encoder: Any = None,
    progress: bool = False,
    preprocess: Mapping[str, Any] | None = None,
) -> ClassTasks:
    """Episodes from labelled texts; examples int32 [N, words, subwords], for `qs.nn.text`, or vectors [N, d].

    texts    a CSV, TSV or Parquet file or a DataFrame with a column of texts and one of labels; a folder of such files
             train, val and test, or a dict of DataFrames, which must not share classes; or a folder with one folder of
             .txt files for each class
    text     the column of texts; label: that of their classes
    buckets  how many numbers subwords are hashed to; words: how many words of a text are read
    encoder  a frozen sentence-embedding model to use instead of subwords, which gives vectors [N, d]: a function from a
             list of n texts to [n, d], such as `SentenceTransformer(...).encode`, a module that does the same, or the
             name of a sentence_transformers model. It encodes each text once, in this call; `progress` shows a bar
    preprocess  of an earlier learner, `trained.preprocess`: labels are named as in its training, and so split alike

    Without your own splits, the classes are split 60/20/20 by a hash of their names. Subwords ignore case. Texts that
    are empty, have no label or are exact copies of another in their class are left out; `notes` says how many.

    >>> import pandas, quickstudy as qs
    >>> kinds = ["order", "refund", "hours", "greeting", "parking"]
    >>> rows = [{"text": f"{kind} number {i}", "label": kind} for kind in kinds for i in range(4)]
    >>> tasks = qs.tasks.from_text(pandas.DataFrame(rows), "train", ways=2, shots=1, queries=1)
    >>> tasks.sample(3).support.x.shape
    torch.Size([3, 2, 24, 16])

    Raises DataError for bad data, naming file, column or class, ConfigError for an unknown split and for an encoder
    that gives no vectors.
    """
    check_split(split)
    splits, name, notes = _splits(texts, text, label, as_written(preprocess))
    if split not in splits:
        raise DataError(f"{name} has no {split!r} part; it has {', '.join(splits)}.")
    classes = splits[split]
    if not classes:
        raise DataError(
            f"{name} has too few classes for a {split!r} part. It takes at least five, or parts of your own."
        )
    raw = [one for of_class in classes.values() for one in of_class]
    asked = None if encoder is None else opened(encoder)
    numbers = hashed(raw, buckets, words) if asked is None else embedded(raw, asked, progress=progress)
    examples, starts = stack_classes(numbers.split([len(of_class) for of_class in classes.values()]))
    reading = {"buckets": buckets, "words": words} if asked is None else facts(encoder, numbers.shape[1])
    kept = {"kind": "text", "text": text, "label": label, READINGS: {}} | reading
    if not as_written(preprocess):
        kept.pop(READINGS)
    notes += cut_short(raw, words) if asked is None else []
    about = {"raw": raw, "notes": tuple(notes), "text_encoder": asked}
    return ClassTasks(examples, starts, list(classes), ways, shots, queries, name, split, kept, **about)


def cut_short(texts: Sequence[str], words: int) -> list[str]:
    """A note about texts of which only the first words are read."""
    long = sum(len(WORD.findall(one)) > words for one in texts)
    if not long:
        return []
    share = f"{long:,} of {plural(len(texts), 'text')} ({percent(long / len(texts))})"
    return [f"{share} have more than {words} words: the rest is not read"]


def hashed(texts: Sequence[str], buckets: int = 16384, words: int = LONGEST) -> Tensor:
    """Texts as subword numbers [n, words, subwords], int32: 1..buckets-1, and 0 where there is no subword."""
    rows = torch.zeros(len(texts), words, SUBWORDS, dtype=torch.int32)
    for row, one in zip(rows, texts, strict=True):
        found = WORD.findall(one.lower())[:words]
        if found:
            row[: len(found)] = torch.tensor([_subwords(word, buckets) for word in found], dtype=torch.int32)
    return rows


@functools.lru_cache(maxsize=65536)
def _subwords(word: str, buckets: int) -> tuple[int, ...]:
    """The word and its parts of 3 to 5 characters as numbers, with "<" and ">" marking its ends; the rest is cut."""
    whole = f"<{word}>"
    parts = [whole, *(whole[i : i + n] for n in LENGTHS for i in range(len(whole) - n + 1) if n < len(whole))]
    numbers = [zlib.crc32(part.encode()) % (buckets - 1) + 1 for part in parts[:SUBWORDS]]
    return tuple(numbers + [0] * (SUBWORDS - len(numbers)))


def as_texts(x: Any) -> list[str]:
    """A list of texts from one text, a list or a column. Raises DataError for an empty text or anything else."""
    found = [x] if isinstance(x, str) else list(x)
    if wrong := next((one for one in found if not isinstance(one, str)), None):
        raise DataError(f"this learner reads texts: a list of strings, got {type(wrong).__name__} ({wrong!r}).")
    if any(not one.strip() for one in found):
        raise DataError(f"text {[bool(one.strip()) for one in found].index(False)} is empty: there is nothing to read.")
    return found


# --- files -----------------------------------------------------------------------------------------------------------

Classes = dict[str, list[str]]


def _splits(texts: Any, text: str, label: str, written: bool) -> tuple[Mapping[str, Classes], str, list[str]]:
    """Split -> class -> texts, a name, and notes about what was left out; files are read as `written` or not."""
    notes: list[str] = []

    def classes_of(frame: Any, called: str) -> Classes:
        return read_classes(frame, text, label, called, notes, written)

    if isinstance(texts, need_pandas().DataFrame):
        return by_name(classes_of(as_frame(texts), "the table")), "texts", notes
    if isinstance(texts, Mapping):
        splits = {split: classes_of(as_frame(frame), split) for split, frame in texts.items()}
        check_disjoint("class", "classes", splits, TOGETHER)
        return splits, "texts", notes
    path = Path(texts).expanduser()
    if path.is_file():
        return by_name(classes_of(read_table(path, written), str(path))), path.name.split(".")[0], notes
    if not path.is_dir():
        raise DataError(f"there is no file or folder {str(path)!r}. Give texts with their labels.")
    if files := split_files(path):
        splits = {split: classes_of(read_table(file, written), str(file)) for split, file in files.items()}
        check_disjoint("class", "classes", splits, TOGETHER)
        return splits, path.resolve().name, notes
    return by_name(read_folders(path)), path.resolve().name, notes


def read_folders(path: Path) -> Classes:
    """Class -> texts, from a folder with one folder of .txt files for each class; a file is one text.

    Raises DataError for a folder without texts, and for a file that is empty or cannot be read.
    """
    found: Classes = {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        of_class = [read_text(file) for file in sorted(folder.glob("*.txt"))]
        if not of_class:
            raise DataError(f"class folder {folder} holds no .txt files. Fill or remove it.")
        found[folder.name] = of_class
    if not found:
        raise DataError(f"{str(path)!r} holds neither tables train, val, test nor a folder of .txt files per class.")
    return found


def read_text(file: Path) -> str:
    """The content of a text file. Raises DataError where it is empty, missing or not in UTF-8."""
    try:
        found = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not text in UTF-8 (byte {error.start}). Save it again as UTF-8.") from error
    if not found.strip():
        raise DataError(f"{str(file)!r} is empty. Fill or remove it.")
    return found


def read_classes(
    frame: Any, text: str, label: str, name: str, notes: list[str] | None = None, written: bool = True
) -> Classes:
    """Class -> texts, from a table of texts and labels as they are written; what was left out is appended to `notes`.

    Not `written`: labels are named as in earlier versions, 1.0 where whole numbers have gaps.

    Raises DataError where a column is missing or no row has both a text and a label.
    """
    notes = [] if notes is None else notes
    check_columns(frame, {"text": [text], "label": [label]}, name)
    pairs = frame[[text, label]].dropna()
    if lost := len(frame) - len(pairs):
        notes.append(f"{plural(lost, 'row')} of {name} without text or label left out")
    if pairs.empty:
        raise DataError(f"no row of {name} has both a {text!r} and a {label!r}.")
    labels = as_words(pairs[label]) if written else pairs[label].astype(str)
    whole = pairs.assign(**{text: as_words(pairs[text]), label: labels})
    pairs = whole.drop_duplicates()
    if copies := len(whole) - len(pairs):
        notes.append(f"{plural(copies, 'text')} of {name} that copy another of their class left out")
    notes += named_like_gaps(pairs[label].unique().tolist(), f"class of {name}")
    return {str(key): part[text].tolist() for key, part in pairs.groupby(label, sort=True)}
