"""Gaussians: their negative log-likelihood, their divergence, and the moments of a mixture."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

# --- Gaussians -------------------------------------------------------------------------------------------------------


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Tensor
    std: Tensor

    def at(self, noise: Tensor | None = None) -> Tensor:
        """mean + noise * std, a sample where `noise` is standard normal; the mean where it is None."""
        return self.mean if noise is None else self.mean + noise * self.std


def negative_log_likelihood(p: Gaussian, y: Tensor) -> Tensor:
    """-log p(y) of each number, in nats."""
    return 0.5 * ((y - p.mean) / p.std) ** 2 + p.std.log() + 0.5 * math.log(2 * math.pi)


def divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), summed over all numbers."""
    ratio, way = q.std / p.std, (q.mean - p.mean) / p.std
    return (0.5 * (ratio**2 + way**2 - 1) - ratio.log()).sum()


def moments(p: Gaussian) -> Gaussian:
    """Mean and standard deviation of the equally weighted mixture along p's first dimension."""
    mean = p.mean.mean(0)
    return Gaussian(mean, (p.std**2 + (p.mean - mean) ** 2).mean(0).sqrt())
