"""Task sources with something done to each support set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from quickstudy.episodes import Episodes, stacked, unstack
from quickstudy.learner import Batch
from quickstudy.tasks.source import describe


@dataclass(frozen=True, eq=False)
class ChangedSupport:
    """A task source that applies `change` to each support set; `change` may draw from the tasks' generator."""

    source: Any
    change: Callable[[Batch, torch.Generator | None], Batch]

    @property
    def ways(self) -> int | None:
        return getattr(self.source, "ways", None)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episodes:
        drawn = self.source.sample(n, generator)
        changed = [one._replace(support=self.change(one.support, generator)) for one in unstack(drawn)]
        return changed if isinstance(drawn, list) else stacked(changed)

    @property
    def unit(self) -> float:
        return getattr(self.source, "unit", 1.0)

    def facts(self, n: int, generator: torch.Generator | None = None) -> dict[str, Any]:
        return self.source.facts(n, generator) if hasattr(self.source, "facts") else {}

    def describe(self) -> dict[str, Any]:
        return describe(self.source)


def shuffled(support: Batch, generator: torch.Generator | None) -> Batch:
    """The same examples with their targets permuted at random."""
    order = torch.rand(len(support.y), generator=generator).argsort()
    return support._replace(y=support.y[order])


def without_support(support: Batch, generator: torch.Generator | None) -> Batch:
    """An empty support set."""
    return Batch(support.x[:0], support.y[:0])
