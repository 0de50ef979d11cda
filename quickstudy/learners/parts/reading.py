"""Shared by the learners that read labelled examples one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.base import trees
from quickstudy.episodes import examples, joined
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Batch, Episode, Theta
from quickstudy.nn.model import Inputs, call
from quickstudy.nn.parameters import own
from quickstudy.nn.statistics import statistics

OBJECTIVES = ("query", "stream")


def check_objective(objective: str) -> None:
    """Raise ConfigError for a name that is not in OBJECTIVES."""
    if objective not in OBJECTIVES:
        hint = suggest(str(objective), OBJECTIVES)
        raise ConfigError(f"objective must be 'query' or 'stream', got {objective!r}.{hint}")


def check_sizes(**sizes: int) -> None:
    """Raise ConfigError unless every size is 1 or more."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1; got {size}.")


def encoded(encoder: nn.Module, theta: Theta, x: Inputs, width: int, known: Theta | None = None) -> Tensor:
    """Features [n, width] of n inputs; n may be 0. `known` are the support set's statistics.

    Raises ConfigError where the encoder's output has another shape.
    """
    if not trees.size(x):  # the encoder may not accept an empty batch
        return next(iter(theta.values())).new_zeros(0, width)
    features = call(encoder, own(encoder, theta) | (known or {}), x)
    if features.dim() != 2 or features.shape[1] != width:
        raise ConfigError(
            f"width={width} promises features [n, {width}], but the encoder gives {list(features.shape)}. Set width to "
            "what it gives, and end it with nn.Flatten() if that has more dimensions."
        )
    return features


def statistics_of(encoder: nn.Module, theta: Theta, x: Inputs) -> Theta:
    """The normalisation statistics of the support set's inputs x; none if it is empty."""
    return statistics(encoder, own(encoder, theta), x) if trees.size(x) else {}


def as_input(y: Tensor, ways: int | None, like: Tensor) -> Tensor:
    """Targets as the learner reads them: one-hot [n, ways] for classes y [n]; values y [n, d] as they are."""
    if ways is None:
        return y.to(like.dtype)
    return (y[:, None] == torch.arange(ways, device=y.device)).to(like.dtype)


def delayed(answers: Tensor) -> Tensor:
    """Targets [n, d] shifted by one step, so that y_{t-1} goes with x_t; the first row is zero."""
    return torch.cat([torch.zeros_like(answers[:1]), answers[:-1]])


def shuffled(batch: Batch) -> Batch:
    """The examples in a random order from torch's generator; under `vmap` each task has its own order."""
    first = trees.first(batch.x)
    return examples(batch, torch.rand(len(first), device=first.device).argsort())


def reading_loss(learner: Any, loss: Callable[[Tensor, Tensor], Tensor], theta: Theta, episode: Episode) -> Tensor:
    """The episode's loss under the learner's `objective`; if `shuffle` is set, the examples get a random order."""
    reorder = shuffled if learner.shuffle else lambda batch: batch
    if learner.objective == "stream":
        whole = reorder(joined(episode))
        return loss(learner.stream(theta, whole), whole.y)
    phi = learner.adapt(theta, reorder(episode.support))
    return loss(learner.predict(theta, phi, episode.query.x), episode.query.y)
