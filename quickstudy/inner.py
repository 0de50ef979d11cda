"""The inner loop and its parts: gradients, descent, Hessian-vector products.

Everything works on flat dicts of tensors and composes with `vmap` and with an outer derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Theta
from quickstudy.tracing import inside_transform

LossAt = Callable[[Theta], Tensor]
ADJOINTS = ("unroll", "first_order")


def descend(
    loss_at: LossAt, start: Theta, *, lr: float, steps: int, adjoint: str = "unroll", fixed: Theta | None = None
) -> Theta:
    """`steps` steps of gradient descent: phi_{k+1} = phi_k - lr * grad loss_at(phi_k), phi_0 = start.

    adjoint "unroll" keeps every step differentiable, so an outer gradient carries the exact second-order term
    prod_k (I - lr * H_k). "first_order" holds the inner gradients constant. `fixed` joins each phi for the loss but
    does not move.
    """
    check_adjoint(adjoint)
    fixed = fixed or {}
    phi = start
    for _ in range(steps):
        slope = gradient(lambda p: loss_at({**p, **fixed}), phi, differentiable=adjoint == "unroll")
        phi = {name: value - lr * slope[name] for name, value in phi.items()}
    return {**phi, **fixed}


def gradient(function: LossAt, point: Theta, differentiable: bool = True) -> Theta:
    """grad function(point), zero where the function does not depend on an entry.

    With `differentiable` an outer derivative passes through the result (second order).
    """
    if not differentiable:
        point = {name: value.detach() for name, value in point.items()}
    if inside_transform():
        slope = torch.func.grad(function)(point)
        return slope if differentiable else {name: value.detach() for name, value in slope.items()}
    # Outside of vmap the tape is about a third cheaper than torch.func.grad (docs/performance.md).
    record = differentiable and torch.is_grad_enabled() and _is_watched(function, point)
    with torch.enable_grad():
        leaves = {name: v if v.requires_grad else v.detach().requires_grad_() for name, v in point.items()}
        value = function(leaves)
        if not (leaves and value.requires_grad):
            return {name: torch.zeros_like(v) for name, v in point.items()}
        slopes = torch.autograd.grad(
            value, list(leaves.values()), create_graph=record, materialize_grads=True, allow_unused=True
        )
    return dict(zip(leaves, slopes, strict=True))


def _is_watched(function: LossAt, point: Theta) -> bool:
    """Whether anybody asks for a derivative of the result; if not, no graph is kept alive with it."""
    if any(value.requires_grad for value in point.values()):
        return True
    return function({name: value.detach() for name, value in point.items()}).requires_grad


def hessian_vector_product(function: LossAt, point: Theta, vector: Mapping[str, Tensor]) -> Theta:
    """H v with H the Hessian of a scalar function at `point`, at the cost of about two gradients.

    Reverse over reverse: the derivative of <grad f, v>. (Forward over reverse is cheaper but fails in torch on models
    with a constant gradient, such as a linear model under squared error.)
    """
    slope, pull = torch.func.vjp(torch.func.grad(function), dict(point))[:2]
    return pull({name: vector[name] for name in slope})[0]


def check_steps(steps: int) -> None:
    """Raise ConfigError unless `steps` is a whole number, zero or more."""
    if not isinstance(steps, int) or steps < 0:
        raise ConfigError(f"steps must be a whole number of inner steps, 0 or more; got {steps!r}.")


def check_adjoint(adjoint: str) -> None:
    if adjoint not in ADJOINTS:
        raise ConfigError(f"adjoint must be one of {', '.join(ADJOINTS)}; got {adjoint!r}.{suggest(adjoint, ADJOINTS)}")


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first name whose tensor holds NaN or infinity."""
    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)
