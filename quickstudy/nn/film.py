"""Feature-wise linear modulation: scale and shift what a layer puts out (Perez 2018, https://arxiv.org/abs/1709.07871)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from quickstudy.errors import ConfigError, suggest
from quickstudy.nn.norm import BatchNorm


def film(h: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
    """(1 + scale) * h + shift per channel. h [n, channels] or images [n, channels, height, width]."""
    shape = (1, -1, *[1] * (h.dim() - 2))
    return (h if scale is None else h * (1 + scale.reshape(shape))) + shift.reshape(shape)


def conditioned_layer(model: nn.Module) -> str:
    """Where a model is conditioned if nobody says: after its third norm or convolution, or first linear layer."""
    layers = dict(model.named_modules())
    normalised = [name for name, layer in layers.items() if isinstance(layer, (BatchNorm, _BatchNorm, nn.GroupNorm))]
    convolutions = [name for name, layer in layers.items() if isinstance(layer, _ConvNd)]
    if found := normalised or convolutions:
        return found[:3][-1]
    linears = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if not linears:
        raise ConfigError("the model has no convolution or linear layer that could be conditioned.")
    return linears[0]


def width_of(model: nn.Module, name: str) -> int:
    """Channels that the named layer puts out, one per row of its weight."""
    layers = dict(model.named_modules())
    if name not in layers:
        raise ConfigError(
            f"the model has no layer {name!r}; it has {', '.join(filter(None, layers))}.{suggest(name, layers)}"
        )
    weight = getattr(layers[name], "weight", None)
    if not isinstance(weight, Tensor):
        raise ConfigError(f"the layer {name!r} has no weight that tells its channels: name the layer before it.")
    return len(weight)
