"""Regression of sine waves: the smallest benchmark of few-shot regression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quickstudy.errors import DataError
from quickstudy.learner import Batch, Episode
from quickstudy.seeds import derive
from quickstudy.tasks.splits import check_split


@dataclass(frozen=True, eq=False)
class Sinusoids:
    """A task is y = amplitude * sin(x + phase), amplitude ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5].

    Finn, Abbeel, Levine 2017, section 5.1. Tasks are drawn from a continuum, so splits differ by their random stream:
    the same generator gives different tasks in each.
    """

    split: str = "train"
    shots: int = 10  # support examples per task
    queries: int = 10  # query examples per task
    name: str = "sinusoid"

    def __post_init__(self) -> None:
        check_split(self.split)
        if self.shots < 1 or self.queries < 1:
            raise DataError(f"shots and queries must be at least 1, got {self.shots} and {self.queries}.")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        """n episodes: x [n, shots, 1], y [n, shots, 1], and the same with queries."""
        start = int(torch.randint(2**62, (), generator=generator))
        own = torch.Generator().manual_seed(derive(start, self.split))
        amplitude = 0.1 + 4.9 * torch.rand(n, 1, 1, generator=own)
        phase = math.pi * torch.rand(n, 1, 1, generator=own)
        x = 10 * torch.rand(n, self.shots + self.queries, 1, generator=own) - 5
        y = amplitude * torch.sin(x + phase)
        return Episode(*(Batch(a, b) for a, b in zip(self._cut(x), self._cut(y), strict=True)))

    def _cut(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split([self.shots, self.queries], dim=1)

    def describe(self) -> dict[str, Any]:
        """The task part of a protocol."""
        return {"name": self.name, "split": self.split, "ways": None, "shots": self.shots, "queries": self.queries}


def sinusoid(split: str = "train", shots: int = 10, queries: int = 10) -> Sinusoids:
    """Sine waves of random amplitude and phase, see `Sinusoids`."""
    return Sinusoids(split, shots, queries)
