"""What a user asked for, in plain values, and the task sources that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quickstudy import tasks as sources
from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.tasks.tabular.tables import split_files

PUBLIC = ("omniglot", "cifar_fs", "fc100")  # public data sets, which are downloaded
NAMED = ("glyphs", "sinusoid", *PUBLIC)


class Request(NamedTuple):
    """A request for tasks: which tasks, in which sizes, and how to read them."""

    tasks: str  # a name out of NAMED, a folder of class folders, a table, or a folder of tables train, val, test
    ways: int | None = None
    shots: int = 1
    queries: int = 15
    data: str | None = None  # folder of the data set
    size: int = 28  # images from a folder are scaled to size x size
    augment: bool = False  # training images are changed at random each time they are drawn
    task: str | None = None  # table: the column that names a row's task
    target: str | None = None  # table: the column to predict
    time: str | None = None  # table or ratings: the column of time
    kind: str | None = None  # what the target is: number or class
    ignore: Sequence[str] = ()  # columns to leave out
    categories: Sequence[str] = ()  # columns whose numbers are names of categories
    user: str | None = None  # ratings: the column of the user who rated
    item: str | None = None  # ratings: the column of the item that was rated
    rating: str | None = None  # ratings: the column of the rating itself
    items: str | None = None  # ratings: a second table, with the items' features
    item_id: str | None = None  # ratings: the column of items in that table
    factors: int = 0  # ratings: length of the item vectors that are learned from training users
    text: str | None = None  # labelled texts: the column of texts
    label: str | None = None  # labelled texts: the column of classes
    words: int = 24  # labelled texts: how many words of each text are read
    encoder: str | None = None  # labelled texts: the model of sentence_transformers that embeds them


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


def open_tasks(request: Request, split: str, preprocess: Mapping[str, Any] | None = None) -> Any:
    """The task source of a request, for the split 'train', 'val' or 'test'.

    `preprocess` is that of a trained learner: columns of a table then become numbers in the same way as in its
    training. Raises DataError where the tasks cannot be found or read, ConfigError where options are missing or do not
    apply to these tasks.
    """
    name, kind = request.tasks, kind_of(request.tasks, bool(request.text or request.label))
    _check_placed(request, kind)
    if kind == "text":
        named = {word: value for word in ("text", "label", "words", "encoder") if (value := getattr(request, word))}
        return sources.from_text(name, split, request.ways or 5, request.shots, request.queries, **named, progress=True)
    if is_table(name) and (request.user or request.item or request.rating or request.items):
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
        return getattr(sources, name)(split, *sizes, root=request.data, **augment)
    if Path(name).is_dir():
        return sources.from_folder(name, split, *sizes, size=request.size, **augment)
    if Path(name).suffix or "/" in name:
        raise DataError(f"there is no file or folder {name!r}. Check the path.")
    raise DataError(
        f"there are no tasks {name!r}: neither one of {', '.join(NAMED)} nor a folder or a table.{suggest(name, NAMED)}"
    )


def _check_placed(request: Request, kind: str) -> None:
    """Refuse options that these tasks would silently ignore."""
    name = request.tasks
    if request.encoder and kind != "text":
        raise ConfigError(f"--encoder is for texts; {name!r} holds none. Leave it out, or name their column (--text).")
    if request.augment and (kind != "images" or name in ("glyphs", "omniglot")):
        raise ConfigError(f"--augment is for a folder of images, cifar_fs and fc100, not for {name!r}. Leave it out.")


def _open_table(request: Request, split: str, preprocess: Mapping[str, Any] | None) -> Any:
    if not request.task or not request.target:
        lacking = "--task" if not request.task else "--target"
        raise ConfigError(
            f"{request.tasks!r} is a table: name the column that says which task a row belongs to (--task) and the one "
            f"to predict (--target). {lacking} is missing."
        )
    words = ("task", "target", "time", "kind", "ignore", "categories", "shots", "queries")
    given = {word: getattr(request, word) for word in words}
    return sources.from_table(request.tasks, split, **given, preprocess=preprocess)


def _open_ratings(request: Request, split: str, preprocess: Mapping[str, Any] | None) -> Any:
    if request.task or request.target or request.kind:
        raise ConfigError(
            "in a table of ratings --user names the task and --rating the target, a number: leave --task, --target and "
            "--kind out."
        )
    named = {word: value for word in ("user", "item", "rating") if (value := getattr(request, word))}
    words = ("time", "items", "item_id", "ignore", "categories", "shots", "queries", "factors")
    given = named | {word: getattr(request, word) for word in words}
    return sources.from_ratings(request.tasks, split, **given, preprocess=preprocess)
