"""Random draws that are the same under `vmap` and in a loop, for comparisons.

torch fills the memory of a tensor in the order of its layout, which `vmap` may change. Inside `InLogicalOrder` a draw
fills a contiguous tensor, so it depends on the shape alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

IN_PLACE = (
    Tensor.bernoulli_,
    Tensor.cauchy_,
    Tensor.exponential_,
    Tensor.geometric_,
    Tensor.log_normal_,
    Tensor.normal_,
    Tensor.random_,
    Tensor.uniform_,
)
LIKE = (torch.rand_like, torch.randn_like, torch.randint_like, torch.bernoulli, Tensor.bernoulli)
DROPOUT: dict[Any, int] = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}  # last axes dropped together


class InLogicalOrder(TorchFunctionMode):
    """Inside the context, random functions that are called in Python draw in the order of a contiguous tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUT:
            return _dropped(DROPOUT[func], *args, **kwargs)
        if func in LIKE:
            return func(args[0].contiguous(), *args[1:], **kwargs)
        if func in IN_PLACE:
            empty = torch.empty_like(args[0], memory_format=torch.contiguous_format)
            return args[0].copy_(func(empty, *args[1:], **kwargs))
        return func(*args, **kwargs)


def _dropped(axes: int, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    shape = (*input.shape[: input.dim() - axes], *[1] * axes)
    kept = torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(1 - p)
    return input * kept / (1 - p) if p < 1 else 0 * input
