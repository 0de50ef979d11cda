"""Embeddings, class means and distances, shared by the learners that compare embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.base import trees
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


def known_statistics(encoder: nn.Module, theta: Theta, x: Inputs) -> Theta:
    """The support set's normalisation statistics, empty unless norm="support". theta may hold more."""
    return statistics(encoder, own(encoder, theta), x)


def one_hot(y: Tensor, ways: int, like: Tensor) -> Tensor:
    """One-hot labels [n, ways] for classes y [n], with the dtype of `like`."""
    return (y[:, None] == torch.arange(ways, device=y.device)).to(like.dtype)


def class_means(z: Tensor, y: Tensor, ways: int) -> Tensor:
    """Mean of z [n, d] over each class of y [n]: [ways, d]. Every class must have an example."""
    members = one_hot(y, ways, z)
    return members.T @ z / members.sum(0)[:, None]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """cos(a_i, b_j) for a [n, d] and b [m, d]: [n, m]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 for a [n, d] and b [m, d]: [n, m], by the product form, which needs no [n, m, d] array."""
    # Far from the origin the product form loses digits by cancellation. A common shift changes no distance.
    centre = b.mean(0).detach()
    a, b = a - centre, b - centre
    return (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)[None]


def to_nearest(distances: Tensor) -> Tensor:
    """The smallest distance in each row of [m, n], at least 0: [m]. Rounding can put the product form below 0."""
    return distances.amin(1).clamp(min=0)
