"""Shared by the neural processes: the networks h and g, decoding, and which support points training keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Theta
from quickstudy.learners.parts.gaussian import Gaussian
from quickstudy.learners.parts.sets import applied, joined, members, perceptron, some

PREFIX = "process."  # prefix in theta of everything but the encoder's parameters


def check(name: str, least: Mapping[str, tuple[float, float]]) -> None:
    """Raise ConfigError for a value below its lower bound. `least`: field -> (value, bound)."""
    for field, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(f"{field} of {name} must be at least {bound:g}, got {value:g}.")


def check_fields(learner: Any, name: str) -> None:
    """Raise ConfigError for impossible values of the fields that the neural processes share."""
    least = {"width": 1, "outputs": 1, "representation": 1, "depth": 1, "fewest": 0, "min_std": 0.0}
    check(name, {field: (getattr(learner, field), bound) for field, bound in least.items()})
    if not learner.y_scale > 0:
        raise ConfigError(f"y_scale is the typical size of y, above 0; got {learner.y_scale}.")
    if not all(factor > 0 for factor in learner.std_factors):
        raise ConfigError(f"std_factors are above 0; got {', '.join(map(str, learner.std_factors))}.")


def networks(
    width: int, ways: int | None, outputs: int, representation: int, depth: int, latent: int, generator: torch.Generator
) -> Theta:
    """Initial weights of h ("pairs") and g ("decoder")."""
    hidden = [representation] * (depth - 1)
    pairs = [width + (0 if ways else outputs), *hidden, representation]
    decoder = [width + representation * (2 if ways else 1) + latent, *hidden, 1 if ways else 2 * outputs]
    return perceptron("pairs", pairs, generator) | perceptron("decoder", decoder, generator, level=not ways)


def decoded(parts: Mapping[str, Tensor], e: Tensor, sets: Tensor, ways: int | None, *codes: Tensor) -> Tensor:
    """The output of g for query features e [m, width] and representations [sets, 1 or m, r].

    Regression: means and raw standard deviations [..., m, 2 * outputs], with further leading dimensions where `codes`
    have them. Classification: logits [m, ways].
    """
    if ways is None:
        return applied(parts, "decoder", joined(e, sets[0], *codes))
    return applied(parts, "decoder", joined(e, sets, sets.mean(0))).squeeze(-1).T


def gaussian(output: Tensor, min_std: float) -> Gaussian:
    """The first half of the numbers as means; the second half through min_std + softplus as standard deviations."""
    mean, u = output.chunk(2, -1)
    return Gaussian(mean, min_std + F.softplus(u))


def std_factor(factors: Sequence[float], support: Batch) -> Tensor:
    """The factor [] of the standard deviations for this support set, 1 if there are none.

    `factors` are those after 0, 1, 2, ... support points; the last one also serves larger support sets.
    """
    known = factors[min(len(support.y), len(factors) - 1)] if factors else 1.0
    return torch.tensor(known, dtype=support.y.dtype, device=support.y.device)


def kept(y: Tensor, ways: int | None, fewest: int, like: Tensor) -> Tensor:
    """The members of the sets that a training episode keeps, see `some`: at least one example of every class."""
    return some(members(y, ways, like), max(fewest, 1) if ways else fewest)


def check_regression(ways: int | None, name: str) -> None:
    if ways is not None:
        raise ConfigError(f"this {name} classifies ({ways} ways): it has odds (predict), no distribution of values.")
