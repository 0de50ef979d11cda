"""Gradients of an inner loss, differentiable again as an adjoint says, and products with its Hessian.

Under `vmap`, the gradient is computed one level below it, by plain autograd, from the sum of all tasks' losses. This
is correct because no task's parameters enter another task's loss. Everything works on flat dicts of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.base.tracing import below_vmap, inside_transform, inside_vmap, leading
from quickstudy.inner.adjoints import (
    ALONG_THE_PATH,
    UNROLL,
    Adjoint,
    Given,
    LossAt,
    find_adjoint,
    on_tape,
    recomputed,
)
from quickstudy.learner import Theta


def gradient(function: LossAt, point: Theta, given: Given = (), adjoint: str | Adjoint = UNROLL) -> Theta:
    """grad function(point, *given) in point; zero for entries on which the function does not depend.

    The settings and errors are those of `value_and_gradient`.
    """
    return value_and_gradient(function, point, given, adjoint)[1]


def value_and_gradient(
    function: LossAt, point: Theta, given: Given = (), adjoint: str | Adjoint = UNROLL
) -> tuple[Tensor, Theta]:
    """function(point, *given), a scalar, and its gradient in point. `adjoint` says how both are differentiated again.

    Raises ConfigError where the adjoint is not one of ALONG_THE_PATH, and where "remat" or "mixed" would miss a
    derivative: the function uses a tensor that requires grad and is neither in point nor in `given`. "mixed" also
    raises it in the backward pass, where torch has no forward-mode rule for an operation.
    """
    how = find_adjoint(adjoint, ALONG_THE_PATH)
    if not how.through:
        point, given = pytree.tree_map(torch.Tensor.detach, (point, tuple(given)))
    if inside_vmap(pytree.tree_leaves((point, given))) and given:
        return _below_vmap(function, point, given, how)
    if inside_transform():
        return _by_transform(function, point, given, how)
    # Outside vmap, plain autograd is about a third cheaper than torch.func.grad (docs/performance.md).
    record = how.through and torch.is_grad_enabled() and _is_watched(function, point, given)
    if record and how.recompute is not None:
        return recomputed(how.recompute, function, point, given)
    return on_tape(function, point, given, record)


def _by_transform(function: LossAt, point: Theta, given: Given, how: Adjoint) -> tuple[Tensor, Theta]:
    def total(point: Theta) -> tuple[Tensor, Tensor]:
        value = function(point, *given)
        return value.sum(), value

    derivative, value = torch.func.grad(total, has_aux=True)(point)
    if not how.through:  # what the function closes over must not be reached either, as on the tape
        return value.detach(), {name: g.detach() for name, g in derivative.items()}
    return value, derivative


def _is_watched(function: LossAt, point: Theta, given: Given) -> bool:
    """Whether the result has to be differentiable. If not, no graph needs to be kept."""
    if any(leaf.requires_grad for leaf in pytree.tree_leaves((point, given))):
        return True
    return function({name: value.detach() for name, value in point.items()}, *given).requires_grad


# --- many tasks ------------------------------------------------------------------------------------------------------


def _below_vmap(function: LossAt, point: Theta, given: Given, how: Adjoint) -> tuple[Tensor, Theta]:
    """The gradients of all tasks at once, computed one transform level below the `vmap`."""
    with below_vmap() as level:
        point, given = level.stacked((point, tuple(given)))
        value, derivative = value_and_gradient(level.mapped(function), point, given, how)
    return level.wrapped(value), {name: level.wrapped(one) for name, one in derivative.items()}


def stacked(info: Any, flat: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """The inputs of a rule for `vmap`, each with a leading task axis; inputs that tasks share are expanded."""
    return [leading(t, dim, info.batch_size) for t, dim in zip(flat, dims, strict=True)]


# --- second derivatives ----------------------------------------------------------------------------------------------


def hessian_vector_product(function: LossAt, point: Theta, vector: Mapping[str, Tensor]) -> Theta:
    """H v, where H is the Hessian of a scalar function at `point`. Costs about two gradients."""
    return hessian(function, point)(vector)


def hessian(function: LossAt, point: Theta) -> Callable[[Mapping[str, Tensor]], Theta]:
    """The map v -> H v, where H is the Hessian of a scalar function at `point`.

    v and H v are dicts like `point`. Costs one gradient now and about one more per product. Reverse over reverse: the
    derivative of <grad f, v>.
    """
    if inside_transform():
        first, pull_back = torch.func.vjp(torch.func.grad(function), dict(point))[:2]
        return lambda vector: pull_back({name: vector[name] for name in first})[0]
    # Plain autograd can use our own, cheaper second derivatives of convolution and batch norm.
    leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
    with torch.enable_grad():
        first = gradient(function, leaves)
    curved = [name for name, value in first.items() if value.requires_grad]

    def product(vector: Mapping[str, Tensor]) -> Theta:
        if not curved:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        products = torch.autograd.grad(
            [first[name] for name in curved],
            list(leaves.values()),
            [vector[name] for name in curved],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        return dict(zip(leaves, products, strict=True))

    return product
