"""Small images as plain rows of numbers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from quickstudy.errors import ConfigError


def pixels(channels: int = 1, classes: int | None = None, *, side: int = 20) -> nn.Module:
    """The image scaled to side x side by averaging and flattened; then a linear head. There is no encoder to learn.

    x [n, channels, height, width] -> logits [n, classes], or [n, channels * side * side] when `classes` is None. The
    default is MANN's input (20x20, Santoro 2016). Raises ConfigError where `side` is below 1.

    >>> import torch
    >>> pixels()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 400])
    """
    if side < 1:
        raise ConfigError(f"side must be at least 1, got {side}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict(scale=nn.AdaptiveAvgPool2d(side), flatten=nn.Flatten())
    if classes is not None:
        layers["head"] = nn.Linear(channels * side * side, classes)
    model = nn.Sequential(layers)
    model.architecture = {"name": "pixels", "channels": channels, "classes": classes, "side": side}  # type: ignore[assignment]
    return model
