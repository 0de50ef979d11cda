"""Tasks from a table with a column that names the task: customers, hospitals, machines, schools."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from quickstudy.base.words import plural
from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.splits import by_name, check_disjoint, check_split
from quickstudy.tasks.tabular.cells import Found, find, typed, words_of
from quickstudy.tasks.tabular.columns import (
    as_numbers,
    as_words,
    counts_rows,
    encode,
    learn_columns,
    remarks,
    tells,
)
from quickstudy.tasks.tabular.frames import SPLIT, check_columns, is_text, listed, read_splits
from quickstudy.tasks.tabular.groups import GroupTasks
from quickstudy.tasks.tabular.targets import answers_of, is_class, learn_scale, named_like_gaps

IDENTIFIER = re.compile(r"(^|[_\W])(id|no|nr|key|code)$|[a-z](id|Id|ID)$", re.ASCII)
FEWEST_IDENTIFIERS = 20  # a column with no more different numbers is not taken for an identifier
READINGS = "readings"  # in preprocess: how columns of text are read, see `tabular.cells`


class Roles(NamedTuple):
    """What the columns of a table are for."""

    task: str  # which task a row belongs to
    target: str  # what to predict
    time: str | None  # the order of a task's rows
    features: list[str]


def from_table(
    table: Any,
    split: str,
    *,
    task: str,
    target: str,
    shots: int = 10,
    queries: int = 10,
    time: str | None = None,
    kind: Literal["number", "class"] | None = None,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    decimal: Literal[".", ","] | None = None,
    dates: Literal["day-first", "month-first"] | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> GroupTasks:
    """Tasks from a table: the rows of one customer, hospital or machine are one task.

    table       a CSV, TSV or Parquet file or a DataFrame, whose tasks are split 60/20/20 by a hash of their names (the
                same on every machine); or your own splits, a dict of DataFrames or a folder of files, with the names
                train, val and test
    task        the column that names a row's task; target: the one to predict
    shots       support rows of a task (per class, if the target is a class); queries: query rows, likewise
    time        a column of dates or numbers, by which support rows come before query rows
    kind        "number" or "class", what the target is; None: class for words, booleans or two different values
    ignore      columns to leave out; categories: columns of numbers that are only names, such as a kind of pain
    decimal     what 1,234 and 1.234 mean, where no other column shows it: "," or "." is the decimal mark; dates:
                "day-first" or "month-first", what 05/06/2024 means, likewise
    preprocess  how columns become numbers, from an earlier learner: `trained.preprocess`; None: learn it here

    All other columns are features (see `tabular.columns`); how their text is read is said in `tabular.cells`. Their
    means, standard deviations and levels are those of training tasks. A target of numbers is scaled by mean and
    standard deviation of training tasks; predictors answer in its own unit. Names of tasks and classes are text as it
    is written, and only an empty cell is missing. Rows without a target, exact copies of other rows, columns that only
    number the rows, and tasks that are too small are left out; `notes` says how many. `GroupTasks` describes what
    happens to tasks with few rows.

    >>> import pandas, quickstudy as qs
    >>> pupils = [{"school": "abcdefghij"[i % 10], "age": 6 + i % 7, "mark": i % 3} for i in range(60)]
    >>> rows = pandas.DataFrame(pupils)
    >>> tasks = qs.tasks.from_table(rows, "train", task="school", target="mark", shots=2, queries=2)
    >>> tasks.sample(3).support.x.shape
    torch.Size([3, 2, 1])

    Raises DataError for bad data, naming column, row or task, ConfigError for an unknown split or kind and where task
    and target are the same column.
    """
    check_split(split)
    frame, assigned, name = read_splits(table, as_written(preprocess))
    roles = _roles(frame, task, target, time, ignore, categories)
    if preprocess:
        found, frame = Found({}, []), as_trained(preprocess, frame)
    else:
        found = find(frame, _readable(frame, roles, kind, categories), decimal, dates)
        frame = typed(frame, found.plain())
    frame, notes = clean(frame, {"task": task, "target": target, "time": time})
    splits = assigned if assigned is not None else by_name(dict.fromkeys(as_words(frame[roles.task])))
    if preprocess:
        learned = dict(preprocess)
    else:
        roles = roles._replace(features=_useful(frame, roles, categories, notes))
        notes += found.notes_of([*roles.features, target, time])
        learned = _learn(frame, roles, splits, kind, categories, notes)
        learned[READINGS] = found.plain([*roles.features, target, time])
    mine = rows_of(frame, task, splits, split, name)
    notes += remarks(learned["columns"], mine)
    return group_tasks(
        mine, roles, learned, functools.partial(encode, learned["columns"]), split, shots, queries, name, notes
    )


def as_written(preprocess: Mapping[str, Any] | None) -> bool:
    """Whether text files are read as they are written: not for learners of versions that left it to pandas."""
    return not preprocess or READINGS in preprocess


def as_trained(learned: Mapping[str, Any], frame: Any) -> Any:
    """The table with its columns read as in training. Raises DataError for a cell that is written otherwise."""
    numbers = [column["name"] for column in learned["columns"] if column["kind"] == "number"]
    answers = [] if "classes" in learned else [learned["target"]]
    return typed(frame, learned.get(READINGS), [*numbers, *answers, *filter(None, [learned.get("time")])])


def _readable(frame: Any, roles: Roles, kind: str | None, categories: Sequence[str]) -> list[str]:
    """The columns that may hold numbers or dates: not names of categories, and not a target of classes."""
    values = frame[roles.target]
    words = words_of(values) if is_text(values) else values
    number = kind == "number" or (kind is None and words.nunique() > 2)
    names = dict.fromkeys([*roles.features, *filter(None, [roles.time]), *[roles.target] * number])
    return [name for name in names if name not in categories]


def _roles(
    frame: Any, task: str, target: str, time: str | None, ignore: Sequence[str], categories: Sequence[str]
) -> Roles:
    names = [str(column) for column in frame.columns if column != SPLIT]
    if len(frame) == 0:
        raise DataError("the table holds no rows.")
    given = {"task": [task], "target": [target], "time": [time] if time else []}
    check_columns(frame, given | {"ignore": ignore, "categories": categories}, "the table")
    if task == target:
        raise ConfigError(f"task and target are both {task!r}: one names the task, the other what to predict.")
    return Roles(task, target, time, [n for n in names if n not in (task, target, *ignore)])


def clean(frame: Any, needed: Mapping[str, str | None]) -> tuple[Any, list[str]]:
    """The table without incomplete rows and without exact copies of rows, and notes about what was left out.

    `needed` maps roles to columns; a row without a value in one of these is incomplete. Raises DataError where no row
    is left.
    """
    notes: list[str] = []
    for role, column in needed.items():
        if column is not None and (lacking := frame[column].isna()).any():
            notes.append(f"{plural(int(lacking.sum()), 'row')} without {role} ({column!r}) left out")
            frame = frame[~lacking]
    if len(frame) == 0:
        all_of = " and ".join(repr(column) for column in needed.values() if column is not None)
        raise DataError(f"no row of the table has both {all_of}.")
    if (copies := frame.duplicated()).any():
        notes.append(
            f"{plural(int(copies.sum()), 'row')} that copy another one left out: one of a pair could be asked for "
            "while the other is shown"
        )
        frame = frame[~copies]
    return frame, notes


def _useful(frame: Any, roles: Roles, categories: Sequence[str], notes: list[str]) -> list[str]:
    idle = [
        name for name in roles.features if name not in categories and name != roles.time and counts_rows(frame[name])
    ]
    if idle:
        notes.append(f"column{'s' * (len(idle) > 1)} {listed(idle)} left out: a number or name for each row")
    features = [name for name in roles.features if name not in idle]
    if odd := [name for name in features if name not in (*categories, roles.time) and _seems_identifier(frame[name])]:
        notes.append(
            f"column{'s' * (len(odd) > 1)} {listed(odd)} used as a number, but named like an identifier, which means "
            "nothing for a new one: leave it out (--ignore) if it is"
        )
    if not features:
        raise DataError(f"the table has no feature: all its columns are {roles.task!r}, {roles.target!r} or left out.")
    return features


def _seems_identifier(column: Any) -> bool:
    """Whole numbers, many different ones, under a name such as childid, pupil_no or key."""
    named = IDENTIFIER.search(str(column.name))
    return bool(named) and column.dtype.kind in "iu" and column.nunique() > FEWEST_IDENTIFIERS


def _learn(
    frame: Any,
    roles: Roles,
    splits: Mapping[str, Mapping[str, Any]],
    kind: str | None,
    categories: Sequence[str],
    notes: list[str],
) -> dict[str, Any]:
    """What is learned on training tasks: how features become numbers, and the target's classes or scale."""
    train = frame[_in_split(frame, roles.task, splits, "train")]
    if len(train) == 0:
        raise DataError("the table has no training tasks: columns are scaled by what they hold.")
    columns = learn_columns(train, roles.features, categories)
    learned: dict[str, Any] = {"kind": "table", **{w: getattr(roles, w) for w in ("task", "target", "time")}}
    learned["columns"] = columns
    if is_class(train[roles.target], roles.target, kind):
        # Take the names from all splits, because a class may occur in a test task only.
        learned["classes"] = sorted(as_words(frame[roles.target]).unique())
        if len(learned["classes"]) < 2:
            raise DataError(f"the target {roles.target!r} is {learned['classes'][0]!r} in every row: nothing to learn.")
        notes += named_like_gaps(learned["classes"], "class of the target")
        answers = np.searchsorted(learned["classes"], as_words(train[roles.target]).to_numpy().astype(str))
    else:
        answers = as_numbers(train[roles.target], roles.target)
        learned |= learn_scale(answers, roles.target)
    if leak := tells(columns, train, answers):
        raise DataError(
            f"column {leak!r} gives the target {roles.target!r} away: where one is known, so is the other. Leave it "
            f"out (ignore {leak!r}) if it is not there yet when a prediction is wanted."
        )
    return learned


def rows_of(frame: Any, task: str, splits: Mapping[str, Mapping[str, Any]], split: str, name: str) -> Any:
    """The rows of a split. Raises DataError where there are none, and where the user's own splits share a task."""
    if not splits:
        _check_disjoint(frame, task)
    mine = frame[_in_split(frame, task, splits, split)]
    if len(mine) == 0:
        raise DataError(f"{name} has no {split!r} tasks. It takes at least five tasks, or tables of your own splits.")
    return mine


def _in_split(frame: Any, task: str, splits: Mapping[str, Mapping[str, Any]], split: str) -> np.ndarray:
    if not splits:
        return (frame[SPLIT] == split).to_numpy()
    return as_words(frame[task]).isin(splits[split]).to_numpy()


def group_tasks(
    mine: Any,
    roles: Roles,
    learned: dict[str, Any],
    encoded: Callable[[Any], np.ndarray],
    split: str,
    shots: int,
    queries: int,
    name: str,
    notes: Sequence[str],
) -> GroupTasks:
    """The tasks of one split from its rows `mine`; `encoded` turns rows into numbers [n, d]."""
    moments = [moment(mine[roles.time], roles.time)] if roles.time else []
    mine = mine.iloc[np.lexsort([*moments, as_words(mine[roles.task])])]  # by task, then by time
    names, counts = np.unique(as_words(mine[roles.task]).to_numpy().astype(str), return_counts=True)
    made = GroupTasks(
        x=torch.from_numpy(encoded(mine)),
        y=torch.from_numpy(answers_of(learned, mine[roles.target])),
        starts=torch.from_numpy(np.concatenate([[0], counts.cumsum()])),
        names=names.tolist(),
        shots=shots,
        queries=queries,
        classes=tuple(learned["classes"]) if "classes" in learned else None,
        ordered=roles.time is not None,
        name=name,
        split=split,
        unit=learned.get("std", 1.0),
        preprocess=learned,
    )
    return made.replace(notes=(*notes, *_small(made)))


def moment(values: Any, name: str) -> np.ndarray:
    if is_text(values):
        raise DataError(
            f"the time column {name!r} holds neither numbers nor dates like 2024-05-31: {values.iloc[0]!r}."
        )
    return as_numbers(values, name)


def _small(tasks: GroupTasks) -> list[str]:
    """Notes about tasks with few rows."""
    sizes = tasks.starts.diff()
    usable = set(tasks.usable)
    idle = [name for g, name in enumerate(tasks.names) if g not in usable]
    few = [tasks.names[g] for g in tasks.usable if int(sizes[g]) < (tasks.ways or 1) * (tasks.shots + tasks.queries)]
    said = []
    if idle:
        why = "a single row" if tasks.classes is None else "a single class or too few rows"
        said.append(f"{plural(len(idle), f'{tasks.split} task')} left out, with {why}: {listed(idle)}")
    if few:
        said.append(
            f"{plural(len(few), f'{tasks.split} task')} with fewer rows than shots and queries ask for: used with "
            f"what they have: {listed(few)}"
        )
    return said


def _check_disjoint(frame: Any, task: str) -> None:
    splits = {split: sorted(set(as_words(part[task]))) for split, part in frame.groupby(SPLIT, sort=False)}
    advice = "Put all rows of a task into one file, or give one table and it is split by task."
    check_disjoint("task", "tasks", splits, advice)
