"""Class means and distances, shared by the learners that compare embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from quickstudy.learners.parts.encoding import one_hot


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
