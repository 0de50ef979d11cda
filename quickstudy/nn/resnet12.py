"""The twelve-layer residual network of few-shot image recognition."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from quickstudy.errors import ConfigError
from quickstudy.nn.drop_block import DropBlock
from quickstudy.nn.norm import norm as norm_layer

SLOPE = 0.1  # of the leaky ReLU below zero
BLOCK = 5  # side of the squares that DropBlock sets to zero


def resnet12(
    channels: int = 3,
    classes: int | None = None,
    *,
    filters: int = 64,
    norm: str = "batch",
    dropblock: float = 0.0,
    maps: bool = False,
) -> nn.Module:
    """Four residual blocks of three 3x3 convolutions, each halving the image; then a mean over positions, and a head.

    x [n, channels, height, width], 16 x 16 or more -> logits [n, classes], or the embedding [n, 10 * filters] when
    `classes` is None, or feature maps [n, 10 * filters, h, w] with `maps`. The blocks have 1, 2.5, 5 and 10 times
    `filters` channels: 64, 160, 320, 640 (Lee, Maji, Ravichandran, Soatto 2019, https://arxiv.org/abs/1904.03758,
    after Oreshkin, Rodriguez, Lacoste 2018, https://arxiv.org/abs/1805.10123). `dropblock` is the fraction that dropout
    sets to zero in training: single values after the first two blocks, squares of 5 x 5 after the last two, at a
    constant rate (the paper raises it slowly). `norm`: "batch", "support", "layer" or "none". Weights are drawn from
    torch's global generator: call `torch.manual_seed` first to make them reproducible.

    Raises ConfigError where `filters` is odd or below 2, `norm` is unknown, or `maps` is combined with `classes`.

    >>> import torch
    >>> resnet12(channels=1, classes=5, filters=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """
    if filters < 2 or filters % 2:
        raise ConfigError(f"filters must be even, as the second block has 2.5 times as many; got {filters}.")
    if maps and classes is not None:
        raise ConfigError("maps=True gives feature maps, on which there is no head: leave classes out.")
    widths = [channels, filters, filters * 5 // 2, filters * 5, filters * 10]
    drops = [nn.Dropout(dropblock), nn.Dropout(dropblock), DropBlock(dropblock, BLOCK), DropBlock(dropblock, BLOCK)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, drop in enumerate(drops):
        layers[f"block{i + 1}"] = _Block(widths[i], widths[i + 1], norm, drop)
    if not maps:
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
    if classes is not None:
        layers["head"] = nn.Linear(widths[-1], classes)
    model = nn.Sequential(layers)
    model.architecture = {  # type: ignore[assignment]  # plain values: how to build the model again
        "name": "resnet12",
        "channels": channels,
        "classes": classes,
        "filters": filters,
        "norm": norm,
        "dropblock": dropblock,
        "maps": maps,
    }
    return model


class _Block(nn.Module):
    """Three convolutions plus a shortcut; their sum goes through leaky ReLU, 2x2 max pooling and dropout."""

    def __init__(self, inputs: int, outputs: int, norm: str, drop: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, 3),
            norm_layer(norm, outputs),
            nn.LeakyReLU(SLOPE),
            _convolution(outputs, outputs, 3),
            norm_layer(norm, outputs),
            nn.LeakyReLU(SLOPE),
            _convolution(outputs, outputs, 3),
            norm_layer(norm, outputs),
        )
        self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1), norm_layer(norm, outputs))
        self.end = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2), drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return layer
