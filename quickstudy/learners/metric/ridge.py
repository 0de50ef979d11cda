"""Ridge regression in closed form, shared by the learners whose head is solved instead of trained."""

from __future__ import annotations

import torch
from torch import Tensor


def ridge(z: Tensor, y: Tensor, lam: Tensor | float) -> Tensor:
    """argmin_W |z W - y|^2 + lam |W|^2 for z [n, d], y [n, k]: W [d, k].

    Computed as (Z^T Z + lam I)^-1 Z^T Y, or as Z^T (Z Z^T + lam I)^-1 Y (Woodbury) where there are fewer examples than
    features, so that the system to solve is the smaller one. Differentiable to any order.
    """
    n, d = z.shape
    if n < d:
        return z.T @ torch.linalg.solve(z @ z.T + lam * _identity(n, z), y)
    return torch.linalg.solve(z.T @ z + lam * _identity(d, z), z.T @ y)


def _identity(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)
