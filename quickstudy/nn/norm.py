"""Normalisation layers with an explicit choice of statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quickstudy.base.tracing import forward_mode, inside_transform, on_plain_tape
from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.nn.batch_norm import batch_norm

POLICIES = ("batch", "support", "layer", "none")


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, per channel (dimension 1), without writing to buffers.

    policy "batch": mean and variance of the batch that is passed, so queries affect each other (transductive).
    policy "support": queries are normalised with the support set's statistics, which arrive as the buffers `mean`
    and `variance` (see `quickstudy.nn.statistics.statistics`); the support set itself with its own.
    """

    def __init__(self, channels: int, policy: str = "batch", eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.policy, self.eps = policy, eps
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)

    def reset_parameters(self) -> None:
        """Set the scale to one and the shift to zero, the initial values."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    mean: Tensor | None
    variance: Tensor | None

    @classmethod
    def like(cls, layer: _BatchNorm) -> BatchNorm:
        """A layer of this class with the parameters of torch's layer, under the same names."""
        made = cls(layer.num_features, eps=layer.eps, affine=False)
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None or self.variance is None:
            return self._by_batch(x)
        scale = (self.variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -self.mean * scale if self.bias is None else self.bias - self.mean * scale
        return x * _per_channel(scale, x) + _per_channel(shift, x)

    def _by_batch(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1]:
            raise DataError(
                "batch normalisation needs more than one value per channel: a single example of one pixel has no "
                'variance. Give more examples, or use norm="support" or norm="layer".'
            )
        if on_plain_tape(x):
            return batch_norm(x, self.weight, self.bias, self.eps)  # the same values, a cheaper second derivative
        # Scale and shift separately: under vmap, torch's fused form silently loses a term of the second derivative.
        y = F.batch_norm(x, None, None, None, None, training=True, eps=self.eps)
        return y if self.weight is None else y * _per_channel(self.weight, x) + _per_channel(self.bias, x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of each channel of x [n, channels, ...]."""
        dims = [0, *range(2, x.dim())]
        return x.mean(dims), x.var(dims, correction=0)

    def extra_repr(self) -> str:
        return f"policy={self.policy!r}, eps={self.eps}"


class LayerNorm(nn.LayerNorm):
    """torch's layer norm with the right second derivative under `vmap`, see `BatchNorm._by_batch`."""

    @classmethod
    def like(cls, layer: nn.LayerNorm) -> LayerNorm:
        """A layer of this class with the parameters of torch's layer, under the same names."""
        made = cls(list(layer.normalized_shape), eps=layer.eps, elementwise_affine=False)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        if not inside_transform() or self.weight is None:
            return super().forward(input)
        y = F.layer_norm(input, self.normalized_shape, None, None, self.eps) * self.weight
        return y if self.bias is None else y + self.bias


class GroupNorm(nn.GroupNorm):
    """torch's group norm with forward-mode differentiation: it uses layer norm over the groups, which supports it."""

    @classmethod
    def like(cls, layer: nn.GroupNorm) -> GroupNorm:
        """A layer of this class with the parameters of torch's layer, under the same names."""
        made = cls(layer.num_groups, layer.num_channels, eps=layer.eps, affine=False)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        if not forward_mode.on:
            return super().forward(input)
        groups = input.reshape(len(input), self.num_groups, -1)
        y = F.layer_norm(groups, groups.shape[2:], eps=self.eps).reshape(input.shape)
        return y if self.weight is None else y * _per_channel(self.weight, y) + _per_channel(self.bias, y)


def _per_channel(values: Tensor | None, x: Tensor) -> Tensor:
    assert values is not None  # weight and bias are either both there or both missing
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def norm(policy: str, channels: int) -> nn.Module:
    """The normalisation layer of a policy: 'batch', 'support', 'layer' or 'none'. Raises ConfigError for any other."""
    if policy not in POLICIES:
        raise ConfigError(f"norm must be one of {', '.join(POLICIES)}; got {policy!r}.{suggest(policy, POLICIES)}")
    if policy == "none":
        return nn.Identity()
    return nn.GroupNorm(1, channels) if policy == "layer" else BatchNorm(channels, policy)


def affine_of_norms(model: nn.Module) -> list[str]:
    """Dotted names of the trainable scales and shifts of a model's normalising layers."""
    kinds = (BatchNorm, _BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return [
        f"{layer}.{name}" if layer else name
        for layer, module in model.named_modules()
        if isinstance(module, kinds)
        for name, value in module.named_parameters(recurse=False)
        if value.requires_grad
    ]
