"""The four-block convolutional network of few-shot image recognition."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from quickstudy.errors import ConfigError, suggest
from quickstudy.nn.norm import norm as norm_layer

DOWNSAMPLING = ("stride", "pool")


def conv4(
    channels: int = 1,
    classes: int | None = None,
    *,
    filters: int | Sequence[int] = 64,
    size: int = 28,
    norm: str = "batch",
    downsample: str = "stride",
    maps: bool = False,
) -> nn.Module:
    """Four blocks of 3x3 convolution, normalisation and ReLU, each halving the image; then a linear head.

    x [n, channels, size, size] -> logits [n, classes], or the embedding [n, d] when `classes` is None. With `maps`,
    only the first two blocks halve the image, and the output is feature maps [n, filters, size / 4, size / 4] (as in
    RelationNet, Sung 2018).
    `filters`: one number for all four blocks, or one for each, such as R2D2's (96, 192, 384, 512).
    `downsample`: "stride" (stride-2 convolutions, as MAML on Omniglot, Finn 2017) or "pool" (2x2 max pooling, as
    ProtoNet, Snell 2017). `norm`: "batch", "support", "layer" or "none", see docs/evaluation.md. Weights are drawn
    from torch's global generator: call `torch.manual_seed` first to make them reproducible.

    Raises ConfigError where an option is unknown, `maps` is combined with `classes`, images are too small to pool, or
    `filters` is not one number or four.

    >>> import torch
    >>> conv4(channels=1, classes=5)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """
    if downsample not in DOWNSAMPLING:
        raise ConfigError(
            f"downsample must be 'stride' or 'pool', got {downsample!r}.{suggest(downsample, DOWNSAMPLING)}"
        )
    if maps and classes is not None:
        raise ConfigError("maps=True gives feature maps, on which there is no head: leave classes out.")
    halved = 2 if maps else 4
    if downsample == "pool" and size < 2**halved:
        raise ConfigError(
            f"{halved} poolings of 2x2 need images of at least {2**halved}x{2**halved}, got size={size}. Use "
            "downsample='stride'."
        )
    widths = [filters] * 4 if isinstance(filters, int) else list(filters)
    if len(widths) != 4:
        raise ConfigError(f"filters is one number, or four for the four blocks; got {filters!r}.")
    pairs = itertools.pairwise([channels, *widths])
    blocks = [_block(*pair, norm, downsample if i < halved else "") for i, pair in enumerate(pairs)]
    layers = OrderedDict((f"block{i + 1}", block) for i, block in enumerate(blocks))
    if not maps:
        layers["flatten"] = nn.Flatten()
    if classes is not None:
        layers["head"] = nn.Linear(widths[-1] * _final_side(size, downsample) ** 2, classes)
    model = nn.Sequential(layers)
    model.architecture = {  # type: ignore[assignment]  # plain values: how to build the model again
        "name": "conv4",
        "channels": channels,
        "classes": classes,
        "filters": filters if isinstance(filters, int) else widths,
        "size": size,
        "norm": norm,
        "downsample": downsample,
        "maps": maps,
    }
    return model


def _block(inputs: int, filters: int, norm: str, downsample: str) -> nn.Module:
    """`downsample` empty: the image keeps its size."""
    stride = 2 if downsample == "stride" else 1
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1)
    layers["norm"] = norm_layer(norm, filters)
    layers["relu"] = nn.ReLU()
    if downsample == "pool":
        layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def _final_side(size: int, downsample: str) -> int:
    for _ in range(4):
        size = (size + 1) // 2 if downsample == "stride" else size // 2
    return size
