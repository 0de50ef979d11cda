"""Operations in the order in which they run, and the Python function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
INPUT, CONSTANT = "input", "constant"  # targets of what is not computed
PART = 1000  # lines that Python compiles together: its own trees take kilobytes for each
WRITTEN_OUT = (int, float, bool, type(None))  # of these the source says the value


class Like(NamedTuple):
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool


class Operation:
    """A call of `target`, with operations in place of the tensors that they make."""

    __slots__ = ("args", "kwargs", "like", "plain", "reads", "target")

    def __init__(
        self, target: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None, like: Like | None = None
    ) -> None:
        self.target, self.args, self.kwargs = target, tuple(args), kwargs or {}
        self.like = like  # the result; None where it is several, or none
        self.plain: float | None = None  # the number that all entries of a constant are, if they are all the same
        self.reads = 0  # how often other operations read the result, once that is counted

    def operands(self) -> list[Operation]:
        return inside(self.args, Operation) + (inside(self.kwargs.values(), Operation) if self.kwargs else [])


def inside(values: Iterable[Any], kind: type[T]) -> list[T]:
    """Those of a kind among values and in the lists and tuples among them."""
    found: list[T] = []
    for each in values:
        if isinstance(each, kind):
            found.append(each)
        elif isinstance(each, (list, tuple)):
            found += inside(each, kind)
    return found


def needed(operations: Sequence[Operation], outputs: Sequence[Operation], always: Sequence[Any]) -> list[Operation]:
    """Those that the outputs come from, and those with these targets, in their order; their reads are counted."""
    for one in operations:
        one.reads = 0
    for one in outputs:
        one.reads += 1
    kept = []
    for one in reversed(operations):
        if one.reads or one.target in always:
            kept.append(one)
            for operand in one.operands():
                operand.reads += 1
    return kept[::-1]


def as_function(
    inputs: Sequence[Operation], operations: Sequence[Operation], outputs: Sequence[Operation]
) -> Callable[..., list[Tensor]]:
    """inputs -> outputs. It lets go of every result after its last use."""
    scope: dict[str, Any] = {}
    places = {one: f"v[{i}]" for i, one in enumerate(inputs)}
    last = {operand: one for one in operations for operand in one.operands()} | dict.fromkeys(outputs)
    lines = []
    for one in operations:
        if one.target == INPUT:
            continue
        if one.target == CONSTANT:
            places[one] = _named(one.args[0], "c", scope)
            continue
        places[one] = f"v[{len(places)}]"
        given = [_source(each, places, scope) for each in one.args]
        given += [f"{name}={_source(each, places, scope)}" for name, each in one.kwargs.items()]
        gone = [places[each] for each in dict.fromkeys(one.operands()) if last[each] is one and each.target != CONSTANT]
        lines.append(f" {places[one]} = {_named(one.target, 'f', scope)}({', '.join(given)})")
        lines[-1] += f"; {' = '.join(gone)} = None" if gone else ""
    parts = [_compiled(lines[start : start + PART], scope) for start in range(0, len(lines), PART)]
    room, found = [None] * (len(places) - len(inputs)), [int(places[one][2:-1]) for one in outputs]

    def program(*given: Tensor) -> list[Tensor]:
        values = [*given, *room]
        for part in parts:
            part(values)
        return [values[place] for place in found]  # type: ignore[misc]

    return program


def _compiled(lines: Sequence[str], scope: dict[str, Any]) -> Callable[[list[Any]], None]:
    """Lines that work on a list of values, as a function."""
    exec("\n".join(["def part(v):", *lines]), scope)  # of names and numbers that were put together above
    return scope.pop("part")


def _source(value: Any, places: dict[Operation, str], scope: dict[str, Any]) -> str:
    if isinstance(value, Operation):
        return places[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_source(each, places, scope) for each in value)}]"
    finite = type(value) in WRITTEN_OUT and value not in (float("inf"), -float("inf")) and value == value
    return repr(value) if finite else _named(value, "k", scope)


def _named(value: Any, prefix: str, scope: dict[str, Any]) -> str:
    """The name under which the function finds a value."""
    key = f"{prefix}{id(value)}"
    scope[key] = value
    return key
