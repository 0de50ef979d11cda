"""Class means and distances, shared by the learners that compare embeddings."""

from __future__ import annotations

import torch
from torch import Tensor


def class_means(z: Tensor, y: Tensor, ways: int) -> Tensor:
    """Mean of z [n, d] over each class of y [n]: [ways, d]. Every class must have an example."""
    members = (y[:, None] == torch.arange(ways, device=y.device)).to(z.dtype)  # [n, ways]
    return members.T @ z / members.sum(0)[:, None]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 for a [n, d] and b [m, d]: [n, m], by the product form, which needs no [n, m, d] array."""
    # Far from the origin the product form cancels; a common shift changes no distance.
    centre = b.mean(0).detach()
    a, b = a - centre, b - centre
    return (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)[None]
