"""Feature-wise linear modulation: scale and shift a layer's output (Perez 2018, https://arxiv.org/abs/1709.07871)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from quickstudy.errors import ConfigError, suggest
from quickstudy.nn.norm import BatchNorm
from quickstudy.nn.parameters import those_that_match


def film(h: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
    """(1 + scale) * h + shift per channel. h [n, channels] or images [n, channels, height, width]."""
    shape = (1, -1, *[1] * (h.dim() - 2))
    return (h if scale is None else h * (1 + scale.reshape(shape))) + shift.reshape(shape)


def conditioned_layer(model: nn.Module) -> str:
    """The layer that is conditioned by default: the third norm layer or, without any, the third convolution.

    Where there are fewer than three, it is the last of them; where there are none, the first linear layer. Raises
    ConfigError where there is no such layer either.
    """
    layers = dict(model.named_modules())
    if found := _normalised(layers) or _convolutions(layers):
        return found[:3][-1]
    if linears := _linears(layers):
        return linears[0]
    raise ConfigError("the model has no convolution or linear layer that could be conditioned.")


def conditioned_layers(model: nn.Module, patterns: str = "") -> list[str]:
    """The layers whose names match one of the comma-separated patterns; by default every norm layer.

    In a model without norm layers, the default is every convolution, else every linear layer. `*` stands for any
    characters (fnmatch); patterns match only layers with channels. Raises ConfigError for a pattern that matches
    nothing, and where there is no default.
    """
    layers = dict(model.named_modules())
    if not patterns:
        if found := _normalised(layers) or _convolutions(layers) or _linears(layers):
            return found
        raise ConfigError("the model has no norm, convolution or linear layer that could be conditioned.")
    known = [name for name, layer in layers.items() if isinstance(getattr(layer, "weight", None), Tensor)]
    return those_that_match(known, patterns, "layer with channels")


def _normalised(layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, layer in layers.items() if isinstance(layer, (BatchNorm, _BatchNorm, nn.GroupNorm))]


def _convolutions(layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, layer in layers.items() if isinstance(layer, _ConvNd)]


def _linears(layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]


def width_of(model: nn.Module, name: str) -> int:
    """The number of output channels of the named layer, which is the number of rows of its weight.

    Raises ConfigError for an unknown layer and for one without a weight.
    """
    layers = dict(model.named_modules())
    if name not in layers:
        raise ConfigError(
            f"the model has no layer {name!r}; it has {', '.join(filter(None, layers))}.{suggest(name, layers)}"
        )
    weight = getattr(layers[name], "weight", None)
    if not isinstance(weight, Tensor):
        raise ConfigError(f"the layer {name!r} has no weight that tells its channels: name the layer before it.")
    return len(weight)
