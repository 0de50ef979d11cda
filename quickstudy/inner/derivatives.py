"""Gradients of an inner loss, and the ways to differentiate them again: the adjoints.

An outer derivative pulls a vector v back through g = grad_phi L(phi, xi). This needs (H v, d<g, v>/d xi), where H is
the Hessian of L in phi. `unroll` keeps the graph of g until then. `remat` keeps only phi and xi, and computes g again
in the backward pass: it is exact, takes the time of one more gradient, and needs the memory of one step whatever the
number of steps. `mixed` keeps as little as `remat` and computes

    (H v, d<g, v>/d xi) = d/d epsilon  grad_{phi, xi} L(phi + epsilon v, xi)   at epsilon = 0

in one forward-over-reverse pass. `first_order` lets no derivative through.

Under `vmap`, the gradient is computed one level below it, by plain autograd, from the sum of all tasks' losses. This
is correct because no task's parameters enter another task's loss. Everything works on flat dicts of tensors.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import Function
from torch.utils import _pytree as pytree

from quickstudy.base.seeds import as_drawn, drawn_since, random_states
from quickstudy.base.tracing import below_vmap, forward_mode, inside_transform, inside_vmap, leading
from quickstudy.errors import ConfigError, first_line
from quickstudy.learner import Theta, set_training, training

LossAt = Callable[..., Tensor]  # (phi, *given) -> the loss, a scalar
Given = Sequence[Any]  # what a loss depends on besides phi: tensors, or dicts and tuples of them


def gradient(function: LossAt, point: Theta, given: Given = (), adjoint: str = "unroll") -> Theta:
    """grad function(point, *given) in point; zero for entries on which the function does not depend.

    The settings and errors are those of `value_and_gradient`.
    """
    return value_and_gradient(function, point, given, adjoint)[1]


def value_and_gradient(
    function: LossAt, point: Theta, given: Given = (), adjoint: str = "unroll"
) -> tuple[Tensor, Theta]:
    """function(point, *given), a scalar, and its gradient in point. `adjoint` says how both are differentiated again.

    Raises ConfigError where "remat" or "mixed" would miss a derivative: the function uses a tensor that requires grad
    and is neither in point nor in `given`. "mixed" also raises it in the backward pass, where torch has no
    forward-mode rule for an operation.
    """
    if adjoint == "first_order":
        point, given = pytree.tree_map(torch.Tensor.detach, (point, tuple(given)))
    if inside_vmap(pytree.tree_leaves((point, given))) and given:
        return _below_vmap(function, point, given, adjoint)
    if inside_transform():
        return _by_transform(function, point, given)
    # Outside vmap, plain autograd is about a third cheaper than torch.func.grad (docs/performance.md).
    record = adjoint != "first_order" and torch.is_grad_enabled() and _is_watched(function, point, given)
    if record and adjoint in RECOMPUTED:
        return _apply(RECOMPUTED[adjoint], function, point, given)
    return _on_tape(function, point, given, record)


def _by_transform(function: LossAt, point: Theta, given: Given) -> tuple[Tensor, Theta]:
    def total(point: Theta) -> tuple[Tensor, Tensor]:
        value = function(point, *given)
        return value.sum(), value

    slope, value = torch.func.grad(total, has_aux=True)(point)
    return value, slope


def _on_tape(function: LossAt, point: Theta, given: Given, record: bool) -> tuple[Tensor, Theta]:
    with torch.enable_grad():
        leaves = {name: v if v.requires_grad else v.detach().requires_grad_() for name, v in point.items()}
        value = function(leaves, *given)
        slope = _pull(value, leaves, record=record)
    return value if record else value.detach(), slope


def _pull(value: Tensor, leaves: Theta, weights: Tensor | None = None, record: bool = False) -> Theta:
    """The gradient of the value, or of the sum of its entries. `weights`, if given, weight the entries of the sum."""
    if not (leaves and value.requires_grad):
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    # Sum here if there are no weights: with weights torch imports its symbolic algebra, which takes half a second, and
    # 40 MB for the rest of the process.
    total = value.sum() if weights is None and value.dim() else value
    found = torch.autograd.grad(
        total, list(leaves.values()), weights, create_graph=record, materialize_grads=True, allow_unused=True
    )
    return dict(zip(leaves, found, strict=True))


def _is_watched(function: LossAt, point: Theta, given: Given) -> bool:
    """Whether the result has to be differentiable. If not, no graph needs to be kept."""
    if any(leaf.requires_grad for leaf in pytree.tree_leaves((point, given))):
        return True
    return function({name: value.detach() for name, value in point.items()}, *given).requires_grad


def _apply(kind: type[Function], function: LossAt, point: Theta, given: Given) -> tuple[Tensor, Theta]:
    flat, spec = pytree.tree_flatten((point, tuple(given)))
    value, *slopes = kind.apply(function, spec, *flat)  # type: ignore[misc]
    return value, dict(zip(point, slopes, strict=True))


# --- many tasks ------------------------------------------------------------------------------------------------------


def _below_vmap(function: LossAt, point: Theta, given: Given, adjoint: str) -> tuple[Tensor, Theta]:
    """The gradients of all tasks at once, computed one transform level below the `vmap`."""
    with below_vmap() as level:
        point, given = level.stacked((point, tuple(given)))
        value, slope = value_and_gradient(level.mapped(function), point, given, adjoint)
    return level.wrapped(value), {name: level.wrapped(one) for name, one in slope.items()}


def stacked(info: Any, flat: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """The inputs of a rule for `vmap`, each with a leading task axis; inputs that tasks share are expanded."""
    return [leading(t, dim, info.batch_size) for t, dim in zip(flat, dims, strict=True)]


# --- adjoints that recompute -----------------------------------------------------------------------------------------


class _Remat(Function):
    """Keep only the inputs; the backward pass computes the gradient again, this time with its graph."""

    @staticmethod
    def forward(ctx: Any, function: LossAt, spec: Any, *flat: Tensor) -> Any:
        return _forward(ctx, function, spec, flat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *pulled: Tensor) -> Any:
        inputs, (point, given) = _watched_again(ctx)
        with as_drawn(ctx.random), set_training(ctx.training), torch.enable_grad():
            value, slope = _on_tape(ctx.function, point, given, record=True)
        pairs = [(out, v) for out, v in zip((value, *slope.values()), pulled, strict=True) if out.requires_grad]
        wanted = [t for t in inputs if t.requires_grad]
        if not pairs:
            return None, None, *(None for _ in inputs)
        outputs, vectors = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, vectors, allow_unused=True))
        return None, None, *(next(found) if t.requires_grad else None for t in inputs)


class _Mixed(Function):
    """Keep only the inputs; the backward pass takes a directional derivative of the gradient: forward over reverse."""

    @staticmethod
    def forward(ctx: Any, function: LossAt, spec: Any, *flat: Tensor) -> Any:
        return _forward(ctx, function, spec, flat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weight: Tensor, *direction: Tensor) -> Any:
        inputs, _ = _watched_again(ctx)
        # Pass zeros and contiguous copies: some derivatives in torch fail where a tangent is missing, or where entries
        # of a tangent share memory.
        still = [torch.zeros_like(t) if t.is_floating_point() else None for t in inputs[len(direction) :]]
        along = [*(v.contiguous() for v in direction), *still]
        with _one_forward_pass(), as_drawn(ctx.random), set_training(ctx.training), torch.enable_grad():
            dual = [
                t if v is None else forward_ad.make_dual(t.contiguous(), v) for t, v in zip(inputs, along, strict=True)
            ]
            point, given = pytree.tree_unflatten(dual, ctx.spec)
            value = ctx.function(point, *given)
            wanted = {str(i): t for i, t in enumerate(dual) if t.requires_grad}
            # Pull back a 1 with tangent `weight`: the same pass then adds the weighted derivative of the value itself.
            found = _pull(value, wanted, forward_ad.make_dual(torch.ones_like(value), weight.contiguous()))
            moved = {i: forward_ad.unpack_dual(slope).tangent for i, slope in found.items()}
        return None, None, *(moved.get(str(i)) for i in range(len(inputs)))


RECOMPUTED: dict[str, type[Function]] = {"remat": _Remat, "mixed": _Mixed}


def _forward(ctx: Any, function: LossAt, spec: Any, flat: Sequence[Tensor]) -> Any:
    ctx.save_for_backward(*flat)
    ctx.function, ctx.spec, ctx.training = function, spec, training()
    before = random_states()
    point, given = pytree.tree_unflatten([t.detach() for t in flat], spec)
    with torch.enable_grad():
        leaves = {name: value.requires_grad_() for name, value in point.items()}
        value = function(leaves, *given)
        _check_all_given(value, leaves)
        slope = _pull(value, leaves)
    ctx.random = before if drawn_since(before) else None
    return value.detach(), *slope.values()


def _watched_again(ctx: Any) -> tuple[list[Tensor], Any]:
    """The saved inputs, detached: as a flat list, and as (point, given). Those that need a derivative require grad."""
    size = len(pytree.tree_unflatten(list(range(ctx.spec.num_leaves)), ctx.spec)[0])
    needed = [i < size or wanted for i, wanted in enumerate(ctx.needs_input_grad[2:])]
    inputs = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
    return inputs, pytree.tree_unflatten(inputs, ctx.spec)


def _check_all_given(value: Tensor, leaves: Theta) -> None:
    """Raise ConfigError where the value depends on other tensors: autograd would silently miss their derivative."""
    known = {id(leaf) for leaf in leaves.values()}
    for leaf in _leaves_of(value):
        if id(leaf) not in known:
            raise ConfigError(
                f"the inner loss depends on a tensor of shape {list(leaf.shape)} which asks for a derivative and is "
                'neither phi nor `given`. Hand it to the inner loop as `given`, or use adjoint="unroll".'
            )


def _leaves_of(value: Tensor) -> Iterator[Tensor]:
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        todo += [parent for parent, _ in node.next_functions]


_turn = threading.Lock()


@contextmanager
def _one_forward_pass() -> Iterator[None]:
    """Forward-mode differentiation: torch has a single level of it for all threads, so they take turns."""
    with _turn, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch warns about its own code
        forward_mode.on = True
        try:
            with forward_ad.dual_level():
                yield
        except NotImplementedError as error:
            raise ConfigError(
                f'adjoint="mixed" differentiates forward, for which torch has no rule here: {first_line(error)}. Use '
                'adjoint="remat", which needs none.'
            ) from error
        finally:
            forward_mode.on = False


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
        slope, pull = torch.func.vjp(torch.func.grad(function), dict(point))[:2]
        return lambda vector: pull({name: vector[name] for name in slope})[0]
    # Plain autograd can use our own, cheaper second derivatives of convolution and batch norm.
    leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
    with torch.enable_grad():
        slope = gradient(function, leaves)
    curved = [name for name, value in slope.items() if value.requires_grad]

    def product(vector: Mapping[str, Tensor]) -> Theta:
        if not curved:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        found = torch.autograd.grad(
            [slope[name] for name in curved],
            list(leaves.values()),
            [vector[name] for name in curved],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        return dict(zip(leaves, found, strict=True))

    return product
