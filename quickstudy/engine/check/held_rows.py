"""Embeddings as plain functions of their weights, for a check by finite differences.

`padding_idx` and `scale_grad_by_freq` are promises about the gradient alone: the loss does depend on the row for
padding, but its gradient is zero by definition. Differences of the loss would call this an error, so the check compares
the derivative without these options, on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

OPTIONS = ("padding_idx", "scale_grad_by_freq")


def as_functions(model: nn.Module) -> nn.Module:
    """The model itself, whose embedding layers have lost these options, in place."""
    for layer in model.modules():
        if isinstance(layer, nn.Embedding):
            layer.padding_idx, layer.scale_grad_by_freq = None, False
    return model


class PlainLookups(TorchFunctionMode):
    """Inside the context, calls of `F.embedding` and `torch.embedding` lose these options."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            named = (
                dict(zip(("input", "weight", "padding_idx", "max_norm", "norm_type", *OPTIONS[1:]), args, strict=False))
                | kwargs
            )
            return func(**{name: value for name, value in named.items() if name not in OPTIONS})
        if func is torch.embedding:
            named = dict(zip(("weight", "indices"), args, strict=False)) | kwargs
            return func(named["weight"], named["indices"])
        return func(*args, **kwargs)
