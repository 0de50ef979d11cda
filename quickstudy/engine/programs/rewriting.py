"""Simplifies recorded programs: rewriting rules that give the same result with fewer operations.

Transforms and derivatives leave operations that do no work: a view of a view, a copy of a copy, a product with one, a
sum with zero. On a small network each costs as much as a matrix product. `rewritten` simplifies one operation as it is
recorded. `finished` simplifies a whole program, where the readers of each result are known. The rules assume that no
operation writes to its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quickstudy.engine.programs.operations import Operation, needed

aten = torch.ops.aten
CHECK = aten._linalg_check_errors.default  # has no result; it only raises errors
VIEWS = (aten.reshape.default, aten.permute.default, aten.expand.default, aten.select.int, aten.slice.Tensor)
Rule = Callable[[Operation], Operation]


def rewritten(one: Operation) -> Operation:
    """An equivalent operation: a simpler one, an earlier one with the same result, or the operation itself."""
    rule = RULES.get(one.target)
    return rule(one) if rule is not None and one.like is not None else one


# --- one operation ---------------------------------------------------------------------------------------------------


def _same(one: Operation) -> Operation:
    return one.args[0]


def _copied(one: Operation) -> Operation:
    """A copy is only needed where it changes the memory layout."""
    wanted, source = one.kwargs.get("memory_format"), one.args[0]
    plain = wanted in (None, torch.preserve_format)
    return source if plain or (wanted == torch.contiguous_format and source.like.contiguous) else one


def _converted(one: Operation) -> Operation:
    same = one.args[0].like.dtype == one.like.dtype  # type: ignore[union-attr]
    return one.args[0] if same and set(one.kwargs) <= {"dtype"} else one


def _reshaped(one: Operation) -> Operation:
    """In a view of a view only the last shape counts. `reshape` copies where the layout does not allow a view."""
    source, shape = one.args[0], one.like.shape  # type: ignore[union-attr]
    while source.target is aten.reshape.default:
        source = source.args[0]
    return source if source.like.shape == shape else Operation(aten.reshape.default, (source, shape), like=one.like)


def _expanded(one: Operation) -> Operation:
    return one.args[0] if one.args[0].like.shape == one.like.shape else one  # type: ignore[union-attr]


def _permuted(one: Operation) -> Operation:
    """Successive transpositions and permutations are one permutation, which is dropped if it is the identity."""
    source, order = one.args[0], _order(one)
    if source.target is aten.permute.default:
        source, order = source.args[0], [source.args[1][i] for i in order]
    still = order == list(range(len(order)))
    return source if still else Operation(aten.permute.default, (source, order), like=one.like)


def _order(one: Operation) -> list[int]:
    dim = len(one.like.shape)  # type: ignore[union-attr]
    order = list(range(dim))
    if one.target is aten.permute.default:
        return [i % dim for i in one.args[1]]
    if dim:
        i, j = (0, dim - 1) if one.target is aten.t.default else (k % dim for k in one.args[1:3])
        order[i], order[j] = order[j], order[i]
    return order


def _scaled(one: Operation) -> Operation:
    return _neutral(one, 1.0, either=one.target in (aten.mul.Tensor, aten.mul.Scalar))


def _added(one: Operation) -> Operation:
    return _neutral(one, 0.0, either=one.target is aten.add.Tensor and one.kwargs.get("alpha", 1) == 1)


def _neutral(one: Operation, number: float, either: bool) -> Operation:
    """x * 1, x / 1, x + 0 and x - 0 are x, if shape and dtype stay; `either`: the number may be on either side."""
    a, b = one.args[:2]
    for x, other in ((a, b), (b, a)) if either else ((a, b),):
        value = other.plain if isinstance(other, Operation) else other
        neutral = isinstance(value, (int, float)) and not isinstance(value, bool) and value == number
        if neutral and isinstance(x, Operation) and x.like[:2] == one.like[:2]:  # type: ignore[index]
            return x
    return one


def _multiplied(one: Operation) -> Operation:
    """A column times a row needs no sum, so an elementwise product gives the same."""
    inner = one.args[0].like.shape[-1]
    return one if inner != 1 else Operation(aten.mul.Tensor, one.args, like=one.like)


def _rules() -> Iterator[tuple[Rule, list[Any]]]:
    yield _same, [aten.detach.default, aten.alias.default, aten.lift_fresh.default]
    yield _copied, [aten.clone.default]
    yield _converted, [aten._to_copy.default]
    yield _reshaped, [aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default]
    yield _reshaped, [aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims]
    yield _expanded, [aten.expand.default]
    yield _permuted, [aten.permute.default, aten.transpose.int, aten.t.default]
    yield _scaled, [aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar]
    yield _added, [aten.add.Tensor, aten.sub.Tensor]
    yield _multiplied, [aten.mm.default, aten.bmm.default]


RULES: dict[Any, Rule] = {target: rule for rule, targets in _rules() for target in targets}


# --- a whole program -------------------------------------------------------------------------------------------------


def finished(operations: Sequence[Operation], outputs: Sequence[Operation]) -> list[Operation]:
    """The program without unused operations, with operations fused where possible and torch's fastest bindings.

    Changes the given operations. `operations` are in the order in which they run; `outputs` are the program's results.
    """
    kept = needed(operations, outputs, always=(CHECK,))
    for one in kept:
        if one.target in (aten.add.Tensor, aten.sub.Tensor) and isinstance(one.args[1], Operation):
            _with_factor(one)
            _with_product(one)
    kept = needed(kept, outputs, always=(CHECK,))
    for one in kept:
        _shortest(one)
    return kept


def _with_factor(one: Operation) -> None:
    """Fuse a + s b into one operation."""
    a, b, factor = *one.args[:2], one.kwargs.get("alpha", 1)
    if one.target is aten.add.Tensor and factor == 1 and not _is_scaled(one, b):
        a, b = b, a
    if _is_scaled(one, b):
        one.args, one.kwargs = (a, b.args[0]), {"alpha": factor * b.args[1]}


def _is_scaled(reader: Operation, one: Any) -> bool:
    """Whether it is s b for a number s and a tensor b, all of one dtype, and only `reader` reads it."""
    if one.reads != 1 or one.target not in (aten.mul.Scalar, aten.mul.Tensor) or isinstance(one.args[1], Operation):
        return False
    return one.args[0].like.dtype == one.like.dtype == reader.like.dtype  # type: ignore[union-attr]


JOINED = {
    aten.mul.Tensor: aten.addcmul.default,
    aten.bmm.default: aten.baddbmm.default,
    aten.mm.default: aten.addmm.default,
}


def _with_product(one: Operation) -> None:
    """Fuse c + A B into one operation, for matrices and batches of matrices, and c + s a b for tensors."""
    (a, b), factor = one.args[:2], one.kwargs.get("alpha", 1)
    plain = one.target is aten.add.Tensor and factor == 1
    for c, product in ((a, b), (b, a)) if plain else ((a, b),):
        if product.reads != 1 or product.target not in JOINED or not _of_one_type(c, product, one):
            continue
        if product.target is aten.mul.Tensor:
            if isinstance(product.args[1], Operation):
                value = -factor if one.target is aten.sub.Tensor else factor
                one.target, one.args, one.kwargs = aten.addcmul.default, (c, *product.args), {"value": value}
                return
        elif plain and product.like.shape == one.like.shape:  # type: ignore[union-attr]
            one.target, one.args, one.kwargs = JOINED[product.target], (c, *product.args), {}
            return


def _of_one_type(*operations: Operation) -> bool:
    return len({one.like.dtype for one in operations if one.like is not None}) == 1


QUICK: dict[Any, Callable[..., Any]] = {  # torch's own bindings take half the time of a call through torch.ops
    aten.bmm.default: torch.bmm,
    aten.baddbmm.default: torch.baddbmm,
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.mul.Scalar: torch.mul,
    aten.div.Tensor: torch.div,
    aten.div.Scalar: torch.div,
    aten.addcmul.default: torch.addcmul,
    aten.neg.default: torch.neg,
    aten.relu.default: torch.relu,
    aten.tanh.default: torch.tanh,
    aten.sigmoid.default: torch.sigmoid,
    aten.rsqrt.default: torch.rsqrt,
    aten.sum.dim_IntList: torch.sum,
    aten.mean.dim: torch.mean,
    aten.select.int: torch.select,
    aten.cat.default: torch.cat,
    aten.reshape.default: Tensor.reshape,
    aten.expand.default: Tensor.expand,
}


def _shortest(one: Operation) -> None:
    if one.target is not aten.permute.default:
        one.target = QUICK.get(one.target, one.target)
        return
    source, order = one.args
    moved = [i for i, j in enumerate(order) if i != j]
    pair = len(moved) == 2
    one.target, one.args = (torch.transpose, (source, *moved)) if pair else (torch.permute, (source, order))
