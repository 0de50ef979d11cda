"""Tasks given as arrays: a list of dicts, one for each task."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quickstudy.base import trees
from quickstudy.episodes import are_classes, count, joined, mapped, stacked, unstack
from quickstudy.errors import DataError, suggest
from quickstudy.learner import Batch, Episode
from quickstudy.tasks.classes import scaled

KEYS = ("support", "support_labels", "query", "query_labels")


@dataclass(frozen=True, eq=False, repr=False)
class ArrayTasks:
    """Ready-made episodes, all with the same number of examples; `sample` draws among them."""

    episodes: Episode  # with a leading task axis
    ways: int | None  # None for regression
    name: str = "arrays"
    split: str = "train"
    extractor: nn.Module | None = None  # frozen; turned the inputs into features, see `qs.tasks.features`

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        """n episodes drawn with replacement."""
        rows = torch.randint(count(self.episodes), (n,), generator=generator)
        return mapped(lambda t: t[rows], self.episodes)  # type: ignore[return-value]

    def once(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """The examples of each task, support first; the tasks in the order in which they were given."""
        return map(joined, unstack(self.episodes))

    def __repr__(self) -> str:
        return f"ArrayTasks({self.describe()})"  # not the tensors

    def describe(self) -> dict[str, Any]:
        """The task part of a protocol."""
        support, query = (trees.first(batch.y).shape[1] // (self.ways or 1) for batch in self.episodes)
        sizes = {"ways": self.ways, "shots": support, "queries": query}
        return {"name": self.name, "split": self.split, **sizes, "tasks": count(self.episodes)}


def from_arrays(tasks: Sequence[Mapping[str, Any]], *, split: str = "train", name: str = "arrays") -> ArrayTasks:
    """A task source from dicts with `support`, `support_labels`, `query`, `query_labels` (arrays or tensors).

    support [n, ...], support_labels [n] class numbers 0..ways-1 or [n, d] values; query and query_labels likewise.
    Whole numbers of another shape than [n] are class numbers of positions, such as tags [n, T] or masks [n, H, W]:
    those of a model's outputs, and one that its loss ignores. Any of the four may be a dict or a tuple of arrays with
    n rows each: several inputs, which are the arguments of a model by name or in order, and several targets, for a
    loss of your own.

    A single array of inputs becomes floats, uint8 images scaled to [0, 1]. Of several, whole numbers keep their type:
    they are tokens, masks or categories. All tasks must have the same shapes. Raises DataError, naming the task, where
    an array is missing, does not hold finite numbers or does not fit the others.

    >>> import torch
    >>> tokens = {"tokens": torch.ones(4, 7, dtype=torch.long), "mask": torch.ones(4, 7)}
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> task = {"support": tokens, "support_labels": labels, "query": tokens, "query_labels": labels}
    >>> from_arrays([task]).sample(3).support.x["tokens"].shape
    torch.Size([3, 4, 7])
    """
    if not tasks:
        raise DataError("from_arrays got no task. Give a list of dicts with " + ", ".join(KEYS) + ".")
    made = [_episode(i, task) for i, task in enumerate(tasks)]
    for i, episode in enumerate(made):
        _check_like(i, episode, made[0])
    episodes = stacked(made)
    y, yq = episodes.support.y, episodes.query.y
    ways = int(max(y.max(), yq.max())) + 1 if are_classes(y, axes=2) else None
    return ArrayTasks(episodes, ways, name, split)


def _episode(i: int, task: Mapping[str, Any]) -> Episode:
    for key in KEYS:
        if key not in task:
            close = next((k for k in task if k not in KEYS and suggest(str(k), [key])), None)
            hint = f" It has {close!r} instead." if close else ""
            raise DataError(f"task {i} lacks {key!r}: it has {', '.join(map(repr, task)) or 'nothing'}.{hint}")
    x, y, xq, yq = (trees.converted(task[key], functools.partial(_tensor, i, key)) for key in KEYS)
    for key, a, b in (("support", x, y), ("query", xq, yq)):
        _check_rows(i, key, a, b)
    if _kinds(y) != _kinds(yq):
        raise DataError(f"task {i}: support_labels are {_kinds(y)} and query_labels {_kinds(yq)}; both must be alike.")
    if are_classes(y):
        _check_labels(i, y, yq)
    return Episode(Batch(_as_images(x), y), Batch(_as_images(xq), yq))


def _check_rows(i: int, key: str, x: Any, y: Any) -> None:
    for name, tree in ((key, x), (f"{key}_labels", y)):
        if wrong := trees.uneven(tree):
            raise DataError(f"task {i}: of {name!r} {wrong}. Give one row for each example.")
    if trees.size(x) != trees.size(y) or trees.size(x) == 0:
        raise DataError(
            f"task {i} has {trees.size(x)} {key} examples and {trees.size(y)} {key}_labels; give one label for each."
        )


def _kinds(y: Any) -> str:
    """The types of the labels in words."""
    return ", ".join(f"{name} {t.dtype}".strip() for name, t in trees.named(y))


def _as_images(x: Any) -> Any:
    return scaled(x) if isinstance(x, Tensor) else x


def _tensor(i: int, key: str, place: str, value: Any) -> Tensor:
    """One array of `key`; `place` says which, where there are several."""
    what, labels = f"{key!r}{place}", key.endswith("labels")
    try:
        t = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"task {i}: {what} is not an array of numbers: {error}.") from error
    if t.dim() == 0 and place:
        raise DataError(f"task {i}: {what} is a single number. Give one row for each example.")
    if t.is_floating_point():
        if labels and not place and t.dim() == 1 and len(t):
            raise DataError(f"task {i}: {what} holds real numbers [n]. For classes give integers, for values [n, d].")
        if not torch.isfinite(t).all():
            raise DataError(f"task {i}: {what} holds NaN or infinity. Remove or fill the missing values first.")
        return t.to(torch.get_default_dtype())
    if labels:
        return t.long()
    return t if place or t.dtype == torch.uint8 else t.to(torch.get_default_dtype())


def _check_labels(i: int, y: Tensor, yq: Tensor) -> None:
    if int(y.min()) < 0 or int(yq.min()) < 0:
        raise DataError(f"task {i} has the label {min(int(y.min()), int(yq.min()))}; labels must be 0..ways-1.")
    missing = sorted((set(yq.tolist()) | set(range(int(y.max()) + 1))) - set(y.tolist()))
    if missing:
        raise DataError(
            f"task {i}: the support set has no example of class(es) {missing}. Each class 0..ways-1 needs at least one."
        )
    if int(y.max()) == 0:
        raise DataError(
            f"task {i} has one class only. Classification needs two or more; for values give floats [n, d]."
        )


def _check_like(i: int, episode: Episode, first: Episode) -> None:
    for key, a, b in zip(KEYS, [*episode.support, *episode.query], [*first.support, *first.query], strict=True):
        if trees.sizes(a) != trees.sizes(b) or _kinds(a) != _kinds(b):
            raise DataError(
                f"task {i}: {key!r} is {trees.shapes(a)} {_kinds(a)}, but task 0 has {trees.shapes(b)} {_kinds(b)}. "
                "All tasks need the same shapes."
            )
    ways = [int(one.support.y.max()) + 1 if are_classes(one.support.y) else None for one in (episode, first)]
    if ways[0] != ways[1]:
        raise DataError(f"task {i} has {ways[0]} classes, but task 0 has {ways[1]}. All tasks need the same number.")
