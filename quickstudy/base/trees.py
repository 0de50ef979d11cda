"""Nested values of tensors: one tensor, or dicts, tuples and lists of them, such as token numbers beside a mask.

torch calls them pytrees. A set of n examples is one of them, and each of its tensors has n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.errors import DataError

# --- what users give -------------------------------------------------------------------------------------------------


def is_nested(value: Any) -> bool:
    """Whether raw input is several arrays, in a dict or a tuple. A tuple of numbers or names is a single array."""
    return isinstance(value, Mapping) or (isinstance(value, tuple) and any(map(_is_array, value)))


def _is_array(value: Any) -> bool:
    return is_nested(value) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0)


def converted(value: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """Raw input with `change(place, array)` for each of its arrays; mappings of any class become dicts.

    Names come in sorted order: for torch, two dicts in different orders are built differently. `place` says where an
    array is, such as "['mask']"; it is empty for a single one.
    """
    if not is_nested(value):
        return change(place, value)
    if isinstance(value, Mapping):
        return {name: converted(value[name], change, f"{place}[{name!r}]") for name in sorted(value, key=str)}
    items = [converted(one, change, f"{place}[{i}]") for i, one in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


# --- nested values of tensors ----------------------------------------------------------------------------------------


def mapped(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nested value with `change` applied to each tensor. Raises DataError where it holds anything else."""
    if isinstance(tree, Tensor):  # by far the most frequent case, and torch's own way takes ten times as long
        return change(tree)
    return pytree.tree_map(lambda leaf: change(_tensor(leaf)), tree)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a nested value, in a fixed order. Raises DataError where it holds anything else."""
    return [tree] if isinstance(tree, Tensor) else list(map(_tensor, pytree.tree_leaves(tree)))


def named(tree: Any) -> list[tuple[str, Tensor]]:
    """The tensors with their places in words: '' for a single one, "['mask']" for an entry of a dict."""
    if isinstance(tree, Tensor):
        return [("", tree)]
    return [(pytree.keystr(path), _tensor(leaf)) for path, leaf in pytree.tree_flatten_with_path(tree)[0]]


def first(tree: Any) -> Tensor:
    """The first tensor, which tells the device and the number of examples. Raises DataError where there is none."""
    if isinstance(tree, Tensor):
        return tree
    if found := tensors(tree):
        return found[0]
    raise DataError("a batch holds no tensor at all. Give a tensor [n, ...], or a dict or tuple of such tensors.")


def size(tree: Any) -> int:
    """The number of examples: the rows of the first tensor."""
    return len(first(tree))


def uneven(tree: Any) -> str | None:
    """What is wrong, in words, where the tensors do not all have one row for each example; None where they do."""
    counts = {name: len(t) if t.dim() else 0 for name, t in named(tree)}
    if len(set(counts.values())) < 2:
        return None
    return ", ".join(f"{name} has {n} rows" for name, n in counts.items())


def rows(tree: Any, which: Any) -> Any:
    """The examples at the places `which`: a slice, or row numbers as a list or a tensor."""
    return mapped(lambda t: t[which], tree)


def joined(trees: Sequence[Any]) -> Any:
    """Several sets of examples as one. Raises DataError where they are not nested alike."""
    return _together(torch.cat, trees)


def stacked(trees: Sequence[Any]) -> Any:
    """Nested values of equal sizes with a new first axis. Raises DataError where they are not nested alike."""
    return _together(torch.stack, trees)


def unstacked(tree: Any) -> list[Any]:
    """A nested value for each entry of the first axis (views, no copies)."""
    if isinstance(tree, Tensor):
        return list(tree.unbind(0))
    leaves, structure = pytree.tree_flatten(tree)
    parts = zip(*(_tensor(leaf).unbind(0) for leaf in leaves), strict=True)
    return [pytree.tree_unflatten(part, structure) for part in parts]


def sizes(tree: Any, skip: int = 0) -> Hashable:
    """How a nested value is built, without its numbers: equal for two that can be stacked.

    `skip`: leading dimensions that may differ.
    """
    if isinstance(tree, Tensor):
        return tree.shape[skip:]
    return pytree.tree_structure(tree), *(t.shape[skip:] for t in tensors(tree))


def shapes(tree: Any) -> str:
    """The shapes in words, for messages: '(5, 4)', or "['tokens'] (5, 9), ['mask'] (5, 9)"."""
    return ", ".join(f"{name} {tuple(t.shape)}".strip() for name, t in named(tree)) or "nothing"


def _together(how: Callable[[list[Tensor]], Tensor], trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], Tensor):
        return how(list(trees))
    flat, structures = zip(*map(pytree.tree_flatten, trees), strict=True)
    if other := next((place for place, one in enumerate(structures) if one != structures[0]), None):
        raise DataError(f"examples are not built alike: {shapes(trees[0])}, but then {shapes(trees[other])}.")
    return pytree.tree_unflatten([how(list(leaves)) for leaves in zip(*flat, strict=True)], structures[0])


def _tensor(leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise DataError(
            f"examples are tensors, or dicts, tuples and lists of tensors; among them is a {type(leaf).__name__}. "
            "Convert it: torch.as_tensor(...) for an array, dict(...) for a mapping of its own class."
        )
    return leaf
