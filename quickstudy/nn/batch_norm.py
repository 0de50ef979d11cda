"""Batch normalisation with a cheap second derivative.

y = w * xhat + b with xhat = (x - mean) * r and r = 1 / sqrt(variance + eps), per channel over N = n * h * w values.
Its gradient, for an incoming g (means are over the N values of a channel):

    dx = w r (g - mean(g) - xhat mean(g xhat)),   dw = sum(g xhat),   db = sum(g)

A meta-gradient differentiates that once more. torch needs some thirty passes over the activations for it, which is a
third of the time of a second-order step on a convolutional network. With the terms collected per channel, a handful of
passes is enough. Let u, uw, ub be the vectors that are pulled back through (dx, dw, db), and

    m1 = mean(g), m2 = mean(g xhat), a = mean(u), c = mean(u xhat), d = mean(u g), e = d - a m1 - c m2

The pulled-back scalar is N w r e + N uw m2 + N ub m1, and its derivatives are

    in g:   w r (u - a - c xhat) + uw xhat + ub
    in w:   N r e
    in x:   r (h - mean(h) - xhat mean(h xhat)) - w r^2 e xhat,   h = (uw - w r c) g - w r m2 u

Each is a combination of u, g and x with coefficients per channel. The derivatives are written in plain operations and
can be differentiated further.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise x [n, channels, ...] by the statistics of this batch; weight and bias [channels] or None."""
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    return _Forward.apply(x, weight, bias, eps)


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, r = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, r = ctx.saved_tensors
        return *_Backward.apply(g, x, weight, mean, r, ctx.eps), None


class _Backward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float) -> Any:
        g = g.contiguous()
        ctx.save_for_backward(g, x, weight, mean, r)
        ctx.eps = eps
        wanted = [True, True, True]
        return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, r, True, eps, wanted)

    @staticmethod
    def backward(ctx: Any, u: Tensor, uw: Tensor, ub: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        g, x, w, mean, r = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative: compute the statistics from x again, saved ones are constants
            mean, r = _statistics(x, ctx.eps)
        over = [0, *range(2, x.dim())]
        n = x.numel() // x.shape[1]

        def centred(t: Tensor) -> tuple[Tensor, Tensor]:
            """mean(t) and mean(t * xhat)."""
            first = t.mean(over)
            return first, ((t * x).mean(over) - mean * first) * r

        (m1, m2), (a, c), d = centred(g), centred(u), (u * g).mean(over)
        e = d - a * m1 - c * m2
        wr = w * r
        hu, hg = -wr * m2, uw - wr * c
        dg = _combine(wr, u, uw - wr * c, x, ub - wr * a, mean, r)
        hx = -(hu * c + hg * m2) * r - wr * r * e
        dx = _combine(r * hu, u, hx, x, -r * (hu * a + hg * m1), mean, r) + _spread(r * hg, g) * g
        return dg, dx, n * r * e, None, None, None


def _combine(p: Tensor, u: Tensor, q: Tensor, x: Tensor, shift: Tensor, mean: Tensor, r: Tensor) -> Tensor:
    """p * u + q * xhat + shift, with xhat = (x - mean) * r folded into coefficients of x."""
    return torch.addcmul(torch.addcmul(_spread(shift - q * r * mean, x), u, _spread(p, x)), x, _spread(q * r, x))


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    over = [0, *range(2, x.dim())]
    return x.mean(over), (x.var(over, correction=0) + eps).rsqrt()


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.dim() - 2))
