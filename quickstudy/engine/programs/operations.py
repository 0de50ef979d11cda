"""Recorded operations, and the Python function that is generated to run them in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
INPUT, CONSTANT = "input", "constant"  # targets of values that are not computed
PART = 1000  # lines that Python compiles at once; its syntax tree takes kilobytes for each line
WRITTEN_OUT = (int, float, bool, type(None))  # values of these types appear as literals in the generated source


class Like(NamedTuple):
    """A tensor's shape, dtype and layout, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool


class Operation:
    """A call of `target`, whose tensor arguments are the operations that produce them."""

    __slots__ = ("args", "kwargs", "like", "plain", "reads", "target")

    def __init__(
        self, target: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None, like: Like | None = None
    ) -> None:
        self.target, self.args, self.kwargs = target, tuple(args), kwargs or {}
        self.like = like  # describes the result; None if there are several results, or none
        self.plain: float | None = None  # the common value of a constant's entries, if they are all the same
        self.reads = 0  # how many times the result is read, once `needed` has counted

    def operands(self) -> list[Operation]:
        return inside(self.args, Operation) + (inside(self.kwargs.values(), Operation) if self.kwargs else [])


def inside(values: Iterable[Any], kind: type[T]) -> list[T]:
    """The values of type `kind`, including those in nested lists and tuples."""
    collected: list[T] = []
    for each in values:
        if isinstance(each, kind):
            collected.append(each)
        elif isinstance(each, (list, tuple)):
            collected += inside(each, kind)
    return collected


def needed(operations: Sequence[Operation], outputs: Sequence[Operation], always: Sequence[Any]) -> list[Operation]:
    """The operations that the outputs depend on, and those with a target in `always`, in order.

    Sets the `reads` of each operation.
    """
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
    """A function that maps the values of `inputs` to the list of `outputs` and frees each result after its last use.

    `operations` are in the order in which they run.
    """
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
    room, results = [None] * (len(places) - len(inputs)), [int(places[one][2:-1]) for one in outputs]

    def program(*given: Tensor) -> list[Tensor]:
        values = [*given, *room]
        for part in parts:
            part(values)
        return [values[place] for place in results]  # type: ignore[misc]

    return program


def _compiled(lines: Sequence[str], scope: dict[str, Any]) -> Callable[[list[Any]], None]:
    """Compile source lines that work on a list of values `v` into a function."""
    exec("\n".join(["def part(v):", *lines]), scope)  # the lines hold only names and numbers generated here
    return scope.pop("part")


def _source(value: Any, places: dict[Operation, str], scope: dict[str, Any]) -> str:
    if isinstance(value, Operation):
        return places[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_source(each, places, scope) for each in value)}]"
    finite = type(value) in WRITTEN_OUT and value not in (float("inf"), -float("inf")) and value == value
    return repr(value) if finite else _named(value, "k", scope)


def _named(value: Any, prefix: str, scope: dict[str, Any]) -> str:
    """Add the value to the function's scope and return its name there."""
    key = f"{prefix}{id(value)}"
    scope[key] = value
    return key
