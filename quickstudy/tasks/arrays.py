"""Tasks given as arrays: a list of dicts, one for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        rows = torch.randint(len(self.episodes.query.y), (n,), generator=generator)
        return Episode(*(Batch(*(t[rows] for t in batch)) for batch in self.episodes))

    def __repr__(self) -> str:
        return f"ArrayTasks({self.describe()})"  # not the tensors

    def describe(self) -> dict[str, Any]:
        """The task part of a protocol."""
        support, query = (batch.y.shape[1] // (self.ways or 1) for batch in self.episodes)
        sizes = {"ways": self.ways, "shots": support, "queries": query}
        return {"name": self.name, "split": self.split, **sizes, "tasks": len(self.episodes.query.y)}


def from_arrays(tasks: Sequence[Mapping[str, Any]], *, split: str = "train", name: str = "arrays") -> ArrayTasks:
    """A task source from dicts with `support`, `support_labels`, `query`, `query_labels` (arrays or tensors).

    support [n, ...], support_labels [n] class numbers 0..ways-1 or [n, d] values; query and query_labels likewise.
    uint8 images are scaled to [0, 1]. All tasks must have the same shapes. Raises DataError, naming the task, where an
    array is missing, does not hold finite numbers or does not fit the others.
    """
    if not tasks:
        raise DataError("from_arrays got no task. Give a list of dicts with " + ", ".join(KEYS) + ".")
    made = [_episode(i, task) for i, task in enumerate(tasks)]
    for i, episode in enumerate(made):
        _check_like(i, episode, made[0])
    stacked = Episode(*(Batch(*map(torch.stack, zip(*b, strict=True))) for b in zip(*made, strict=True)))
    labels = stacked.support.y
    ways = None if labels.is_floating_point() else int(max(labels.max(), stacked.query.y.max())) + 1
    return ArrayTasks(stacked, ways, name, split)


def _episode(i: int, task: Mapping[str, Any]) -> Episode:
    for key in KEYS:
        if key not in task:
            close = next((k for k in task if k not in KEYS and suggest(str(k), [key])), None)
            hint = f" It has {close!r} instead." if close else ""
            raise DataError(f"task {i} lacks {key!r}: it has {', '.join(map(repr, task)) or 'nothing'}.{hint}")
    x, y, xq, yq = (_tensor(i, key, task[key]) for key in KEYS)
    for key, a, b in (("support", x, y), ("query", xq, yq)):
        if len(a) != len(b) or len(a) == 0:
            raise DataError(f"task {i} has {len(a)} {key} examples and {len(b)} {key}_labels; give one label for each.")
    if y.is_floating_point() != yq.is_floating_point():
        raise DataError(f"task {i}: support_labels are {y.dtype} and query_labels {yq.dtype}; both must be alike.")
    if not y.is_floating_point():
        _check_labels(i, y, yq)
    return Episode(Batch(scaled(x), y), Batch(scaled(xq), yq))


def _tensor(i: int, key: str, value: Any) -> Tensor:
    try:
        t = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"task {i}: {key!r} is not an array of numbers: {error}.") from error
    if t.is_floating_point():
        if key.endswith("labels") and t.dim() == 1 and len(t):
            raise DataError(f"task {i}: {key!r} holds real numbers [n]. For classes give integers, for values [n, d].")
        if not torch.isfinite(t).all():
            raise DataError(f"task {i}: {key!r} holds NaN or infinity. Remove or fill the missing values first.")
        return t.to(torch.get_default_dtype())
    return t.long() if key.endswith("labels") else t if t.dtype == torch.uint8 else t.to(torch.get_default_dtype())


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
        if a.shape != b.shape or a.dtype != b.dtype:
            raise DataError(
                f"task {i}: {key!r} is {tuple(a.shape)} {a.dtype}, but task 0 has {tuple(b.shape)} {b.dtype}. All "
                "tasks need the same shapes."
            )
    ways = [None if e.support.y.is_floating_point() else int(e.support.y.max()) + 1 for e in (episode, first)]
    if ways[0] != ways[1]:
        raise DataError(f"task {i} has {ways[0]} classes, but task 0 has {ways[1]}. All tasks need the same number.")
