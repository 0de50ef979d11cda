"""Whether one of torch's function transforms is watching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_plain_tape(x: Tensor) -> bool:
    """Whether derivatives of x are recorded by plain autograd, so that our own second derivatives can serve."""
    return torch.is_grad_enabled() and not inside_transform() and not torch.is_autocast_enabled(x.device.type)


def inside_transform() -> bool:
    """True under `torch.func`, `torch.export` and `torch.compile`, where the plain tape does not work."""
    # torch has no public way to ask for the first three.
    peek: Any = torch._C._functorch.peek_interpreter_stack  # type: ignore[attr-defined]
    return torch.compiler.is_compiling() or peek() is not None
