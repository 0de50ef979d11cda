"""Similarity of two representations of the same examples: linear centred kernel alignment (CKA) and relative change.

    CKA(X, Y) = |X^T Y|^2 / (|X^T X| |Y^T Y|)   for X [n, p], Y [n, q] with columns centred, in Frobenius norms
              = <K, L> / (|K| |L|)              with K = X X^T, L = Y Y^T

CKA does not change when either representation is rotated or scaled. With more features than examples it is biased
towards 1 (p >> n makes any K and L alike), so it compares layers best with many queries.

Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019,
https://arxiv.org/abs/1905.00414
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """|after - before| / |before|, a scalar: 0 where both are equal, infinite where only `before` is zero."""
    moved, size = (torch.linalg.vector_norm(t).double() for t in (after - before, before))
    return torch.where(moved == 0, torch.zeros_like(moved), moved / size)


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of two representations x [n, p], y [n, q] of the same n examples: a scalar.

    It is 1 where they are equal up to rotation and scale. Representations that are constant over the examples carry no
    information: two of them count as equal (1), a constant one and a varying one as unrelated (0).
    """
    kx, ky = _gram(x), _gram(y)
    aligned = (kx * ky).sum() / ((kx * kx).sum() * (ky * ky).sum()).sqrt()
    empty_x, empty_y = _is_constant(x, kx), _is_constant(y, ky)
    return torch.where(empty_x | empty_y, (empty_x & empty_y).to(aligned.dtype), aligned.clamp(max=1))


def _gram(x: Tensor) -> Tensor:
    """Inner products [n, n] of centred representations x [n, p]."""
    centred = x - x.mean(0)
    # The large product is in the model's own precision: its rounding errors enter 1 - CKA only in second order.
    return (centred @ centred.T).double()


def _is_constant(x: Tensor, gram: Tensor) -> Tensor:
    """Whether x minus its mean is nothing but rounding errors."""
    return gram.trace().sqrt() <= 10 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x)
