"""DropBlock: dropout of whole squares of a feature map (Ghiasi, Lin, Le 2018, https://arxiv.org/abs/1810.12890)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.errors import ConfigError


class DropBlock(nn.Module):
    """Sets block x block squares of each channel to zero, about a fraction `rate` of it, and scales up the rest.

    x [n, channels, height, width]. Neighbours on a feature map hold similar values, so single zeros would hide nothing.
    If the map is smaller than a block, the block is as large as the map. Draws from torch's generator in training only.

    Raises ConfigError where `rate` is not from 0 to below 1, or `block` is below 1.
    """

    draws: ClassVar[bool] = True

    def __init__(self, rate: float, block: int = 5) -> None:
        super().__init__()
        if not 0 <= rate < 1 or block < 1:
            raise ConfigError(
                f"a DropBlock needs a share from 0 to below 1 and a block of 1 or more; got {rate}, {block}."
            )
        self.rate, self.block = rate, block

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[-2:]
        side = min(self.block, height, width)
        places = (height - side + 1, width - side + 1)  # possible positions of a block's corner
        chance = self.rate / side**2 * (height * width) / (places[0] * places[1])
        corners = (torch.rand(*x.shape[:-2], *places, dtype=x.dtype, device=x.device) < chance).to(x.dtype)
        kept = 1 - F.max_pool2d(F.pad(corners, [side - 1] * 4), side, stride=1)
        return x * kept * (kept.numel() / kept.sum().clamp(min=1))

    def extra_repr(self) -> str:
        return f"rate={self.rate}, block={self.block}"
