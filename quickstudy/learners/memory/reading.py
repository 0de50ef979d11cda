"""What the learners that read labelled examples one after the other have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Batch, Episode, Theta
from quickstudy.model import call, own, statistics

OBJECTIVES = ("query", "stream")


def check_objective(objective: str) -> None:
    """Raise ConfigError for a name that is none of OBJECTIVES."""
    if objective not in OBJECTIVES:
        hint = suggest(str(objective), OBJECTIVES)
        raise ConfigError(f"objective must be 'query' or 'stream', got {objective!r}.{hint}")


def check_sizes(**sizes: int) -> None:
    """Raise ConfigError unless every size is 1 or more."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1; got {size}.")


def encoded(encoder: nn.Module, theta: Theta, x: Tensor, width: int, known: Theta | None = None) -> Tensor:
    """Features [n, width] of x [n, ...]; n may be 0. `known` are the support set's statistics."""
    if not len(x):  # a network need not know what to do with nothing
        return x.new_zeros(0, width)
    features = call(encoder, own(encoder, theta) | (known or {}), x)
    if features.dim() != 2 or features.shape[1] != width:
        raise ConfigError(
            f"width={width} promises features [n, {width}], but the encoder gives {list(features.shape)}. Set width to "
            "what it gives, and end it with nn.Flatten() if that has more dimensions."
        )
    return features


def statistics_of(encoder: nn.Module, theta: Theta, x: Tensor) -> Theta:
    """The support set's normalisation statistics; none of an empty one."""
    return statistics(encoder, own(encoder, theta), x) if len(x) else {}


def as_input(y: Tensor, ways: int | None, like: Tensor) -> Tensor:
    """Answers as the learner reads them: [n, ways] with a one at the class of y [n], or values y [n, d] as they are."""
    if ways is None:
        return y.to(like.dtype)
    return (y[:, None] == torch.arange(ways, device=y.device)).to(like.dtype)


def delayed(answers: Tensor) -> Tensor:
    """y_{t-1} beside x_t: answers [n, d] one step later, zeros first."""
    return torch.cat([torch.zeros_like(answers[:1]), answers[:-1]])


def shuffled(batch: Batch) -> Batch:
    """The examples in an order drawn from torch's generator, another one for each task under `vmap`."""
    order = torch.rand(len(batch.x), device=batch.x.device).argsort()
    return Batch(batch.x[order], batch.y[order])


def joined(episode: Episode) -> Batch:
    """Support and query set as one stream."""
    return Batch(*(torch.cat(pair) for pair in zip(*episode, strict=True)))


def reading_loss(learner: Any, loss: Callable[[Tensor, Tensor], Tensor], theta: Theta, episode: Episode) -> Tensor:
    """The episode's loss under the learner's `objective`, in a new order if it says `shuffle`."""
    reorder = shuffled if learner.shuffle else lambda batch: batch
    if learner.objective == "stream":
        whole = reorder(joined(episode))
        return loss(learner.stream(theta, whole), whole.y)
    phi = learner.adapt(theta, reorder(episode.support))
    return loss(learner.predict(theta, phi, episode.query.x), episode.query.y)
