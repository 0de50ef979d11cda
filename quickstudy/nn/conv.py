"""Convolution whose second derivative uses the fast kernels.

The gradients of y = x * W for an incoming g,

    dx = g *^T W (transposed convolution),   dW = x ⋆ g (correlation),   db = sum(g)

are bilinear. So pulling (u, uw) back through (dx, dW) needs the same three operations again:

    in g:  u * W + x * uw        in W:  u ⋆ g        in x:  g *^T uw

torch composes the correlation from a convolution with batch and channels swapped and a kernel as large as the image,
for which there is no fast kernel. Here it is computed as the weight gradient of an ordinary convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from quickstudy.base.tracing import on_plain_tape

Geometry = tuple[Any, Any, Any, int]  # stride, padding, dilation, groups


class Conv2d(nn.Conv2d):
    """torch's Conv2d with a faster second derivative."""

    @classmethod
    def like(cls, layer: nn.Conv2d) -> Conv2d:
        """A layer of this class with the parameters of torch's layer, under the same names; attributes are shared."""
        made = cls.__new__(cls)
        made.__dict__ = dict(layer.__dict__)
        return made

    def forward(self, input: Tensor) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        ordinary = self.padding_mode == "zeros" and not isinstance(self.padding, str) and input.dim() == 4
        if not (ordinary and on_plain_tape(input)):
            return super().forward(input)
        y = _Forward.apply(input, self.weight, geometry)
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]) -> Any:
    stride, padding, dilation, groups = geometry
    mask = [*wanted, False]
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )[:2]


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return F.conv2d(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return *_Backward.apply(g, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:2]), None


class _Backward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _backward(g, x, weight, geometry, wanted)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, uw: Tensor | None) -> Any:
        g, x, weight = ctx.saved_tensors
        needs_g, needs_x, needs_w = ctx.needs_input_grad[:3]
        pairs = [(u, weight), (x, uw)] if needs_g else []
        parts = [_Forward.apply(a, b, ctx.geometry) for a, b in pairs if a is not None and b is not None]
        in_g = parts[0] + parts[1] if len(parts) == 2 else next(iter(parts), None)
        in_x = _Backward.apply(g, x, uw, ctx.geometry, (True, False))[0] if needs_x and uw is not None else None
        in_w = _Backward.apply(g, u, weight, ctx.geometry, (False, True))[1] if needs_w and u is not None else None
        return in_g, in_x, in_w, None, None
