"""Whether one of torch's function transforms is watching."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # torch has no public way to ask


class _ForwardMode(threading.local):
    on = False


forward_mode = _ForwardMode()  # `on` while this thread differentiates forward, for which our layers have no rule


def on_plain_tape(x: Tensor) -> bool:
    """Whether derivatives of x are recorded by plain autograd, so that our own second derivatives can serve."""
    plain = torch.is_grad_enabled() and not inside_transform() and not forward_mode.on
    return plain and not torch.is_autocast_enabled(x.device.type)


def inside_transform() -> bool:
    """True under `torch.func`, `torch.export` and `torch.compile`, where the plain tape does not work."""
    return torch.compiler.is_compiling() or _functorch.peek_interpreter_stack() is not None


def inside_vmap(tensors: Sequence[Tensor]) -> bool:
    """Whether the innermost transform is a `vmap` that maps over one of these tensors."""
    top = _functorch.peek_interpreter_stack()
    if top is None or top.key() != _functorch.TransformType.Vmap or torch.compiler.is_compiling():
        return False
    return any(_functorch.is_batchedtensor(t) and _functorch.maybe_get_level(t) == top.level() for t in tensors)
