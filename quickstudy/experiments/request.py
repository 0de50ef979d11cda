"""What a user asked for, in plain values, and the task sources that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Suppress, arg

from quickstudy import tasks as sources
from quickstudy.base.options import choice, several, switch, word
from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.tasks.tabular.frames import split_files

# Public data sets, which are downloaded.
PUBLIC: dict[str, Callable[..., Any]] = {
    "omniglot": sources.omniglot,
    "cifar_fs": sources.cifar_fs,
    "fc100": sources.fc100,
}
NAMED = ("glyphs", "sinusoid", *PUBLIC)
AUGMENTED = ("cifar_fs", "fc100")  # data sets whose training images can be changed at random


@dataclass(frozen=True)
class Request:
    """A request for tasks: which tasks, in which sizes, and how to read them. All but `tasks` are options, too."""

    # a name out of NAMED, a folder of class folders, a table, or a folder of tables train, val, test
    tasks: Annotated[str, Suppress] = ""
    ways: Annotated[int | None, arg(metavar="INT")] = None  # classes in a task (None for regression)
    shots: int = 1  # support examples per class (regression: per task)
    queries: int = 15  # query examples per class (regression: per task)
    data: Annotated[str | None, word("$QUICKSTUDY_DATA, or ./data")] = None  # folder of the data set
    size: int = 28  # images from a folder are scaled to size x size
    augment: Annotated[bool, switch] = False  # change training images at random each time they are drawn
    task: Annotated[str | None, word("none")] = None  # table: the column that says which task a row belongs to
    target: Annotated[str | None, word("none")] = None  # table: the column to predict
    time: Annotated[str | None, word("none")] = None  # table: the column of time; support rows come before query rows
    # table: whether the target is a number or a class
    kind: Annotated[Literal["number", "class"] | None, choice("number,class", "as the column looks")] = None
    ignore: Annotated[tuple[str, ...], several("none")] = ()  # table: columns to leave out
    categories: Annotated[tuple[str, ...], several("none")] = ()  # table: columns whose numbers are names of categories
    # table: the decimal mark, where 1,234 or 1.234 can be read in two ways
    decimal: Annotated[Literal[".", ","] | None, choice(".|,", "as the columns show")] = None
    # table: what 05/06/2024 is, where no date shows it
    dates: Annotated[
        Literal["day-first", "month-first"] | None, choice("day-first,month-first", "as the columns show")
    ] = None
    user: Annotated[str | None, word("none")] = None  # ratings: the column of the user who rated
    item: Annotated[str | None, word("item")] = None  # ratings: the column of the item that was rated
    rating: Annotated[str | None, word("rating")] = None  # ratings: the column of the rating itself
    items: Annotated[str | None, word("none")] = None  # ratings: a second table, with the items' features
    item_id: Annotated[str | None, word("as in the ratings")] = None  # ratings: the column of items in that table
    factors: int = 0  # ratings: length of the item vectors that are learned from training users
    text: Annotated[str | None, word("none")] = None  # table of texts: the column of texts
    label: Annotated[str | None, word("none")] = None  # table of texts: the column of their classes
    words: int = 24  # texts: how many words of each text are read
    encoder: Annotated[str | None, word("hashed subwords")] = None  # texts: a model of sentence_transformers

    def values(self, *names: str) -> dict[str, Any]:
        """The values of some fields, by name."""
        return {name: vars(self)[name] for name in names}

    def given(self, *names: str) -> dict[str, Any]:
        """The values of those fields that hold one."""
        return {name: value for name, value in self.values(*names).items() if value}


def kind_of(tasks: str, labelled: bool = False) -> str:
    """The kind of tasks, which chooses the defaults: 'sinusoid', 'table', 'text' or 'images'.

    `labelled`: the user named a column of texts or of their labels.
    """
    if tasks == "sinusoid":
        return "sinusoid"
    if labelled or is_text(tasks):
        return "text"
    return "table" if is_table(tasks) else "images"


def is_text(tasks: str) -> bool:
    """Whether `tasks` is the path of a folder of class folders with .txt files."""
    return tasks not in NAMED and next(Path(tasks).glob("*/*.txt"), None) is not None


def is_table(tasks: str) -> bool:
    """Whether `tasks` is the path of a table, or of a folder of tables."""
    if tasks in NAMED:
        return False
    return Path(tasks).is_file() or "train" in split_files(Path(tasks))


SIZES = ("ways", "shots", "queries")
TABLE = ("shots", "queries", "time", "ignore", "categories", "decimal", "dates")


def applicable(request: Request) -> tuple[str, tuple[str, ...]]:
    """What these tasks are read as, in words, and the options that are read there."""
    name, kind = request.tasks, kind_of(request.tasks, bool(request.text or request.label))
    if name == "sinusoid":
        return "curves", SIZES[1:]
    if kind == "text":
        read = ("encoder",) if request.encoder else ("encoder", "words")
        kind = "encoded texts" if request.encoder else "hashed texts"
        return kind, (*SIZES, *(() if is_text(name) else ("text", "label")), *read)
    if kind == "table" and is_ratings(request):
        of_items = ("item_id", "ignore", "categories") if request.items else ()
        read = ("shots", "queries", "time", "decimal", "dates")
        return "ratings", (*read, "user", "item", "rating", "items", *of_items, "factors")
    if kind == "table":
        return "a table", (*TABLE, "task", "target", "kind")
    if name in NAMED:
        return "images", (*SIZES, *(("data",) if name in PUBLIC else ()), *(("augment",) if name in AUGMENTED else ()))
    return "images", (*SIZES, "size", "augment")


def is_ratings(request: Request) -> bool:
    """Whether the user named what only a table of ratings has."""
    return bool(request.user or request.item or request.rating or request.items)


def open_tasks(request: Request, split: str, preprocess: Mapping[str, Any] | None = None) -> Any:
    """The task source of a request, for the split 'train', 'val' or 'test'.

    `preprocess` is that of a trained learner: columns of a table then become numbers in the same way as in its
    training. Raises DataError where the tasks cannot be found or read, ConfigError where options are missing.
    """
    name, kind = request.tasks, kind_of(request.tasks, bool(request.text or request.label))
    if kind == "text":
        named = request.given("text", "label", "words", "encoder")
        sizes, known = (request.ways or 5, request.shots, request.queries), {"progress": True, "preprocess": preprocess}
        return sources.from_text(name, split, *sizes, **named, **known)
    if is_table(name) and is_ratings(request):
        return _open_ratings(request, split, preprocess)
    if is_table(name):
        return _open_table(request, split, preprocess)
    if name == "sinusoid":
        return sources.sinusoid(split, request.shots, request.queries)
    if request.ways is None:
        raise ConfigError(f"{name!r} is classification: it needs ways (classes in a task), such as 5.")
    sizes = (request.ways, request.shots, request.queries)
    if name == "glyphs":
        return sources.glyphs(split, *sizes)
    augment = {"augment": True} if request.augment and split == "train" else {}
    if name in PUBLIC:
        return PUBLIC[name](split, *sizes, root=request.data, **augment)
    if Path(name).is_dir():
        return sources.from_folder(name, split, *sizes, size=request.size, **augment)
    if Path(name).suffix or "/" in name:
        raise DataError(f"there is no file or folder {name!r}. Check the path.")
    raise DataError(
        f"there are no tasks {name!r}: neither one of {', '.join(NAMED)} nor a folder or a table.{suggest(name, NAMED)}"
    )


def _open_table(request: Request, split: str, preprocess: Mapping[str, Any] | None) -> Any:
    if not request.task or not request.target:
        lacking = "--task" if not request.task else "--target"
        raise ConfigError(
            f"{request.tasks!r} is a table: name the column that says which task a row belongs to (--task) and the one "
            f"to predict (--target). {lacking} is missing."
        )
    read = request.values(
        "task", "target", "time", "kind", "ignore", "categories", "decimal", "dates", "shots", "queries"
    )
    return sources.from_table(request.tasks, split, **read, preprocess=preprocess)


def _open_ratings(request: Request, split: str, preprocess: Mapping[str, Any] | None) -> Any:
    columns = request.given("user", "item", "rating")
    read = request.values(
        "time", "items", "item_id", "ignore", "categories", "decimal", "dates", "shots", "queries", "factors"
    )
    return sources.from_ratings(request.tasks, split, **columns, **read, preprocess=preprocess)
