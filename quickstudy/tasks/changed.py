"""Task sources with something done to each support set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from quickstudy.base import trees
from quickstudy.episodes import Episodes, stacked, unstack
from quickstudy.learner import Batch
from quickstudy.tasks.source import source_of


@dataclass(frozen=True, eq=False)
class ChangedSupport:
    """A task source that applies `change` to each support set; `change` may draw from the tasks' generator.

    What the source declares of its tasks stays true of the changed ones.
    """

    source: Any
    change: Callable[[Batch, torch.Generator | None], Batch]

    @property
    def ways(self) -> int | None:
        return source_of(self.source).ways

    @property
    def unit(self) -> float:
        return source_of(self.source).unit

    @property
    def on_policy(self) -> bool:
        return source_of(self.source).on_policy

    def sample(self, n: int, generator: torch.Generator | None = None, **policy: Any) -> Episodes:
        """n tasks of the source, changed; `policy` holds learner and theta where the source is `on_policy`."""
        source = source_of(self.source)
        drawn = source.draw(n, generator, **policy) if policy else source.sample(n, generator)
        changed = [one._replace(support=self.change(one.support, generator)) for one in unstack(drawn)]
        return changed if isinstance(drawn, list) else stacked(changed)

    def facts(self, n: int, generator: torch.Generator | None = None) -> dict[str, Any]:
        return source_of(self.source).facts(n, generator)

    def describe(self) -> dict[str, Any]:
        return source_of(self.source).describe()


def shuffled(support: Batch, generator: torch.Generator | None) -> Batch:
    """The same examples with their targets permuted at random."""
    order = torch.rand(trees.size(support.y), generator=generator).argsort()
    return support._replace(y=trees.rows(support.y, order))


def without_support(support: Batch, generator: torch.Generator | None) -> Batch:
    """An empty support set."""
    return Batch(*(trees.rows(part, slice(0)) for part in support))
