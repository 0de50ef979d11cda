"""A table of items that are rated: their names, how its columns are read, and the features that they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from quickstudy.errors import DataError
from quickstudy.tasks.tabular import columns
from quickstudy.tasks.tabular.cells import find, typed
from quickstudy.tasks.tabular.columns import as_numbers, as_words
from quickstudy.tasks.tabular.frames import as_frame, check_columns, is_text, listed, need_pandas, read_table


class Catalogue(NamedTuple):
    """The table of items, indexed by their names, and how its columns are read and become numbers."""

    frame: Any
    columns: list[columns.Column]
    readings: dict[str, dict[str, str]]


def catalogue_of(
    items: Any,
    item_id: str,
    ignore: Sequence[str],
    categories: Sequence[str],
    asked: tuple[str | None, str | None],
    notes: list[str],
) -> Catalogue:
    """The table of items; `asked` are `decimal` and `dates` of `from_ratings`."""
    pandas = need_pandas()
    if items is None:
        return Catalogue(pandas.DataFrame(), [], {})
    frame = as_frame(items) if isinstance(items, pandas.DataFrame) else read_table(items)
    check_columns(frame, {"item": [item_id], "ignore": ignore, "categories": categories}, "the table of items")
    names = [c for c in frame.columns if c not in (item_id, *ignore)]
    lists = [
        c for c in names if is_text(frame[c]) and frame[c].astype(str).str.contains(columns.MARK, regex=False).any()
    ]
    found = find(frame, [c for c in names if c not in (*lists, *categories)], *asked)
    frame = typed(frame, found.plain())
    frame = frame[~frame[item_id].isna()].drop_duplicates()
    index = as_words(frame[item_id])
    if (twice := index.duplicated()).any():
        raise DataError(f"item {index[twice].iloc[0]!r} is twice in the table of items. Give each item one row.")
    idle = [c for c in names if c not in categories and columns.counts_rows(frame[c])]
    if idle:
        notes.append(f"of items, {listed(idle)} left out: a number or name for each")
    useful = [c for c in names if c not in idle]
    notes += found.notes_of(useful)
    learned = columns.learn_columns(frame, useful, categories, lists)
    notes += columns.remarks(learned, frame)
    return Catalogue(frame.set_index(index), learned, found.plain(useful))


def plain(column: columns.Column, values: Any) -> list[float | str | None]:
    """A column as plain values for JSON."""
    found = as_numbers(values, column["name"]) if column["kind"] == "number" else as_words(values)
    return [None if gone else value for value, gone in zip(found.tolist(), values.isna(), strict=True)]
