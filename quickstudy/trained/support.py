"""The support set that a predictor learned from: what it keeps, so that it can learn the task again."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from quickstudy.base import files, trees
from quickstudy.errors import DataError


class SupportSet(NamedTuple):
    """The support set that a predictor learned from."""

    x: Any  # [n, ...] or a dict or tuple of such tensors, rows and texts already encoded as numbers
    y: Any  # an array of [n] names or numbers, or [n, d] values, in the target's unit; a dict or tuple of tensors
    transductive: bool  # as passed to `adapt`

    @property
    def names(self) -> list[Any]:
        """The class or the values of each example; empty where there are several targets."""
        return self.y.tolist() if isinstance(self.y, np.ndarray) else []

    def joined(self, x: Any, y: Any) -> SupportSet:
        """With more examples. Raises DataError where they are not like those so far."""
        if _sizes(x) != _sizes(self.x) or _sizes(y) != _sizes(self.y):
            raise DataError(
                f"the examples so far are x {_shapes(self.x)}, y {_shapes(self.y)}; these are x {_shapes(x)}, y "
                f"{_shapes(y)}. Give them as batches like those."
            )
        x = trees.joined([self.x, x])
        if not isinstance(self.y, np.ndarray):
            return self._replace(x=x, y=trees.joined([self.y, y]))
        if len(self.y) and len(y) and (self.y.dtype.kind in "fiu") != (y.dtype.kind in "fiu"):
            raise DataError(
                f"the answers so far are like {self.names[0]!r}, these like {y.tolist()[0]!r}. Give all alike."
            )
        return self._replace(x=x, y=np.concatenate([self.y, y]))

    def rows(self, places: Sequence[int]) -> SupportSet:
        """Only the examples at these places."""
        which = list(places)
        y = self.y[which] if isinstance(self.y, np.ndarray) else trees.rows(self.y, which)
        return self._replace(x=trees.rows(self.x, which), y=y)


def _sizes(tree: Any) -> Any:
    return tree.shape[1:] if isinstance(tree, np.ndarray) else trees.sizes(tree, skip=1)


def _shapes(tree: Any) -> str:
    return str(list(tree.shape)) if isinstance(tree, (np.ndarray, Tensor)) else trees.shapes(tree)


# --- in a file -------------------------------------------------------------------------------------------------------


def pack_support(support: SupportSet, tensors: dict[str, Tensor], module: str) -> dict[str, Any]:
    """The support set as JSON values; its tensors are added to `tensors`. `module` is the learner's, see `unpack`."""
    header: dict[str, Any] = {"y": support.names, "transductive": support.transductive}
    if isinstance(support.x, Tensor):
        tensors["support.x"] = support.x
    else:
        header["inputs"] = files.pack(_storable(support.x, module), tensors, "support.x")
    if not isinstance(support.y, np.ndarray):
        header["targets"] = files.pack(_storable(support.y, module), tensors, "support.y")
    return header


def unpack_support(header: Mapping[str, Any], tensors: Mapping[str, Tensor], module: str) -> SupportSet:
    """The support set that `pack_support` packed. Raises FileFormatError where the file lacks a part of it."""
    x = _unpacked(header["inputs"], tensors, module) if "inputs" in header else tensors["support.x"]
    y = _unpacked(header["targets"], tensors, module) if "targets" in header else np.array(header["y"])
    return SupportSet(x, y, header["transductive"])


def _unpacked(plain: Any, tensors: Mapping[str, Tensor], module: str) -> Any:
    """A nested value with its names in order, as `adapt` reads it: earlier versions kept the order of the user."""
    return trees.converted(files.unpack(plain, tensors, module), lambda place, tensor: tensor)


def _storable(tree: Any, module: str) -> Any:
    """The same nested value; a named tuple that the learner's module does not define becomes a plain one."""
    if isinstance(tree, Mapping):
        return {name: _storable(one, module) for name, one in tree.items()}
    if not isinstance(tree, tuple):
        return tree
    items = [_storable(one, module) for one in tree]
    known = getattr(sys.modules.get(module), type(tree).__name__, None) is type(tree)
    return type(tree)(*items) if known else tuple(items)
