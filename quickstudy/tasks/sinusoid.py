"""Regression on sine waves, the smallest benchmark for few-shot regression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quickstudy.base.seeds import derive
from quickstudy.errors import DataError
from quickstudy.learner import Batch, Episode
from quickstudy.tasks.splits import check_split


@dataclass(frozen=True, eq=False)
class Sinusoids:
    """A task is y = amplitude * sin(x + phase), amplitude ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5].

    Finn, Abbeel, Levine 2017, section 5.1. Tasks are drawn from a continuum, so the splits differ only in their random
    streams: the same generator gives different tasks in each. `noise` is the standard deviation of the Gaussian noise
    that is added to every y of the support and query sets. It leaves waves and inputs x unchanged.

    Raises ConfigError for an unknown split, DataError for shots or queries below 1 and for a negative noise.
    """

    split: str = "train"
    shots: int = 10  # support examples per task
    queries: int = 10  # query examples per task
    noise: float = 0.0  # standard deviation of the observation noise

    def __post_init__(self) -> None:
        check_split(self.split)
        if self.shots < 1 or self.queries < 1:
            raise DataError(f"shots and queries must be at least 1, got {self.shots} and {self.queries}.")
        if not 0 <= self.noise < math.inf:
            raise DataError(f"noise is a standard deviation, 0 or more; got {self.noise}.")

    @property
    def name(self) -> str:
        """The name of the source. It includes the noise, because scores under different noise are not comparable."""
        return f"sinusoid with noise {self.noise:g}" if self.noise else "sinusoid"

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        """n episodes: x [n, shots, 1], y [n, shots, 1], and the same with queries."""
        own = self._stream(generator)
        amplitude, phase = _waves(n, own)
        x = 10 * torch.rand(n, self.shots + self.queries, 1, generator=own) - 5
        y = amplitude * torch.sin(x + phase)
        if self.noise:
            y = y + self.noise * torch.randn(y.shape, generator=own)
        return Episode(*(Batch(a, b) for a, b in zip(self._cut(x), self._cut(y), strict=True)))

    def facts(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Amplitude [n] and phase [n] of the tasks that `sample` draws from a generator in the same state."""
        amplitude, phase = _waves(n, self._stream(generator))
        return {"amplitude": amplitude.flatten(), "phase": phase.flatten()}

    def _stream(self, generator: torch.Generator | None) -> torch.Generator:
        start = int(torch.randint(2**62, (), generator=generator))
        return torch.Generator().manual_seed(derive(start, self.split))

    def _cut(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split([self.shots, self.queries], dim=1)

    def describe(self) -> dict[str, Any]:
        """The task part of a protocol."""
        return {"name": self.name, "split": self.split, "ways": None, "shots": self.shots, "queries": self.queries}


def _waves(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Amplitude and phase, [n, 1, 1] each."""
    amplitude = 0.1 + 4.9 * torch.rand(n, 1, 1, generator=generator)
    return amplitude, math.pi * torch.rand(n, 1, 1, generator=generator)


def sinusoid(split: str = "train", shots: int = 10, queries: int = 10, noise: float = 0.0) -> Sinusoids:
    """Sine waves of random amplitude and phase, see `Sinusoids`."""
    return Sinusoids(split, shots, queries, noise)
