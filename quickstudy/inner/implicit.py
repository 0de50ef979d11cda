"""Conjugate gradient on dicts of tensors, and the implicit derivative of a minimum, which uses it.

The minimum phi* of L(phi, xi) + |phi - start|^2 / (2 c) satisfies phi* + c grad L(phi*, xi) = start, so that

    d phi* = (I + c H)^{-1} (d start - c d_xi grad L(phi*, xi)),   H the Hessian of L at phi*

Pulling a vector back through this means solving one symmetric system. Conjugate gradient needs only products H v.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils import _pytree as pytree

from quickstudy.base.tracing import inside_transform
from quickstudy.errors import AccuracyWarning
from quickstudy.inner.adjoints import Given, LossAt
from quickstudy.inner.derivatives import gradient, hessian, stacked
from quickstudy.learner import Theta

STEPS, TOLERANCE, POOR = 10, 1e-6, 0.01  # of the solver; it warns above the residual POOR
UNSOLVED = (
    "conjugate gradient stopped after {} steps above a relative residual of {:g}: the implicit meta-gradient is less "
    'exact than it should be. Take fewer inner steps, a smaller inner learning rate, or adjoint="remat".'
)


def implicit_derivative(loss_at: LossAt, start: Theta, end: Theta, given: Given, strength: float) -> Theta:
    """`end`, with the derivative of the minimum above in `start` and `given`; `strength` is c.

    The backward pass gives an AccuracyWarning where the relative residual of the solver stays above POOR.
    """
    still = {name: value.detach() for name, value in end.items()}
    derivative = gradient(loss_at, still, given)
    residual = {name: start[name] - strength * derivative[name] for name in start}
    flat, spec = pytree.tree_flatten((residual, still, tuple(given)))

    def solve(v: Theta, point: Theta, given: Given) -> Theta:
        curvature = hessian(lambda p: loss_at(p, *given), point)
        x, left = conjugate_gradient(lambda p: _axpy(strength, curvature(p), p), v, steps=STEPS, tolerance=TOLERANCE)
        warn_above(left, POOR, UNSOLVED.format(STEPS, POOR))
        return x

    moved = _Solved.apply(solve, spec, *flat)
    return {name: still[name] + zero for name, zero in zip(still, moved, strict=True)}  # type: ignore[arg-type]


class _Solved(Function):
    """Zeros, whose backward pass turns a vector v into solve(v)."""

    @staticmethod
    def forward(solve: Callable[..., Theta], spec: Any, *flat: Tensor) -> Any:
        return tuple(torch.zeros_like(value) for value in pytree.tree_unflatten(list(flat), spec)[0].values())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.solve, ctx.spec, *flat = inputs
        ctx.save_for_backward(*flat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *vectors: Tensor) -> Any:
        residual, point, given = pytree.tree_unflatten([t.detach() for t in ctx.saved_tensors], ctx.spec)
        solution = ctx.solve(dict(zip(residual, vectors, strict=True)), point, given)
        return None, None, *solution.values(), *[None] * (len(ctx.saved_tensors) - len(solution))

    @staticmethod
    def vmap(info: Any, in_dims: Any, solve: Callable[..., Theta], spec: Any, *flat: Tensor) -> Any:  # type: ignore[override]
        each = stacked(info, flat, in_dims[2:])
        moved = _Solved.apply(torch.func.vmap(solve, randomness=info.randomness), spec, *each)
        return moved, (0,) * len(moved)  # type: ignore[arg-type]


# --- the solver ------------------------------------------------------------------------------------------------------


class Solution(NamedTuple):
    """x with A x close to b, and the relative residual |A x - b| / |b|."""

    x: Theta
    residual: Tensor


def conjugate_gradient(product: Callable[[Theta], Theta], b: Theta, *, steps: int, tolerance: float = 0.0) -> Solution:
    """Solve A x = b for a symmetric positive definite A, given as v -> A v, from x = 0 (Hestenes, Stiefel 1952).

    Stops after `steps` products, or once |A x - b| <= tolerance * |b|. Under `vmap` no task can stop before the
    others: there, the solution of a task that has converged no longer changes.
    """
    x, r = {name: torch.zeros_like(value) for name, value in b.items()}, b
    p, size = r, _dot(r, r)
    goal = size * tolerance**2
    for _ in range(steps):
        going = size > goal
        if not (inside_transform() or bool(going)):
            break
        ap = product(p)
        # A converged task would divide zero by zero: leave it unchanged instead.
        alpha = torch.where(going, size / torch.where(going, _dot(p, ap), 1.0), 0.0)
        x, r = _axpy(alpha, p, x), _axpy(-alpha, ap, r)
        new = _dot(r, r)
        beta = torch.where(going, new / torch.where(going, size, 1.0), 0.0)
        p, size = _axpy(beta, p, r), new
    whole = _dot(b, b)
    return Solution(x, (size / torch.where(whole > 0, whole, 1.0)).sqrt())


def _dot(a: Theta, b: Theta) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _axpy(scale: Tensor | float, x: Theta, y: Theta) -> Theta:
    return {name: scale * x[name] + y[name] for name in x}


def warn_above(value: Tensor, limit: float, text: str) -> None:
    """Give an AccuracyWarning when the value, or that of any task under `vmap`, exceeds the limit or is NaN."""
    _Warn.apply(value.detach(), limit, text)


class _Warn(torch.autograd.Function):
    """A Function, because under `vmap` the numbers themselves are only visible inside one."""

    @staticmethod
    def forward(value: Tensor, limit: float, text: str) -> Tensor:
        if not bool((value <= limit).all()):
            warnings.warn(text, AccuracyWarning, stacklevel=2)
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, value: Tensor, limit: float, text: str) -> tuple[Tensor, Any]:  # type: ignore[override]
        return _Warn.apply(value, limit, text), in_dims[0]
