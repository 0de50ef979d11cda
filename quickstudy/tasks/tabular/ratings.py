"""Cold-start recommendation: a user is a task, a rated item is an example of it.

    y = (rating - mean) / std
    x = [ s_i / (n_i + prior) / std,  log10(1 + n_i),  (c_i, v_i) / std,  the features of item i ]

n_i counts the ratings of item i by training users, and s_i sums their differences from the mean of all ratings. The
first number is therefore the item's mean rating, shrunk towards the overall mean. c_i and v_i, if asked for, are the
item's offset and factors in a factorisation of those ratings (`tabular.factors`). A linear head on them is the
fold-in of a new user.

For training users, all of these are computed without the user's own rating of the item, so that no rating sees itself
(in the factorisation, with the users fixed). An item that no training user rated is cold: its statistics are zero, and
only its features describe it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from quickstudy.base.words import plural
from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.splits import by_name, check_split
from quickstudy.tasks.tabular import columns
from quickstudy.tasks.tabular.cells import Found, find, typed
from quickstudy.tasks.tabular.columns import as_numbers, as_words
from quickstudy.tasks.tabular.factors import Ratings, factorise
from quickstudy.tasks.tabular.frames import (
    SPLIT,
    check_columns,
    listed,
    need_pandas,
    read_splits,
)
from quickstudy.tasks.tabular.groups import GroupTasks
from quickstudy.tasks.tabular.items import Catalogue, catalogue_of, plain
from quickstudy.tasks.tabular.tables import (
    READINGS,
    Roles,
    as_trained,
    as_written,
    clean,
    group_tasks,
    learn_scale,
    moment,
    rows_of,
)

DIGITS = 4  # decimals that are kept of a statistic


class Statistics(NamedTuple):
    """What the ratings of training users say about items: n, s, and c and v if asked for."""

    items: list[str]  # sorted
    of_items: np.ndarray  # [items, 2 or 3 + factors]
    of_rows: Any  # a DataFrame: for each rating, the same statistics of its item, computed without that rating


def from_ratings(
    ratings: Any,
    split: str,
    *,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    time: str | None = None,
    items: Any = None,
    item_id: str | None = None,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    shots: int = 5,
    queries: int = 10,
    least: int = 2,
    factors: int = 0,
    prior: float = 3.0,
    lam: float = 20.0,
    decimal: Literal[".", ","] | None = None,
    dates: Literal["day-first", "month-first"] | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> GroupTasks:
    """Tasks from ratings: a task is one user, and its examples are the items that the user rated.

    ratings     one rating per row: a CSV, TSV or Parquet file or a DataFrame, split 60/20/20 by a hash of the users'
                names (the same on every machine); or your own splits, a dict of DataFrames or a folder of files, with
                the names train, val and test
    user        the column that names the user; item: the item; rating: the number to predict
    shots       support ratings of a user; queries: query ratings
    time        a column of dates or numbers, by which support ratings come before query ratings
    items       a table of the items' features, a file or a DataFrame; lists such as "Action|Drama" become a column of
                0 and 1 for each level, other columns are treated as in `from_table`
    item_id     its column of item names; None: the same as in the ratings; ignore: columns of the table to leave out;
                categories: columns of numbers that are only names
    least       ratings that a user needs to be a task, at least 2; ratings of other users still count for the items
    factors     length of the items' vectors learned from the ratings of training users; 0: none
    prior       an item's mean rating is shrunk as if it had this many more ratings, all equal to the mean
    lam         weight of the squared length of the factors
    decimal, dates  how numbers and dates are read where the tables leave it open, as in `from_table`
    preprocess  what an earlier learner learned about the items: `trained.preprocess`; None: learn it here

    Answers are scaled by mean and standard deviation of the training ratings. Predictors answer in the rating's own
    unit, for rows (a DataFrame, dicts) with the item's name, and with its features if training did not know the item.
    Ratings without a user, an item or a number are left out. If a user rated an item several times, the last rating
    counts. `notes` says how many were left out. `GroupTasks` describes what happens to users with few ratings.

    >>> import pandas, quickstudy as qs
    >>> rows = [{"user": f"user {u}", "item": i, "rating": (u * i) % 5} for u in range(10) for i in range(6)]
    >>> tasks = qs.tasks.from_ratings(pandas.DataFrame(rows), "train", shots=2, queries=2)
    >>> tasks.sample(3).support.x.shape
    torch.Size([3, 2, 2])

    Raises DataError for bad data, naming column and row, ConfigError for an unknown split and for `least`, `factors`,
    `prior` or `lam` out of range.
    """
    check_split(split)
    if least < 2 or factors < 0 or prior <= 0 or lam <= 0:
        raise ConfigError(
            "least must be at least 2, factors 0 or more, prior and lam above 0; "
            f"got least={least}, factors={factors}, prior={prior}, lam={lam}."
        )
    frame, assigned, name = read_splits(ratings, as_written(preprocess))
    named = _named(frame, user, item, rating, time)
    frame = frame[[column for column in frame.columns if column in (*named.values(), SPLIT)]]
    read = Found({}, []) if preprocess else find(frame, [c for c in (rating, time) if c], decimal, dates)
    notes = read.notes_of(named.values())
    frame = as_trained(preprocess, frame) if preprocess else typed(frame, read.plain())
    frame = _clean(frame, named, notes)
    splits = assigned if assigned is not None else by_name(dict.fromkeys(frame[user]))
    learned, of_rows = dict(preprocess or {}), None
    if split == "train" or not learned:
        train = rows_of(frame, user, splits, "train", name)
        names = {"task": user, "target": rating, "time": time, "item": item}
        settings = learned or _settings(train, names | {"factors": factors, "prior": prior, "lam": lam})
        found = _statistics(train, settings)
        of_rows = found.of_rows if split == "train" else None
        if learned:
            _check_same(found, learned)
        else:
            catalogue = catalogue_of(items, item_id or item, ignore, categories, (decimal, dates), notes)
            learned = settings | _kept(found, catalogue, notes)
            learned[READINGS] = catalogue.readings | read.plain()
    mine = _enough(rows_of(frame, user, splits, split, name), user, least, split, notes)
    encoded = functools.partial(encode, learned, statistics=of_rows)
    return group_tasks(mine, Roles(user, rating, time, []), learned, encoded, split, shots, queries, name, notes)


def encode(learned: Mapping[str, Any], rows: Any, statistics: Any = None) -> np.ndarray:
    """Rows that name items as numbers [n, d], float32.

    `statistics` is a DataFrame, indexed like the rows, with the statistics of each row's item; None: the learned ones.

    Raises DataError for rows that name no item.
    """
    places = _places(learned, rows)
    table = np.array(learned["statistics"], dtype=np.float64)
    of_items = np.concatenate([table, np.zeros_like(table[:1])])  # place -1, the last row, is for cold items
    n, s, *vectors = (of_items[places] if statistics is None else statistics.loc[rows.index].to_numpy()).T
    made = [s / (n + learned["prior"]) / learned["std"], np.log10(1 + n), *(v / learned["std"] for v in vectors)]
    own = columns.encode(learned["columns"], _features(learned, rows, places))
    return np.concatenate([np.stack(made, axis=1), own], axis=1).astype(np.float32)


def check_known(learned: Mapping[str, Any], rows: Any) -> None:
    """Raise DataError where nothing is known about any row's item. Usually the items then have other kinds of names."""
    described = any(column["name"] in rows.columns for column in learned["columns"])
    if not described and (_places(learned, rows) < 0).all():
        raise DataError(
            f"training knew none of these items, such as {as_words(rows[learned['item']]).iloc[0]!r}, but others, such "
            f"as {learned['items'][0]!r}. Name them as the training ratings did."
        )


def _places(learned: Mapping[str, Any], rows: Any) -> np.ndarray:
    """The place of each row's item among the known items, -1 if it is unknown."""
    item = learned["item"]
    check_columns(rows, {"item": [item]}, "the table")
    if (lacking := rows[item].isna().to_numpy()).any():
        raise DataError(f"row {lacking.argmax() + 2} names no item: column {item!r} is empty there. Fill it in.")
    return need_pandas().Index(learned["items"]).get_indexer(as_words(rows[item]))


def _features(learned: Mapping[str, Any], rows: Any, places: np.ndarray) -> Any:
    """The features of each row's item: the learned ones, or for an unknown item those in the row, if there are any."""
    found = {}
    for column in learned["columns"]:
        name, kept = column["name"], learned["features"][column["name"]]
        given = plain(column, rows[name]) if name in rows.columns else [None] * len(rows)
        values = [kept[place] if place >= 0 else own for place, own in zip(places, given, strict=True)]
        found[name] = need_pandas().Series(values, dtype=float if column["kind"] == "number" else object)
    return need_pandas().DataFrame(found, index=range(len(rows)))


# --- files -----------------------------------------------------------------------------------------------------------


def _named(frame: Any, user: str, item: str, rating: str, time: str | None) -> dict[str, str]:
    """Role -> column. Raises DataError where a column is missing, ConfigError where one has two roles."""
    named = {"user": user, "item": item, "rating": rating} | ({"time": time} if time is not None else {})
    check_columns(frame, {role: [column] for role, column in named.items()}, "the table")
    if len(set(named.values())) < len(named):
        raise ConfigError(
            f"user, item, rating and time are different columns; got {', '.join(map(repr, named.values()))}."
        )
    return named


def _clean(frame: Any, named: Mapping[str, str], notes: list[str]) -> Any:
    """The ratings with users and items as words, in order of time; what was left out is appended to `notes`."""
    frame, left_out = clean(frame, named)
    notes += left_out
    user, item, rating = (named[role] for role in ("user", "item", "rating"))
    time = named.get("time")
    plain = {user: as_words(frame[user]), item: as_words(frame[item]), rating: as_numbers(frame[rating], rating)}
    frame = frame.assign(**plain)
    if time is not None:
        frame = frame.iloc[np.argsort(moment(frame[time], time), kind="stable")]
    same = [column for column in (user, item, SPLIT) if column in frame.columns]
    if (again := frame.duplicated(same, keep="last")).any():
        notes.append(
            f"{plural(int(again.sum()), 'rating')} left out: the user rated the item again, and the last counts"
        )
    return frame[~again]


def _enough(mine: Any, user: str, least: int, split: str, notes: list[str]) -> Any:
    """The ratings of users who have enough of them."""
    few = mine.groupby(user)[user].transform("size") < least
    if few.all():
        raise DataError(f"no {split} user has {least} ratings.")
    if few.any():
        counting = "; what they rated counts for the items all the same" if split == "train" else ""
        users = plural(mine[user][few].nunique(), f"{split} user")
        notes.append(f"{users} with fewer than {plural(least, 'rating')} left out{counting}")
    return mine[~few]


# --- what is learned about the items ---------------------------------------------------------------------------------


def _settings(train: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the statistics depend on."""
    target = names["target"]
    return {"kind": "ratings", **names, **learn_scale(train[target].to_numpy(), target)}


def _statistics(train: Any, settings: Mapping[str, Any]) -> Statistics:
    items, item = np.unique(train[settings["item"]].to_numpy().astype(str), return_inverse=True)
    above = train[settings["target"]].to_numpy() - settings["mean"]
    of_items = np.stack([np.bincount(item), np.bincount(item, above)], axis=1)
    of_rows = of_items[item] - np.stack([np.ones_like(above), above], axis=1)
    if settings["factors"]:
        _, user = np.unique(train[settings["task"]].to_numpy().astype(str), return_inverse=True)
        given = Ratings(user, item, above)
        vectors, without, _ = factorise(given, settings["factors"], settings["prior"], settings["lam"])
        of_items, of_rows = np.concatenate([of_items, vectors], axis=1), np.concatenate([of_rows, without], axis=1)
    return Statistics(items.tolist(), of_items, need_pandas().DataFrame(of_rows, index=train.index))


def _kept(found: Statistics, catalogue: Catalogue, notes: list[str]) -> dict[str, Any]:
    """The items as plain values for JSON: their statistics, and the features of all items in the table."""
    frame, described, _ = catalogue
    unknown = set(found.items).difference(frame.index)
    if len(frame) and len(unknown) == len(found.items):
        raise DataError(
            f"the table of items has none of those rated, such as {found.items[0]!r}, but others, such as "
            f"{frame.index[0]!r}. Name its column of names with item_id."
        )
    if len(frame) and unknown:
        notes.append(f"{plural(len(unknown), 'rated item')} not in the table of items: {listed(sorted(unknown))}")
    items = sorted({*found.items, *frame.index})
    of_items = need_pandas().DataFrame(found.of_items, index=found.items).reindex(items, fill_value=0.0)
    return {
        "items": items,
        "statistics": of_items.round(DIGITS).to_numpy().tolist(),
        "columns": described,
        "features": {c["name"]: plain(c, frame[c["name"]].reindex(items)) for c in described},
    }


def _check_same(found: Statistics, learned: Mapping[str, Any]) -> None:
    """Raise DataError where these are not the ratings that a learner was trained on.

    A user's own ratings can only be taken out of statistics that hold them.
    """
    counts = {item: row[0] for item, row in zip(learned["items"], learned["statistics"], strict=True) if row[0]}
    if counts != dict(zip(found.items, found.of_items[:, 0], strict=True)):
        raise DataError(
            "these are other training ratings than those that the items' statistics were learned from (preprocess). "
            "Give the same ratings, or another split."
        )
