"""Episodes from a pool of classes: N ways, K shots, Q queries, drawn without replacement."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.episodes import blocks, part_of
from quickstudy.errors import DataError
from quickstudy.learner import Batch, Episode


@dataclass(frozen=True, eq=False, repr=False)
class ClassTasks:
    """A task is `ways` classes of a pool; support and query set are disjoint examples of each class.

    `examples` [N, ...] holds all examples sorted by class, class c at `starts[c]:starts[c + 1]`; uint8 images are
    scaled to [0, 1]. Labels inside an episode are 0..ways-1 in the order in which the classes were drawn. With
    `grouped` all classes of a task come from one group; the group is the part of a class name before the first "/".

    Raises DataError where the pool has too few classes or examples, or `starts` does not fit.
    """

    examples: Tensor
    starts: Tensor  # int64 [classes + 1]
    classes: Sequence[str]  # class names, for people
    ways: int
    shots: int  # support examples per class
    queries: int  # query examples per class
    name: str = "classes"
    split: str = "train"
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # how raw input became `examples`
    extractor: nn.Module | None = None  # frozen; then turned them into features, see `qs.tasks.features`
    text_encoder: Callable[[list[str]], Any] | None = None  # turned texts into vectors, see `qs.tasks.from_text`
    augment: Callable[[Tensor, torch.Generator | None], Tensor] | None = None  # changes images anew in every episode
    grouped: bool = False  # a task stays within one group of classes, such as an alphabet
    raw: Sequence[str] = ()  # the original texts of the examples, if they were texts
    notes: tuple[str, ...] = ()  # what was left out of the data, for people

    def __post_init__(self) -> None:
        self._check_starts()
        for word in ("ways", "shots", "queries"):
            if getattr(self, word) < 1:
                raise DataError(f"{word} must be at least 1, got {getattr(self, word)}.")
        if len(self.classes) < self.ways:
            raise DataError(
                f"{self.name} {self.split!r} has {len(self.classes)} classes, but ways={self.ways} were asked for. "
                "Lower ways, or add classes."
            )
        counts = self.starts.diff()
        needed, smallest = self.shots + self.queries, int(counts.argmin())
        if int(counts[smallest]) < needed:
            raise DataError(
                f"class {self.classes[smallest]!r} of {self.name} {self.split!r} has {int(counts[smallest])} examples, "
                f"but shots={self.shots} and queries={self.queries} need {needed}. Lower them, or add examples."
            )
        if self.grouped and not self.groups:
            raise DataError(
                f"grouped tasks need {self.ways} classes named alike before the first '/', as in 'Greek/alpha'; "
                f"{self.name} {self.split!r} has none such, its first class is {self.classes[0]!r}. Lower ways, or "
                "leave grouped out."
            )

    def _check_starts(self) -> None:
        starts = self.starts.tolist()
        if len(starts) != len(self.classes) + 1 or starts[0] != 0 or starts[-1] != len(self.examples):
            raise DataError(
                f"starts must hold {len(self.classes) + 1} numbers from 0 to {len(self.examples)} for "
                f"{len(self.classes)} classes of {len(self.examples)} examples; got {len(starts)} from {starts[0]} to "
                f"{starts[-1]}. `stack_classes` makes both."
            )
        if any(b < a for a, b in itertools.pairwise(starts)):
            raise DataError("starts must not fall: class c is examples[starts[c]:starts[c + 1]].")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        """n episodes: x [n, ways * k, ...] float, y [n, ways * k] int64, sorted by class; k is shots or queries."""
        support, query = self.rows(n, generator)
        return Episode(self._batch(support, generator), self._batch(query, generator))

    def share(self, n: int, places: range, generator: torch.Generator | None = None) -> Episode:
        """Only the tasks `places` of `sample(n, generator)`. Examples of other tasks are read only to augment them."""
        if self.augment is not None:  # it draws random numbers for each image, so all tasks must be sampled
            return part_of(self.sample(n, generator), places)  # type: ignore[return-value]
        support, query = (rows[places.start : places.stop] for rows in self.rows(n, generator))
        return Episode(self._batch(support, generator), self._batch(query, generator))

    def rows(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The rows of `examples` that `sample` draws for a generator in the same state.

        Returns those of the support set [n, ways, shots] and of the query set [n, ways, queries].
        """
        chosen = self._chosen(n, generator)
        indices = self._examples_of(chosen, self.shots + self.queries, generator)
        support, query = indices.split([self.shots, self.queries], dim=2)
        return support, query

    def told(self, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Describes, for people, the one task that `sample(1, generator)` draws: its class names, and its raw texts."""
        support, query = self.rows(1, generator)
        of_class = torch.searchsorted(self.starts, support[0, :, 0].contiguous(), right=True) - 1
        classes = [self.classes[int(c)] for c in of_class]
        if not self.raw:
            return {"classes": classes}
        shown, asked = ([self.raw[i] for i in rows.flatten().tolist()] for rows in (support, query))
        return {"classes": classes, "support": shown, "query": asked}

    @property
    def groups(self) -> list[str]:
        """The groups that have enough classes for a task, sorted by name."""
        sizes = Counter(filter(None, map(group_of, self.classes)))
        return sorted(name for name, size in sizes.items() if size >= self.ways)

    def facts(self, n: int, generator: torch.Generator | None = None) -> dict[str, list[str]]:
        """The group of each task that `sample` draws from a generator in the same state; {} unless `grouped`."""
        if not self.grouped:
            return {}
        return {"group": [group_of(self.classes[int(i)]) for i in self._chosen(n, generator)[:, 0]]}

    def _chosen(self, n: int, generator: torch.Generator | None) -> Tensor:
        """The classes of n tasks [n, ways]."""
        scores = torch.rand(n, len(self.classes), generator=generator)
        if self.grouped:
            groups = self.groups
            drawn = torch.randint(len(groups), (n,), generator=generator)
            of_class = torch.tensor([groups.index(g) if (g := group_of(c)) in groups else -1 for c in self.classes])
            scores = scores.masked_fill(of_class != drawn[:, None], 2.0)
        return scores.argsort(1)[:, : self.ways]

    def _examples_of(self, chosen: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """Row numbers [n, ways, k] of k different examples of each chosen class [n, ways]."""
        counts = self.starts.diff()[chosen]
        most = int(counts.max())
        scores = torch.rand(*chosen.shape, most, generator=generator)
        # Classes differ in size. Scores past a class's last example sort to the end and are never drawn.
        scores = scores.masked_fill(torch.arange(most) >= counts[..., None], 2.0)
        return self.starts[chosen][..., None] + scores.argsort(2)[..., :k]

    def _batch(self, indices: Tensor, generator: torch.Generator | None) -> Batch:
        n, ways, k = indices.shape
        labels = torch.arange(ways).repeat_interleave(k).repeat(n, 1)
        return Batch(self.inputs(indices.reshape(n, ways * k), generator), labels)

    def inputs(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The examples of these rows [n, m] as a learner reads them: [n, m, ...], augmented if `augment` is set."""
        x = scaled(self.examples[rows])
        return x if self.augment is None else self.augment(x.flatten(0, 1), generator).unflatten(0, rows.shape)

    def pooled(self) -> PooledTasks:
        """The same examples as one task with all classes, for pretraining in transfer learning."""
        return PooledTasks(self)

    def __repr__(self) -> str:
        return f"ClassTasks({self.describe()})"  # not the tensors

    def describe(self) -> dict[str, Any]:
        """The task part of a protocol."""
        words = ("name", "split", "ways", "shots", "queries")
        about = {word: getattr(self, word) for word in words} | {"classes": len(self.classes)}
        if self.extractor is not None:
            about["extractor"] = type(self.extractor).__name__
        if self.augment is not None:
            about["augment"] = repr(self.augment)
        if self.grouped:  # these are different tasks of the same classes, so scores are not comparable
            about["name"] = f"{self.name} within groups"
        return about

    def replace(self, **changes: Any) -> ClassTasks:
        """The same pool with other ways, shots or queries."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, eq=False)
class PooledTasks:
    """Supervised minibatches over all classes of a pool; labels are class numbers in the whole pool."""

    source: ClassTasks

    @property
    def ways(self) -> int:
        """All classes of the pool."""
        return len(self.source.classes)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        """n minibatches of ways * (shots + queries) examples, drawn with replacement, as episodes."""
        s = self.source
        rows = torch.randint(len(s.examples), (n, self._size), generator=generator)
        batch = Batch(s.inputs(rows, generator), self._labels(rows))
        cut = s.ways * s.shots
        return Episode(Batch(batch.x[:, :cut], batch.y[:, :cut]), Batch(batch.x[:, cut:], batch.y[:, cut:]))

    def once(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All examples of the pool, each once and as it is (not augmented), in blocks of about a minibatch's size."""
        examples = self.source.examples
        for rows in blocks(len(examples), self._size, generator):
            yield Batch(scaled(examples[rows]), self._labels(rows))

    @property
    def _size(self) -> int:
        """Examples in a minibatch."""
        return self.source.ways * (self.source.shots + self.source.queries)

    def _labels(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(self.source.starts, rows, right=True) - 1

    def describe(self) -> dict[str, Any]:
        return self.source.describe() | {"pooled": True}


def group_of(name: str) -> str:
    """'Greek' of 'Greek/alpha'; empty for a class without a group."""
    return name.partition("/")[0] if "/" in name else ""


def scaled(examples: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; anything else unchanged."""
    return examples.float() / 255 if examples.dtype == torch.uint8 else examples


def stack_classes(per_class: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`examples` [N, ...] and `starts` [classes + 1] of `ClassTasks` from one tensor of examples per class."""
    counts = torch.tensor([0, *(len(examples) for examples in per_class)])
    return torch.cat(list(per_class)), counts.cumsum(0)
