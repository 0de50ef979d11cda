"""Shared by the learners that read labelled examples one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import trees
from quickstudy.episodes import examples, joined
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Batch, Episode, Theta

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
