"""The multi-class support vector machine of Crammer and Singer, solved and differentiated at the solution.

    primal   min_W 1/2 |W|^2 + C sum_n max_k (1 - [k = y_n] + w_k . z_n - w_{y_n} . z_n)
    dual     min_A C/2 <A, K A> - <Y, A>   with A 1 = 0 and S = Y - A >= 0;   K = Z Z^T, Y one-hot [n, ways]
    W = C Z^T A

A is optimal when there are multipliers P >= 0 (the prices) and v [n] (the levels) with

    C K A - Y + P + v 1^T = 0,   A 1 = 0,   P * S = mu,   mu = 0

For mu > 0 these equations have one smooth solution, the central path, whose duality gap is C n ways mu. An interior
point method follows it by Newton steps (Mehrotra's predictor and corrector) from mu of order one to tolerance / ways.
A step in (A, v) solves, with D = P / S,

    (C K + diag D_k) dA_k + dv = b_k for each class k,   sum_k dA_k = 0

With H_k = (C K + diag D_k)^-1 [n, n], the solution is dv = (sum_k H_k)^-1 sum_k H_k b_k, dA_k = H_k (b_k - dv). It
needs matrices of size n instead of n * ways. Everything is in float64, because D ranges over ten orders of magnitude.

The derivative follows from the implicit function theorem: when K changes, the residual of the equations changes by
C dK A, and the Newton step from the solution gives the change of A. So one more Newton step is taken, with constant
matrices and a residual that is a function of K. Its value is zero up to rounding, and its first derivative is that of
the solution. (Its second derivative is not.)

Crammer, Singer: On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, JMLR 2001.
Mehrotra: On the Implementation of a Primal-Dual Interior Point Method, SIAM Journal on Optimization 1992.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHORT_OF_THE_EDGE = 0.99  # fraction of the way to where the first entry would reach zero


class Point(NamedTuple):
    """A dual point within the constraints; every tensor is [n, ways] except `level`."""

    a: Tensor  # A
    slack: Tensor  # S = Y - A
    price: Tensor  # P, the multipliers of S >= 0
    level: Tensor  # v [n], the multipliers of A 1 = 0


class Newton(NamedTuple):
    """The matrices of a Newton step."""

    inverses: Tensor  # H_k [ways, n, n]
    total: Tensor  # sum_k H_k [n, n]


def support_vectors(z: Tensor, y: Tensor, c: float, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """W [d, ways] for z [n, d] and one-hot y [n, ways], and the duality gap relative to the objective C n of W = 0.

    Takes `steps` interior point steps; if they were enough, the gap is about `tolerance`.
    """
    z64, y64 = z.double(), y.double()
    kernel = c * z64 @ z64.T
    with torch.no_grad():
        point = solve(kernel.detach(), y64, steps, tolerance)
    a = _followed(kernel, y64, point)
    return (c * z64.T @ a).to(z.dtype), (point.slack * point.price).sum() / len(y)


def solve(kernel: Tensor, y: Tensor, steps: int, tolerance: float) -> Point:
    """The point of the central path with mu = tolerance / ways, for kernel = C K [n, n]."""
    end = tolerance / y.shape[1]
    point = _start(kernel, y)
    for _ in range(steps):
        point = _step(kernel, y, point, end)
    return point


def _start(kernel: Tensor, y: Tensor) -> Point:
    """S = 1 / ways everywhere, and prices above one that solve the first equation."""
    a = y - 1 / y.shape[1]
    gradient = y - kernel @ a  # of the dual objective, with the sign of ascent
    level = gradient.amin(1) - 1
    return Point(a, y - a, gradient - level[:, None], level)


def _step(kernel: Tensor, y: Tensor, point: Point, end: float) -> Point:
    newton = _matrices(kernel, point)
    mu = (point.price * point.slack).mean()
    da, dp, _ = _direction(kernel, y, point, newton, torch.zeros_like(mu))  # predictor: straight to mu = 0
    far = _length(point, da, dp).clamp(max=1)
    left = ((point.slack - far * da) * (point.price + far * dp)).mean()
    target = ((left / mu) ** 3 * mu).clamp(min=end)
    # The corrector allows for the product of both changes. At the end it is dropped, because it would shift the target.
    bent = torch.where(target > end, da * dp, 0.0)
    da, dp, dv = _direction(kernel, y, point, newton, target + bent)
    far = (SHORT_OF_THE_EDGE * _length(point, da, dp)).clamp(max=1)
    return Point(point.a + far * da, point.slack - far * da, point.price + far * dp, point.level + far * dv)


def _matrices(kernel: Tensor, point: Point) -> Newton:
    inverses = torch.linalg.inv_ex(kernel + torch.diag_embed((point.price / point.slack).T))[0]
    return Newton(inverses, inverses.sum(0))


def _direction(
    kernel: Tensor, y: Tensor, point: Point, newton: Newton, product: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dA, dP, dv that solve the linearised equations with P * S = product."""
    missing = (product - point.price * point.slack) / point.slack
    residual = kernel @ point.a - y + point.price + point.level[:, None]
    da, dv = _solved(newton, -residual - missing, point.a.sum(1))
    return da, missing + point.price / point.slack * da, dv


def _solved(newton: Newton, b: Tensor, sums: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    dv = torch.linalg.solve_ex(newton.total, _each(newton.inverses, b).sum(1) + sums)[0]
    return _each(newton.inverses, b - dv[:, None]), dv


def _each(inverses: Tensor, b: Tensor) -> Tensor:
    """H_k b_k for the columns b_k of b [n, ways]."""
    return (inverses @ b.T[..., None])[..., 0].T


def _length(point: Point, da: Tensor, dp: Tensor) -> Tensor:
    """The step length at which the first slack or price would be zero."""
    slack = torch.where(da > 0, point.slack / da, torch.inf).amin()
    price = torch.where(dp < 0, -point.price / dp, torch.inf).amin()
    return torch.minimum(slack, price)


def _followed(kernel: Tensor, y: Tensor, point: Point) -> Tensor:
    """A with its derivative in the kernel: one Newton step with constant matrices."""
    newton = _matrices(kernel.detach(), point)
    residual = kernel @ point.a - y + point.price + point.level[:, None]
    return point.a + _solved(newton, -residual)[0]
