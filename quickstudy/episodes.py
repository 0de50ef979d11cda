"""A batch of episodes: one Episode with a leading task axis, or a list of Episodes where tasks differ in size.

Tasks of equal size run together under vmap, whatever the learner, so no learner has to handle padding or masks. Inputs
and answers of an episode are tensors or nested values of tensors, see `quickstudy.base.trees`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import trees
from quickstudy.learner import Batch, Episode

Episodes = Episode | list[Episode]


def stack(ones: Sequence[Episode], ways: int | None) -> Episodes:
    """Single episodes as a batch: an Episode if all have the same sizes and the classes 0..ways-1, else the list.

    `ways` is the number of classes of the task source, None for regression. A task that lacks a class stays in a list,
    even if it is the only one: in a list each task is given its own ways (`fitted`), in an Episode all have the same.
    """
    classes = tuple(range(ways or 0))
    alike = len({tensor_sizes(one) for one in ones}) == 1 and all(class_numbers(one) == classes for one in ones)
    return stacked(ones) if alike else list(ones)


def concat(batches: Sequence[Episodes]) -> Episodes:
    """Several batches as one: a list if any of them is a list or if their sizes differ, else an Episode."""
    together = [batch for batch in batches if not isinstance(batch, list)]
    sizes = {tuple(trees.sizes(part, skip=1) for batch in one for part in batch) for one in together}
    if len(together) < len(batches) or len(sizes) > 1:
        return [one for batch in batches for one in unstack(batch)]
    return Episode(*(Batch(*map(trees.joined, zip(*b, strict=True))) for b in zip(*together, strict=True)))


def unstack(episodes: Episodes) -> list[Episode]:
    """A batch of episodes as a list of single ones (views, no copies)."""
    if isinstance(episodes, list):
        return episodes
    parts = (trees.unstacked(part) for batch in episodes for part in batch)
    return [Episode(Batch(xs, ys), Batch(xq, yq)) for xs, ys, xq, yq in zip(*parts, strict=True)]


def count(episodes: Episodes) -> int:
    """The number of tasks in a batch."""
    return len(episodes) if isinstance(episodes, list) else trees.size(episodes.query.y)


def first_tasks(episodes: Episodes, n: int) -> Episodes:
    """The first n tasks of a batch."""
    return part_of(episodes, range(n))


def part_of(episodes: Episodes, places: range) -> Episodes:
    """The tasks of a batch from places.start to places.stop - 1; the result may be empty."""
    cut = slice(places.start, places.stop)
    return episodes[cut] if isinstance(episodes, list) else mapped(lambda t: t[cut], episodes)


def chunks(episodes: Episode, size: int | None) -> Iterator[Episode]:
    """Yield the tasks of a batch in parts of at most `size` tasks; None: all at once."""
    tasks = count(episodes)
    for start in range(0, tasks, size or tasks):
        yield mapped(lambda t, at=start: t[at : at + (size or tasks)], episodes)  # type: ignore[misc]


def mapped(change: Callable[[Tensor], Tensor], episodes: Episodes) -> Episodes:
    """The same batch with `change` applied to each of its tensors."""
    if isinstance(episodes, list):
        return [_changed(change, one) for one in episodes]
    return _changed(change, episodes)


def whole(episodes: Episodes) -> list[Episode]:
    """The Episodes that hold a batch's tensors: a single one with a task axis, or one per task."""
    return episodes if isinstance(episodes, list) else [episodes]


def moved(episodes: Episodes, device: torch.device) -> Episodes:
    """The same batch on a device."""
    return mapped(lambda t: t.to(device), episodes)


def device_of_tasks(episodes: Episodes) -> torch.device:
    """The device of a batch: that of its first query answers."""
    return trees.first(whole(episodes)[0].query.y).device


def is_classification(episodes: Episodes) -> bool:
    """Whether the answers are class numbers, one for each example; otherwise they are values, or several targets."""
    return are_classes(whole(episodes)[0].query.y, axes=1 if isinstance(episodes, list) else 2)


def are_classes(y: Any, axes: int = 1) -> bool:
    """Whether y holds one class number for each example: a single tensor of whole numbers [n].

    `axes`: 2 where it has a task axis before that of the examples.
    """
    return isinstance(y, Tensor) and not y.is_floating_point() and y.dim() == axes


def stacked(ones: Sequence[Episode]) -> Episode:
    """Single episodes of equal size as an Episode with a task axis."""
    return Episode(*(Batch(*map(trees.stacked, zip(*b, strict=True))) for b in zip(*ones, strict=True)))


def joined(episode: Episode) -> Batch:
    """The support and the query set of one task as one set of examples, support first."""
    return Batch(*(trees.joined(pair) for pair in zip(*episode, strict=True)))


def examples(batch: Batch, which: Any) -> Batch:
    """The examples of a support or query set at some places: a slice, or row numbers as a list or a tensor."""
    return Batch(*(trees.rows(part, which) for part in batch))


def blocks(n: int, size: int, generator: torch.Generator | None = None) -> Sequence[Tensor]:
    """The row numbers 0..n-1 in random order, in blocks of at most `size` that differ by one row at most."""
    return torch.randperm(n, generator=generator).tensor_split(-(-n // size))


def _changed(change: Callable[[Tensor], Tensor], episode: Episode) -> Episode:
    return Episode(*(Batch(*(trees.mapped(change, part) for part in batch)) for batch in episode))


def tensor_sizes(episode: Episode) -> Hashable:
    """How the inputs and answers of a task are built and their sizes: equal for tasks that can be stacked."""
    return tuple(trees.sizes(part) for batch in episode for part in batch)


def class_numbers(episode: Episode) -> tuple[int, ...]:
    """The class numbers of the support set, sorted; empty for regression and for several targets."""
    y = episode.support.y
    return tuple(y.unique().tolist()) if are_classes(y) else ()
