"""Tasks from a table with a column that names the task: customers, hospitals, machines, schools."""

from __future__ import annotations

import functools
import gzip
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from quickstudy.base import memory
from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.tasks.splits import SPLITS, by_name, check_disjoint, check_split
from quickstudy.tasks.tabular.columns import (
    as_frame,
    as_numbers,
    as_words,
    check_sane,
    counts_rows,
    encode,
    is_numeric,
    learn_columns,
    need_pandas,
    tells,
)
from quickstudy.tasks.tabular.groups import GroupTasks

EXTENSIONS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
MISSING = ["?"]  # besides what pandas treats as missing: empty, NA, NaN, null, None
BYTES = 6  # peak memory for each byte of a file while it is read
LISTED = 5  # names listed in one message
IDENTIFIER = re.compile(r"(^|[_\W])(id|no|nr|key|code)$|[a-z](id|Id|ID)$", re.ASCII)
FEWEST_IDENTIFIERS = 20  # a column with no more different numbers is not taken for an identifier
SPLIT = "__split__"  # the column of joined tables that says which split a row came from


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
    preprocess  how columns become numbers, from an earlier learner: `trained.preprocess`; None: learn it here

    All other columns are features (see `tabular.columns`). Their means, standard deviations and levels are
    those of training tasks. A target of numbers is scaled by mean and standard deviation of training tasks; predictors
    answer in its own unit. Rows without a target, exact copies of other rows, columns that only number the rows, and
    tasks that are too small are left out; `notes` says how many. `GroupTasks` describes what happens to tasks with few
    rows.

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
    frame, assigned, name = read_splits(table)
    roles = _roles(frame, task, target, time, ignore, categories)
    frame, notes = clean(frame, {"task": task, "target": target, "time": time})
    roles = roles._replace(features=_useful(frame, roles, categories, notes))
    splits = assigned if assigned is not None else by_name(dict.fromkeys(as_words(frame[roles.task])))
    learned = dict(preprocess or _learn(frame, roles, splits, kind, categories))
    mine = rows_of(frame, task, splits, split, name)
    return group_tasks(
        mine, roles, learned, functools.partial(encode, learned["columns"]), split, shots, queries, name, notes
    )


def read_table(path: str | os.PathLike) -> Any:
    """A CSV (also gzipped, also with semicolons or tabs) or Parquet file as a DataFrame.

    Raises DataError where it cannot be read, or needs more memory than the machine has.
    """
    pandas, path = need_pandas(), Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}. Give a table: {', '.join(EXTENSIONS)}.")
    _check_memory(path)
    try:
        if path.suffix == ".parquet":
            return pandas.read_parquet(path)
        return pandas.read_csv(path, sep=_separator(path), na_values=MISSING, encoding="utf-8-sig", low_memory=False)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not text in UTF-8 (byte {error.start}). Save it again as 'CSV UTF-8'."
        ) from error
    except ImportError as error:
        raise DataError(f"reading {str(path)!r} needs pyarrow: pip install 'quickstudy[tables]'.") from error
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{str(path)!r} cannot be read as a table: {str(error).splitlines()[0]}.") from error


def split_files(folder: Path) -> dict[str, Path]:
    """Split -> file, for those of the tables train, val and test that a folder holds."""
    return {split: file for split in SPLITS for end in EXTENSIONS if (file := folder / f"{split}{end}").is_file()}


def check_columns(frame: Any, given: Mapping[str, Sequence[str]], name: str) -> None:
    """Raise DataError unless the table has all columns given for each role; `name` names the table in the error."""
    names = [str(column) for column in frame.columns if column != SPLIT]
    for role, columns in given.items():
        if lacking := next((column for column in columns if column not in names), None):
            raise DataError(
                f"{name} has no column {lacking!r} ({role}); it has {listed(names, 30)}.{suggest(lacking, names)}"
            )


def _check_memory(path: Path) -> None:
    packed = 8 if path.suffix in (".gz", ".parquet") else 1
    needed, there = packed * BYTES * path.stat().st_size, memory.free(torch.device("cpu"))
    if there is not None and needed > there:
        raise DataError(
            f"{str(path)!r} needs about {needed / 1e9:.1f} GB of memory, of which {there / 1e9:.1f} GB are free. Leave "
            "columns out of the file, take a part of its tasks, or use a larger machine."
        )


def _separator(path: Path) -> str:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        header = file.readline()
    return max((",", ";", "\t"), key=lambda mark: header.count(mark.encode()))


def read_splits(table: Any) -> tuple[Any, dict[str, Mapping[str, Any]] | None, str]:
    """The rows as a DataFrame, {} if the user made the splits (column `SPLIT` names them) else None, and a name.

    Raises DataError where the tables cannot be read or differ in their columns.
    """
    pandas = need_pandas()
    if isinstance(table, pandas.DataFrame):
        return table.reset_index(drop=True), None, "table"
    if isinstance(table, Mapping):
        frames = {split: as_frame(frame) for split, frame in table.items()}
        return _joined(frames, {split: f"the table {split!r}" for split in frames}), {}, "table"
    path = Path(table).expanduser()
    if not path.is_dir():
        return read_table(path), None, path.name.split(".")[0]
    found = split_files(path)
    if not found:
        raise DataError(f"{str(path)!r} holds no tables train, val, test ({', '.join(EXTENSIONS)}).")
    frames = {split: read_table(file) for split, file in found.items()}
    return _joined(frames, {split: str(file) for split, file in found.items()}), {}, path.resolve().name


def _joined(frames: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """The tables of several splits as one, with a column that says which."""
    first = next(iter(frames))
    for split, frame in frames.items():
        if lacking := sorted(set(map(str, frames[first].columns)) - set(map(str, frame.columns))):
            raise DataError(f"{names[split]} lacks the column {lacking[0]!r}, which {names[first]} has.")
    whole = need_pandas().concat(list(frames.values()), ignore_index=True)
    whole[SPLIT] = np.repeat(list(frames), [len(frame) for frame in frames.values()])
    return whole


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
            notes.append(f"{counted(int(lacking.sum()), 'row')} without {role} ({column!r}) left out")
            frame = frame[~lacking]
    if len(frame) == 0:
        all_of = " and ".join(repr(column) for column in needed.values() if column is not None)
        raise DataError(f"no row of the table has both {all_of}.")
    if (copies := frame.duplicated()).any():
        notes.append(
            f"{counted(int(copies.sum()), 'row')} that copy another one left out: one of a pair could be asked for "
            "while the other is shown"
        )
        frame = frame[~copies]
    return frame, notes


def _useful(frame: Any, roles: Roles, categories: Sequence[str], notes: list[str]) -> list[str]:
    idle = [
        name
        for name in roles.features
        if name not in categories and name != roles.time and counts_rows(frame[name], name)
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
    frame: Any, roles: Roles, splits: Mapping[str, Mapping[str, Any]], kind: str | None, categories: Sequence[str]
) -> dict[str, Any]:
    """What is learned on training tasks: how features become numbers, and the target's classes or scale."""
    train = frame[_in_split(frame, roles.task, splits, "train")]
    if len(train) == 0:
        raise DataError("the table has no training tasks: columns are scaled by what they hold.")
    columns = learn_columns(train, roles.features, categories)
    learned: dict[str, Any] = {"kind": "table", **{w: getattr(roles, w) for w in ("task", "target", "time")}}
    learned["columns"] = columns
    if _is_class(train[roles.target], roles.target, kind):
        # Take the names from all splits, because a class may occur in a test task only.
        learned["classes"] = sorted(as_words(frame[roles.target]).unique())
        if len(learned["classes"]) < 2:
            raise DataError(f"the target {roles.target!r} is {learned['classes'][0]!r} in every row: nothing to learn.")
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


def learn_scale(answers: np.ndarray, target: str) -> dict[str, float]:
    """Mean and standard deviation of training answers [n]. Raises DataError for absurd ones and if all are equal."""
    check_sane(answers, target)
    if answers.std() == 0:
        raise DataError(f"the target {target!r} is {answers[0]:g} in every training row: nothing to learn.")
    return {"mean": float(answers.mean()), "std": float(answers.std())}


def _is_class(values: Any, name: str, kind: str | None) -> bool:
    if kind not in (None, "number", "class"):
        raise ConfigError(f"kind is 'number' or 'class', got {kind!r}.{suggest(str(kind), ('number', 'class'))}")
    if kind is None:
        return values.dtype.kind == "b" or values.nunique() == 2 or not is_numeric(values, name)
    if kind == "number" and not is_numeric(values, name):
        raise DataError(f"the target {name!r} holds words, such as {values.iloc[0]!r}: kind is 'class'.")
    return kind == "class"


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
    if not is_numeric(values, name):
        raise DataError(
            f"the time column {name!r} holds neither numbers nor dates like 2024-05-31: {values.iloc[0]!r}."
        )
    return as_numbers(values, name)


def answers_of(learned: Mapping[str, Any], values: Any) -> np.ndarray:
    """The target as the learner reads it: class numbers [n], or scaled values [n, 1].

    Raises DataError for a class that training did not know.
    """
    if "classes" not in learned:
        scaled = (as_numbers(values, learned["target"]) - learned["mean"]) / learned["std"]
        return scaled.astype(np.float32)[:, None]
    words, known = as_words(values).to_numpy().astype(str), np.array(learned["classes"])
    places = np.searchsorted(known, words).clip(max=len(known) - 1)
    if (unknown := known[places] != words).any():
        raise DataError(
            f"the target {learned['target']!r} holds {words[unknown][0]!r}; the classes of training are "
            f"{listed(known.tolist())}.{suggest(words[unknown][0], known.tolist())}"
        )
    return places.astype(np.int64)


def _small(tasks: GroupTasks) -> list[str]:
    """Notes about tasks with few rows."""
    sizes = tasks.starts.diff()
    usable = set(tasks.usable)
    idle = [name for g, name in enumerate(tasks.names) if g not in usable]
    few = [tasks.names[g] for g in tasks.usable if int(sizes[g]) < (tasks.ways or 1) * (tasks.shots + tasks.queries)]
    said = []
    if idle:
        why = "a single row" if tasks.classes is None else "a single class or too few rows"
        said.append(f"{counted(len(idle), f'{tasks.split} task')} left out, with {why}: {listed(idle)}")
    if few:
        said.append(
            f"{counted(len(few), f'{tasks.split} task')} with fewer rows than shots and queries ask for: used with "
            f"what they have: {listed(few)}"
        )
    return said


def _check_disjoint(frame: Any, task: str) -> None:
    splits = {split: sorted(set(as_words(part[task]))) for split, part in frame.groupby(SPLIT, sort=False)}
    advice = "Put all rows of a task into one file, or give one table and it is split by task."
    check_disjoint("task", "tasks", splits, advice)


def counted(n: int, what: str) -> str:
    """'1 row', '1,200 rows'."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def listed(names: Sequence[Any], most: int = LISTED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(str(name)) for name in names[:most]) + more
