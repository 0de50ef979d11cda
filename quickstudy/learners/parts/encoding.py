"""Inputs and labels as learners read them: features, embeddings, the statistics beside them, one-hot labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quickstudy.base import trees
from quickstudy.errors import ConfigError
from quickstudy.learner import Theta
from quickstudy.nn.model import Inputs, call
from quickstudy.nn.parameters import own
from quickstudy.nn.statistics import statistics


def raw(x: Inputs) -> Tensor:
    """Inputs as they are, in one vector each [n, d]; the numbers of several tensors side by side."""
    if isinstance(x, Tensor):
        return x.flatten(1)
    parts = [t.reshape(len(t), -1) for t in trees.tensors(x)]
    floats = [t.dtype for t in parts if t.is_floating_point()]
    return torch.cat([t.to(floats[0] if floats else torch.get_default_dtype()) for t in parts], 1)


def embedding(encoder: nn.Module, theta: Theta, x: Inputs, known: Mapping[str, Tensor] | None = None) -> Tensor:
    """The encoder's embeddings [n, d] of n inputs. theta may hold more; `known` are the support set's statistics."""
    return call(encoder, {**own(encoder, theta), **(known or {})}, x).flatten(1)


def features(encoder: nn.Module, width: int, theta: Theta, x: Inputs, known: Theta | None = None) -> Tensor:
    """The encoder's features [n, width] of n inputs; n may be 0. `known` are the support set's statistics.

    Raises ConfigError where the encoder's output has another shape.
    """
    if not trees.size(x):  # layers that normalise over the batch refuse an empty one
        return next(iter(theta.values())).new_zeros(0, width)
    return checked_features(call(encoder, own(encoder, theta) | (known or {}), x), width)


def checked_features(found: Tensor, width: int) -> Tensor:
    """The features, unchanged. Raises ConfigError where they are not [n, width]."""
    if found.dim() != 2 or found.shape[1] != width:
        raise ConfigError(
            f"width={width} promises features [n, {width}], but the encoder gives {list(found.shape)}. Set width to "
            "what it gives, and end it with nn.Flatten() if that has more dimensions."
        )
    return found


def known_statistics(encoder: nn.Module, theta: Theta, x: Inputs) -> Theta:
    """The support set's normalisation statistics, empty unless norm="support", and where there are no inputs x.

    theta may hold more than the encoder's parameters.
    """
    return statistics(encoder, own(encoder, theta), x) if trees.size(x) else {}


def one_hot(y: Tensor, ways: int, like: Tensor) -> Tensor:
    """One-hot labels [n, ways] for classes y [n], with the dtype of `like`."""
    return (y[:, None] == torch.arange(ways, device=y.device)).to(like.dtype)
