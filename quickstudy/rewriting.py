"""Fewer operations for the same result: rules of a program whose operations write to nothing.

Transforms and derivatives leave much behind that does no work: a view of a view, a copy of a copy, a product with one,
a sum with zero. On a small network each costs as much as a product of matrices. `rewritten` is for one operation when
it is written down, `finished` for a whole program, where it is known who reads a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten
CHECK = aten._linalg_check_errors.default  # has no result: it is there for the error that it raises


VIEWS = (aten.reshape.default, aten.permute.default, aten.expand.default, aten.select.int, aten.slice.Tensor)


class Like(NamedTuple):
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool


class Call(NamedTuple):
    """An operation and what it is called with: nodes in place of tensors."""

    target: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    like: Like | None  # the result; None where it is several


Rule = Callable[[Call], Call | fx.Node]


def rewritten(call: Call) -> Call | fx.Node:
    """An equal call, or the node that has its result already."""
    rule = RULES.get(call.target)
    return rule(call) if rule is not None and call.like is not None else call


def like(node: fx.Node) -> Like:
    return node.meta["like"]


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


# --- one operation ---------------------------------------------------------------------------------------------------


def _same(call: Call) -> Call | fx.Node:
    return call.args[0]


def _copied(call: Call) -> Call | fx.Node:
    """A copy is needed for its layout alone, if at all."""
    wanted = call.kwargs.get("memory_format")
    if wanted in (None, torch.preserve_format) or (wanted == torch.contiguous_format and like(call.args[0]).contiguous):
        return call.args[0]
    return call


def _converted(call: Call) -> Call | fx.Node:
    same = like(call.args[0]).dtype == call.like.dtype  # type: ignore[union-attr]
    return call.args[0] if same and set(call.kwargs) <= {"dtype"} else call


def _reshaped(call: Call) -> Call | fx.Node:
    """Of a view of a view the last shape counts. `reshape` copies where the first one's layout has changed since."""
    source = call.args[0]
    while _is(source, aten.reshape.default):
        source = source.args[0]
    shape = call.like.shape  # type: ignore[union-attr]
    return (
        source
        if like(source).shape == shape
        else call._replace(target=aten.reshape.default, args=(source, list(shape)), kwargs={})
    )


def _expanded(call: Call) -> Call | fx.Node:
    return call.args[0] if like(call.args[0]).shape == call.like.shape else call  # type: ignore[union-attr]


def _permuted(call: Call) -> Call | fx.Node:
    """Transposing and permuting, one after another, is one permutation; none is needed if it moves nothing."""
    source, dim = call.args[0], len(call.like.shape)  # type: ignore[union-attr]
    order = _order(call, dim)
    if _is(source, aten.permute.default):
        source, order = source.args[0], [source.args[1][i] for i in order]
    if order == list(range(dim)):
        return source
    return call._replace(target=aten.permute.default, args=(source, order), kwargs={})


def _order(call: Call, dim: int) -> list[int]:
    order = list(range(dim))
    if call.target is aten.permute.default:
        return [i % dim for i in call.args[1]]
    if dim:
        i, j = (0, dim - 1) if call.target is aten.t.default else (k % dim for k in call.args[1:3])
        order[i], order[j] = order[j], order[i]
    return order


def _scaled(call: Call) -> Call | fx.Node:
    return _neutral(call, 1.0, either=call.target in (aten.mul.Tensor, aten.mul.Scalar))


def _added(call: Call) -> Call | fx.Node:
    return _neutral(call, 0.0, either=call.target is aten.add.Tensor and call.kwargs.get("alpha", 1) == 1)


def _neutral(call: Call, number: float, either: bool) -> Call | fx.Node:
    """x * 1, x / 1, x + 0 and x - 0 are x, where shape and dtype stay; `either` side may hold the number."""
    pairs = [tuple(call.args[:2])] + [(call.args[1], call.args[0])] * either
    for x, other in pairs:
        value = other.meta.get("plain") if isinstance(other, fx.Node) else other
        neutral = isinstance(value, (int, float)) and not isinstance(value, bool) and value == number
        if neutral and isinstance(x, fx.Node) and like(x)[:2] == call.like[:2]:  # type: ignore[index]
            return x
    return call


def _multiplied(call: Call) -> Call | fx.Node:
    """A column times a row is no sum."""
    return call if like(call.args[0]).shape[-1] > 1 else call._replace(target=aten.mul.Tensor)


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


def finished(graph: fx.Graph) -> None:
    """Leave out what nobody reads, join what one operation can do, and call torch on the shortest way."""
    _without_dead(graph)
    for node in list(graph.nodes):
        if _is(node, aten.add.Tensor, aten.sub.Tensor) and isinstance(node.args[1], fx.Node):
            _with_factor(node)
            _with_product(node)
    _without_dead(graph)
    for node in graph.nodes:
        if node.op == "call_function":
            _shortest(node)


def _without_dead(graph: fx.Graph) -> None:
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.target is CHECK)


def _read_by(reader: fx.Node, node: Any, *targets: Any) -> bool:
    """Whether it is such an operation, whose result `reader` alone reads."""
    return _is(node, *targets) and list(node.users) == [reader]


def _with_factor(node: fx.Node) -> None:
    """a + s b is one operation."""
    a, b, factor = *_operands(node), node.kwargs.get("alpha", 1)
    if node.target is aten.add.Tensor and factor == 1 and not _is_scaled(node, b):
        a, b = b, a
    if _is_scaled(node, b):
        scaled, by = _operands(b)
        node.args, node.kwargs = (a, scaled), {"alpha": factor * by}


def _is_scaled(reader: fx.Node, node: Any) -> bool:
    """Whether it is s b for a number s and a tensor b, all of one type, and read by `reader` alone."""
    if not _read_by(reader, node, aten.mul.Scalar, aten.mul.Tensor) or isinstance(node.args[1], fx.Node):
        return False
    return like(node.args[0]).dtype == like(node).dtype == like(reader).dtype


def _with_product(node: fx.Node) -> None:
    """c + A B is one operation, for matrices and for one matrix of each task, and c + s a b for tensors."""
    (a, b), factor = _operands(node), node.kwargs.get("alpha", 1)
    for c, product in ((a, b), (b, a)) if node.target is aten.add.Tensor and factor == 1 else ((a, b),):
        if not _read_by(node, product, *JOINED) or not like(c).dtype == like(product).dtype == like(node).dtype:
            continue
        if product.target is aten.mul.Tensor and isinstance(product.args[1], fx.Node):
            value = -factor if node.target is aten.sub.Tensor else factor
            node.target, node.args, node.kwargs = aten.addcmul.default, (c, *_operands(product)), {"value": value}
            return
        plain = node.target is aten.add.Tensor and factor == 1 and like(product).shape == like(node).shape
        if product.target is not aten.mul.Tensor and plain:
            node.target, node.args, node.kwargs = JOINED[product.target], (c, *_operands(product)), {}
            return


JOINED = {
    aten.mul.Tensor: aten.addcmul.default,
    aten.bmm.default: aten.baddbmm.default,
    aten.mm.default: aten.addmm.default,
}


def _operands(node: fx.Node) -> tuple[Any, Any]:
    return node.args[0], node.args[1]


QUICK: dict[Any, Callable[..., Any]] = {  # torch's own bindings take half the time of the general way to an operation
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


def _shortest(node: fx.Node) -> None:
    if node.target is not aten.permute.default:
        node.target = QUICK.get(node.target, node.target)
        return
    source, order = _operands(node)
    moved = [i for i, j in enumerate(order) if i != j]
    pair = len(moved) == 2
    node.target, node.args = (torch.transpose, (source, *moved)) if pair else (torch.permute, (source, order))
