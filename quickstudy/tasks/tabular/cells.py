"""How the cells of a table are read: as numbers, dates and switches in the ways in which people write them.

    numbers    1234.5   1,234.5   1234,5   1.234,5   1 234,5   1'234,5, and with a mark in every cell: 5 %, $ 1.50
    dates      2024-05-31   31.05.2024   05/31/2024   31/05/2024   31-05-2024, with or without a time
    switches   true, false

A reading is found once, for whole columns of the training table, and kept with the learner. Later tables are read in
the same way, or refused. A reading must fit each cell of its column. Where several fit and give different numbers
(1,234 is 1234 or 1.234), the other columns decide, or the user is asked. Names of tasks and classes are never read:
01 and 1 are two classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from quickstudy.base.words import plural
from quickstudy.errors import DataError
from quickstudy.tasks.tabular.frames import is_text, need_pandas, row_of

# What programs write for a missing number. In a column of words these are words; only an empty cell is missing there.
GAPS = frozenset(["?", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"])
FEW = 64  # cells on which a reading is tried before the whole column
SAME = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2212": "-", "\u2019": "'"})
TIMES = ("", " %H:%M", " %H:%M:%S")


class Numbers(NamedTuple):
    """Numbers with a decimal mark, and perhaps a mark between thousands and a unit's mark, such as %."""

    decimal: str = "."
    groups: str = ""
    mark: str = ""
    kinds = "biufm"  # of columns that are numbers already

    @property
    def convention(self) -> str:
        return self.decimal

    @property
    def example(self) -> str:
        return f"numbers like {'$' * (self.mark == '$')}1{self.groups}234{self.decimal}5{self.mark.replace('$', '')}"

    def read(self, words: Any) -> Any:
        """Words as numbers [n]; NaN where a word is not so written."""
        if self.mark:
            words, mark = words.where(words.str.contains(self.mark, regex=False)), re.escape(self.mark)
            words = words.str.replace(rf"^([-+]?) ?{mark} ?", r"\1", regex=True).str.replace(
                rf" ?{mark}$", "", regex=True
            )
        whole = rf"(?:[1-9]\d{{0,2}}(?:{re.escape(self.groups)}\d{{3}})+|\d+)" if self.groups else r"\d+"
        point = re.escape(self.decimal)
        written = words.str.fullmatch(rf"[-+]?(?:{whole}(?:{point}\d*)?|{point}\d+)(?:[eE][-+]?\d+)?", na=False)
        for mark, plain in ((self.groups, ""), (self.decimal, ".")):
            words = words.str.replace(mark, plain, regex=False) if mark not in ("", plain) else words
        return words.where(written).astype("float64")

    def plain(self) -> dict[str, str]:
        return self._asdict()


class Dates(NamedTuple):
    """Dates in one format of `strptime`, or in that of ISO 8601; a time may follow."""

    dates: str = "ISO8601"
    kinds = "M"

    @property
    def convention(self) -> str:
        return {"%d": "day-first", "%m": "month-first"}.get(self.dates[:2], "year-first")

    @property
    def example(self) -> str:
        day = {"%d": "31", "%m": "05", "%Y": "2024", "%y": "24"}
        return "dates like " + re.sub("%.", lambda part: day[part[0]], self.dates.replace("ISO8601", "%Y-%m-%d"))

    def read(self, words: Any) -> Any:
        """Words as moments [n], without a time zone; NaT where a word is not so written."""
        pandas = need_pandas()
        if self.dates == "ISO8601":
            dated = words.where(words.str.match(r"\d{4}-\d\d-\d\d", na=False))
            return pandas.to_datetime(dated, format="ISO8601", errors="coerce", utc=True).dt.tz_convert(None)
        found = pandas.Series(pandas.NaT, index=words.index, dtype="datetime64[ns]")
        for time in TIMES:
            found = found.fillna(pandas.to_datetime(words, format=self.dates + time, errors="coerce"))
        return found

    def plain(self) -> dict[str, str]:
        return self._asdict()


class Switches(NamedTuple):
    """true and false, in any case, as 1 and 0."""

    switches: str = "true"
    kinds = "biuf"
    convention = ""
    example = "true and false"

    def read(self, words: Any) -> Any:
        return words.str.lower().map({self.switches: 1.0, "false": 0.0}).astype("float64")

    def plain(self) -> dict[str, str]:
        return self._asdict()


Reading = Numbers | Dates | Switches
NUMBERS = [Numbers(*marks) for marks in (".", ",", ".,", ",.", ". ", ", ", ".'", ",'")]
FORMATS = ("ISO8601", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y")
DATES = [Dates(written) for written in (*FORMATS, "%d-%m-%Y", "%m-%d-%Y")]
KEPT_NONE = [Dates(), Numbers(), Switches()]  # readings before files held them: what pandas takes for a number or date


def reading_of(plain: Mapping[str, str]) -> Reading:
    """The reading that `plain` described."""
    made = next(kind for kind in (Numbers, Dates, Switches) if kind._fields[0] in plain)
    return made(**plain)


class Found(NamedTuple):
    """The readings of a table's columns. A column that is not among them holds words."""

    readings: dict[str, Reading]
    notes: list[tuple[str, str]]  # a column, and what a reader of the table should know of it

    def plain(self, names: Iterable[Any] | None = None) -> dict[str, dict[str, str]]:
        """The readings of the named columns, or of all, as plain values."""
        return {name: one.plain() for name, one in self.readings.items() if names is None or name in names}

    def notes_of(self, names: Iterable[Any]) -> list[str]:
        """The notes about the named columns."""
        return [f"column {name!r} {note}" for name, note in self.notes if name in names]


def find(frame: Any, names: Iterable[str], decimal: str | None = None, dates: str | None = None) -> Found:
    """How the named columns of a DataFrame are read.

    `decimal` ("." or ",") and `dates` ("day-first" or "month-first") settle what can be read in several ways.

    Raises DataError for a column that can be read in several ways where nothing settles it, and for one that mixes
    numbers and words.
    """
    names = list(names)
    fits = {name: _fitting(words_of(frame[name])) for name in names if is_text(frame[name])}
    usual = _usual(fits.values(), decimal, dates)
    found = Found({}, [])
    for name in names:  # the words are made again: all of them at once would take several times a file's memory
        if name not in fits:
            found.readings[name] = next(one for one in KEPT_NONE if frame[name].dtype.kind in one.kinds)
        elif fits[name]:
            found.readings[name] = _chosen(name, words_of(frame[name]), fits[name], usual, found.notes)
            _note_written(name, frame[name], found)
        else:
            _check_words(name, words_of(frame[name]), found.notes)
    return found


def words_of(values: Any) -> Any:
    """The known cells of a column of text, of which none says that it is missing; spaces and minus signs made alike."""
    words = values.dropna().astype(str).map(lambda word: word.translate(SAME).strip())
    return words[~words.isin(GAPS)].astype(object)


def _fitting(words: Any) -> list[Reading]:
    """Of each convention, the first reading that fits all words. Two of one convention make the same of them."""
    if not len(words):
        return []
    marked = [one._replace(mark=_mark(words.iloc[0])) for one in NUMBERS]
    likely = [one for one in (*marked, *DATES, Switches()) if one.read(words.iloc[:FEW]).notna().all()]
    found: dict[str, Reading] = {}
    for one in likely:
        if one.convention not in found and one.read(words).notna().all():
            found[one.convention] = one
    return list(found.values())


def _mark(word: str) -> str:
    """The one mark of a unit or currency in a word; empty without one."""
    marks = {letter for letter in word if letter in "%‰°" or unicodedata.category(letter) == "Sc"}
    return marks.pop() if len(marks) == 1 else ""


def _usual(fits: Iterable[Sequence[Reading]], decimal: str | None, dates: str | None) -> set[str]:
    """The conventions of this table: as asked, else those of columns that can be read in one way only."""
    seen: set[str] = set()
    for one in fits:
        conventions = {reading.convention for reading in one}
        seen |= conventions if len(conventions) == 1 else set()
    for asked, pair in ((decimal, {".", ","}), (dates, {"day-first", "month-first"})):
        if asked is not None or pair <= seen:
            seen = seen - pair | ({asked} if asked else set())
    return seen


def _chosen(name: str, words: Any, fits: Sequence[Reading], usual: set[str], notes: list[tuple[str, str]]) -> Reading:
    best = [reading for reading in fits if reading.convention in usual] or fits
    first, other = best[0], best[-1]
    differ = first.read(words) != other.read(words)
    if first == other or not differ.any():
        return first
    row = differ.idxmax()
    ways = f"{words[row]!r} as {_shown(first, words[[row]])} or as {_shown(other, words[[row]])}"
    option = "decimal" if isinstance(first, Numbers) else "dates"
    say = f"say {option} {first.convention!r} or {other.convention!r}"
    if first == NUMBERS[0]:  # as programs write numbers
        notes.append((name, f"can be read in two ways, {ways}, and is read in the first: {say} to settle it"))
        return first
    raise DataError(
        f"column {name!r} can be read in two ways, {ways}, and no other column shows which: {say}, or name the column "
        "in categories if it holds only names."
    )


def _shown(reading: Reading, word: Any) -> str:
    value = reading.read(word).iloc[0]
    return f"{value:.15g}" if isinstance(value, float) else str(value.date())


def _note_written(name: str, values: Any, found: Found) -> None:
    """Notes about numbers that are missing by a word, and about leading zeros, as codes have."""
    words = values.dropna().astype(str).str.strip()
    if (gaps := words[words.isin(GAPS)]).any():
        said = f"is missing where it says {' or '.join(map(repr, sorted(gaps.unique())))} ({plural(len(gaps), 'cell')})"
        found.notes.append((name, said))
    if (codes := words[words.str.match(r"[-+]?0\d")]).any() and isinstance(found.readings[name], Numbers):
        found.notes.append(
            (
                name,
                f"is read as numbers, with leading zeros ({codes.iloc[0]!r}): name it in categories if it is a code",
            )
        )


def _check_words(name: str, words: Any, notes: list[tuple[str, str]]) -> None:
    """Notes where a column of words looks like numbers. Raises DataError where most of its cells are numbers."""
    if not len(words):
        return
    unread = min((one.read(words).isna() for one in NUMBERS), key=lambda unread: unread.sum())
    if unread.mean() < 0.5:
        row, word = unread.idxmax(), words[unread].iloc[0]
        raise DataError(
            f"column {name!r} holds numbers, and {word!r} in row {row_of(row)}. Correct it (an empty cell is a missing "
            "value). A feature may also be named in categories, if its numbers are only names, or left out with ignore."
        )
    if words.str.match(r"\W*\d").mean() >= 0.5:
        notes.append(
            (
                name,
                f"is read as words, but looks like numbers or dates ({words.iloc[0]!r}): write them plainly, as in "
                "1234.5 or 2024-05-31, or name the column in categories if they are names",
            )
        )


def typed(frame: Any, readings: Mapping[str, Mapping[str, str]] | None, names: Sequence[str] = ()) -> Any:
    """The table with its columns read as in training; columns that it lacks are passed over.

    `readings` are plain values, as `plain` gives them. None: a learner of an earlier version kept none, and the columns
    `names` are read as pandas would.

    Raises DataError for a cell that is written otherwise than in training.
    """
    made = frame.copy()
    for name in names if readings is None else readings:
        if name in made.columns:
            readable = KEPT_NONE if readings is None else [reading_of(readings[name])]
            made[name] = _typed(frame[name], name, readable)
    return made


def _typed(values: Any, name: str, readable: Sequence[Reading]) -> Any:
    """A column by the first reading that fits it, or the last."""
    if not is_text(values):
        if any(values.dtype.kind in one.kinds and not getattr(one, "mark", "") for one in readable):
            return values
        raise DataError(
            f"column {name!r} held {readable[0].example} in training, and holds bare values such as "
            f"{values.iloc[0]} here. Give them as text, as training had them."
        )
    words = words_of(values)
    made = [one.read(words) for one in readable]
    best = next((one for one in made if one.notna().all()), made[-1])
    if (unread := best.isna()).any():
        raise DataError(
            f"column {name!r} held {readable[-1].example} in training; row {row_of(unread.idxmax())} has "
            f"{words[unread].iloc[0]!r}. Write it as the training table did."
        )
    whole = isinstance(readable[-1], Numbers) and len(words) == len(values) and words.str.fullmatch(r"[-+]?\d+").all()
    return best.astype("int64") if whole else best.reindex(values.index)
