"""Whether one of torch's function transforms is active, and how to step below a `vmap`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.utils import _pytree as pytree

_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # torch has no public way to ask


class _ForwardMode(threading.local):
    on = False


forward_mode = _ForwardMode()  # `on` while this thread differentiates in forward mode: our layers have no rule for it


def on_plain_tape(x: Tensor) -> bool:
    """Whether plain autograd records derivatives of x, so that our own second derivatives can be used."""
    plain = torch.is_grad_enabled() and not inside_transform() and not forward_mode.on
    return plain and not torch.is_autocast_enabled(x.device.type)


def inside_transform() -> bool:
    """True under `torch.func`, `torch.export` and `torch.compile`, where plain autograd does not work."""
    return torch.compiler.is_compiling() or _functorch.peek_interpreter_stack() is not None


def inside_vmap(tensors: Sequence[Tensor]) -> bool:
    """Whether the innermost transform is a `vmap` that maps over one of these tensors."""
    top = _functorch.peek_interpreter_stack()
    if top is None or top.key() != _functorch.TransformType.Vmap or torch.compiler.is_compiling():
        return False
    return any(_functorch.is_batchedtensor(t) and _functorch.maybe_get_level(t) == top.level() for t in tensors)


class VmapLevel(NamedTuple):
    """A `vmap` seen from one level below: unwraps its tensors, and wraps the results again."""

    number: int
    size: int  # tasks
    randomness: str

    def stacked(self, tree: Any) -> Any:
        """The tree's tensors unwrapped, each with a leading task axis; tensors that tasks share are expanded."""
        return pytree.tree_map(self._stacked, tree)

    def _stacked(self, tensor: Tensor) -> Tensor:
        mine = _functorch.is_batchedtensor(tensor) and _functorch.maybe_get_level(tensor) == self.number
        if not mine:
            return leading(tensor, None, self.size)
        return leading(_functorch.get_unwrapped(tensor), _functorch.maybe_get_bdim(tensor), self.size)

    def mapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, mapped over all tasks at once."""
        return torch.func.vmap(function, randomness=self.randomness)

    def wrapped(self, tensor: Tensor) -> Tensor:
        """A tensor with a leading task axis, wrapped for the `vmap`."""
        return _functorch._add_batch_dim(tensor, 0, self.number)


@contextmanager
def below_vmap() -> Iterator[VmapLevel]:
    """Step below the innermost transform, which must be a `vmap`. Inside the context, unwrap the `vmap`'s tensors."""
    interpreter: Any = retrieve_current_functorch_interpreter()
    with interpreter.lower():
        yield VmapLevel(interpreter.level(), interpreter.batch_size(), interpreter.randomness())


def leading(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with a leading axis of `size` tasks: `dim` moved there, or expanded where `dim` is None (shared)."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
