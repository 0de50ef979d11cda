"""Cheaper numbers: bfloat16 where torch holds it to be safe, and images with their channels last.

Both are for training alone; scores are always taken in float32. What they cost in exactness is measured on the first
meta-batch, against the same meta-gradient without them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from quickstudy.episodes import Episodes, mapped
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Theta

PRECISIONS = ("float32", "bf16")


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}.{suggest(precision, PRECISIONS)}"
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """torch's autocast for a meta-loss: products and convolutions in bfloat16, sums and losses in float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def channels_last(theta: Theta) -> Theta:
    """The same values; kernels of convolutions, [out, in, height, width], in memory with their channels last."""
    return {name: _last(value, 4) for name, value in theta.items()}


def images_channels_last(episodes: Episodes) -> Episodes:
    """The same values; images [tasks, n, channels, height, width] in memory with their channels last."""
    return mapped(lambda t: _last(t, 4 if isinstance(episodes, list) else 5), episodes)


def _last(tensor: Tensor, dimensions: int) -> Tensor:
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3) if tensor.dim() == dimensions else tensor
