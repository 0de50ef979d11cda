"""What one operation and its tensors say about themselves: memory, layout, values that it reads or writes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from quickstudy.engine.programs.operations import Like, Operation, inside

aten = torch.ops.aten
# The results depend only on an input's shape; small ones become constants.
FILLED = {aten.ones_like, aten.zeros_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full}
SMALL = 2**16  # bytes


def memory_of(tensor: Tensor) -> int:
    """What tells one piece of memory from another."""
    return tensor.untyped_storage()._cdata


def is_view(one: Operation) -> bool:
    """Whether the result may share memory with the operands."""
    if one.target is operator.getitem:
        return is_view(one.args[0])
    return isinstance(one.target, OpOverload) and any(given.alias_info for given in one.target._schema.returns)


def tells_shapes(func: Any, result: Any) -> bool:
    """Whether the result depends only on the shapes of inputs and is small enough to be a constant."""
    if isinstance(result, Tensor):
        return result.is_meta or (func.overloadpacket in FILLED and result.nbytes <= SMALL)
    return isinstance(result, (bool, int))


def reads_values(func: Any, indices: Sequence[Tensor]) -> bool:
    """Whether the shape of the result, or what happens next, depends on values. Masks do; integer indices do not."""
    if func is aten.index.Tensor and all(t.dtype not in (torch.bool, torch.uint8) for t in indices):
        return False
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def without_writing(func: Any) -> Any:
    """The operation that returns as a new tensor what `func` writes to its first argument; None if there is none."""
    if func is aten.transpose_.default:
        return aten.transpose.int
    name = func._schema.name.removeprefix("aten::")
    writes = [given.alias_info is not None and given.alias_info.is_write for given in func._schema.arguments]
    if not name.endswith("_") or not writes[0] or any(writes[1:]):
        return None
    return getattr(getattr(aten, name.removesuffix("_"), None), func._overloadname, None)


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors in the same memory may share an element. Chunks of a third tensor do not, for example."""
    if one.shape != other.shape or one.stride() != other.stride():
        return True
    steps = sorted(zip(one.stride(), one.shape, strict=True), reverse=True)
    return _reached(int(one.storage_offset()) - int(other.storage_offset()), steps)


def _reached(distance: int, steps: list[tuple[int, int]]) -> bool:
    """Whether sum_i k_i * stride_i = distance for some |k_i| < size_i; `steps`: (stride, size) in descending order."""
    if not steps or not steps[0][0]:
        return distance == 0
    (stride, size), *rest = steps
    nearest = distance // stride
    return any(-size < k < size and _reached(distance - k * stride, rest) for k in (nearest, nearest + 1))


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of an operation's result."""
    return (
        [result] if isinstance(result, Tensor) else inside(result, Tensor) if isinstance(result, (list, tuple)) else []
    )


def changed(values: Iterable[Any], change: Callable[[Tensor], Operation]) -> tuple[Any, ...]:
    """The values with each tensor replaced by the operation that produces it."""
    return tuple(
        change(each) if isinstance(each, Tensor) else changed(each, change) if isinstance(each, (list, tuple)) else each
        for each in values
    )


def frozen(values: Iterable[Any]) -> tuple[Any, ...]:
    """The values as a dictionary key that distinguishes 1, 1.0 and True, and 0.0 from -0.0."""
    return tuple(
        each
        if isinstance(each, Operation)
        else frozen(each)
        if isinstance(each, (list, tuple))
        else (type(each), str(each) if isinstance(each, float) else each)
        for each in values
    )


def like(result: Any) -> Like | None:
    """The shape, type and layout of a result that is one tensor."""
    return Like(tuple(result.shape), result.dtype, result.is_contiguous()) if isinstance(result, Tensor) else None


def plain_value(value: Tensor) -> float | None:
    """The common value of all entries of a small floating-point tensor; None if they differ."""
    if not value.is_floating_point() or value.nbytes > SMALL or not value.numel():
        return None
    first = value.reshape(-1)[0]
    return float(first) if bool((value == first).all()) else None
