"""Episodes from groups of rows: each customer, hospital or machine is a task, and its rows are the examples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quickstudy.episodes import Episodes, blocks, stack
from quickstudy.errors import DataError
from quickstudy.learner import Batch, Episode


@dataclass(frozen=True, eq=False, repr=False)
class GroupTasks:
    """A task is a group of rows; support and query set are disjoint rows of it.

    `x` [N, ...] and `y` ([N] class numbers or [N, d] values) hold all rows, group g at `starts[g]:starts[g + 1]`, in
    order of time if `ordered`. Classes mean the same in every task; a task may lack some of them.

    How rows are drawn: for values, `shots` support rows and `queries` other rows. For classes, `shots` rows of each
    class that the group has, and `queries` other rows of each. A group with fewer rows gives what it has, support rows
    first, but at least one query row. A group that cannot give that is not a task (`usable`). If `ordered`, a moment in
    time is drawn: the last rows before it are the support set, and the first rows after it are the query set.

    Raises DataError where no group can be a task, and for shots or queries below 1.
    """

    x: Tensor
    y: Tensor
    starts: Tensor  # int64 [groups + 1]
    names: Sequence[str]  # of the groups, for people
    shots: int = 10  # support rows of a task; with classes: of each class
    queries: int = 10  # query rows, likewise
    classes: tuple[Any, ...] | None = None  # None for values
    ordered: bool = False
    name: str = "groups"
    split: str = "train"
    unit: float = 1.0  # what 1 in `y` is in the target's own unit; errors are reported in that unit
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what was left out or corrected in the data, for people

    def __post_init__(self) -> None:
        for word in ("shots", "queries"):
            if getattr(self, word) < 1:
                raise DataError(f"{word} must be at least 1, got {getattr(self, word)}.")
        if not self.usable:
            raise DataError(
                f"{self.name} {self.split!r} has no task: none of its {len(self.names)} groups has "
                + ("two rows." if self.classes is None else "two classes, one of them with two rows.")
            )

    @property
    def ways(self) -> int | None:
        """Classes of all tasks together; None for values."""
        return None if self.classes is None else len(self.classes)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episodes:
        """n episodes of groups drawn with replacement: x [n, rows, ...], or a list of episodes where sizes differ."""
        return stack([self._episode(g, generator) for g in self._drawn(n, generator)], self.ways)

    def once(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All rows of all groups, each once, in blocks of about a task's size, in random order."""
        for rows in blocks(len(self.x), (self.shots + self.queries) * (self.ways or 1), generator):
            yield Batch(self.x[rows], self.y[rows])

    def facts(self, n: int, generator: torch.Generator | None = None) -> dict[str, list[str]]:
        """The group of each task that `sample` draws from a generator in the same state."""
        return {"task": [self.names[g] for g in self._drawn(n, generator)]}

    def told(self, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Describes, for people, the one task that `sample(1, generator)` draws: its name, and those of all classes."""
        name = self.names[self._drawn(1, generator)[0]]
        return {"task": name} if self.classes is None else {"task": name, "classes": list(map(str, self.classes))}

    def _drawn(self, n: int, generator: torch.Generator | None) -> list[int]:
        chosen = torch.randint(len(self.usable), (n,), generator=generator)
        return [self.usable[i] for i in chosen.tolist()]

    @functools.cached_property
    def usable(self) -> list[int]:
        """The groups that can be a task: those with two rows, or with two classes of which one has two rows."""
        return [group for group in range(len(self.names)) if self._suffices(group)]

    def _suffices(self, group: int) -> bool:
        y = self.y[self.starts[group] : self.starts[group + 1]]
        if self.classes is None:
            return len(y) >= 2
        if self.ordered:
            return bool(self._moments(y))
        counts = y.bincount()
        return int((counts > 0).sum()) >= 2 and int(counts.max()) >= 2

    def _episode(self, group: int, generator: torch.Generator | None) -> Episode:
        start, end = int(self.starts[group]), int(self.starts[group + 1])
        draw = self._in_time if self.ordered else self._at_random
        support, query = draw(self.y[start:end], generator)
        return Episode(*(Batch(self.x[start + rows], self.y[start + rows]) for rows in (support, query)))

    def _at_random(self, y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(y), generator=generator)
        if self.classes is None:
            shots = min(self.shots, len(y) - 1)
            return order[:shots], order[shots : shots + self.queries]
        support, query = [], []
        for label in y.unique().tolist():
            rows = order[y[order] == label]
            shots = min(self.shots, max(len(rows) - 1, 1))
            support.append(rows[:shots])
            query.append(rows[shots : shots + self.queries])
        return torch.cat(support), torch.cat(query)

    def _in_time(self, y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Rows before a moment, and rows after it. For classes, only those that occurred before the moment."""
        if self.classes is None:
            shots = min(self.shots, len(y) - 1)
            latest = max(len(y) - self.queries, shots)
            now = shots + int(torch.randint(latest - shots + 1, (), generator=generator))
            return torch.arange(now - shots, now), torch.arange(now, min(now + self.queries, len(y)))
        moments = self._moments(y)
        now = moments[int(torch.randint(len(moments), (), generator=generator))]
        support, query = [], []
        for label in y[:now].unique().tolist():
            rows = (y == label).nonzero().flatten()
            support.append(rows[rows < now][-self.shots :])
            query.append(rows[rows >= now][: self.queries])
        return torch.cat(support), torch.cat(query)

    @staticmethod
    def _moments(y: Tensor) -> list[int]:
        """Where a task with classes can be cut: two classes occur before, and one of these occurs again after it."""
        places = [(y == label).nonzero().flatten() for label in y.unique().tolist()]
        second = sorted(int(rows[0]) for rows in places)[1:2]  # where the second class begins
        now = torch.arange(len(y))
        good = torch.zeros(len(y), dtype=torch.bool)
        for rows in places if second else []:
            good |= (now > rows[0]) & (now <= rows[-1]) & (now > second[0])
        return now[good].tolist()

    def __repr__(self) -> str:
        return f"GroupTasks({self.describe()})"  # not the tensors

    def describe(self) -> dict[str, Any]:
        """The task part of a protocol. Shots and queries are upper limits, because tasks may have fewer rows."""
        words = ("name", "split", "ways", "shots", "queries")
        return {word: getattr(self, word) for word in words} | {"tasks": len(self.usable)}

    def replace(self, **changes: Any) -> GroupTasks:
        """The same groups with other shots or queries."""
        return dataclasses.replace(self, **changes)
