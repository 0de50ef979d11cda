"""Faster numerics for training: bfloat16 under torch's autocast, and the channels-last memory layout for images.

Both are for training only; scores are always computed in float32. Their loss of accuracy is measured on the first
meta-batch by comparing the meta-gradient with the same one without them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from quickstudy.episodes import Episodes, device_of_tasks, mapped
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Theta

PRECISIONS = ("float32", "bf16")


def check_precision(precision: str) -> None:
    """Raise ConfigError where `precision` is not one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}.{suggest(precision, PRECISIONS)}"
        )


def autocast(precision: str, episodes: Episodes) -> AbstractContextManager:
    """torch's autocast for a meta-loss: matrix products and convolutions in bfloat16, sums and losses in float32."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device_of_tasks(episodes).type, torch.bfloat16)


def channels_last(theta: Theta) -> Theta:
    """The same values, with convolution kernels [out, in, height, width] in channels-last memory layout."""
    return {name: _last(value, 4) for name, value in theta.items()}


def images_channels_last(episodes: Episodes) -> Episodes:
    """The same values, with images [tasks, n, channels, height, width] in channels-last memory layout.

    Of nested inputs, every tensor of that many dimensions counts as images.
    """
    return mapped(lambda t: _last(t, 4 if isinstance(episodes, list) else 5), episodes)


def _last(tensor: Tensor, dimensions: int) -> Tensor:
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3) if tensor.dim() == dimensions else tensor
