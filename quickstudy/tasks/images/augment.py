"""Augmentation that keeps the class of an image. It is drawn anew each time a training episode shows the image.

    moved     x'[i, j] = x[i + a, j + b],  a and b uniform in -shift..shift: a crop of the image padded by its edges
    mirrored  left and right change places, with probability 1/2
    lit       x' = mean + c (x - mean) + l,  c uniform in 1 -+ light, l in -+ light / 2, clipped to [0, 1]

A photograph of a dog still shows a dog when it is mirrored or darkened. A mirrored character is a different one (b and
d) or no letter at all. So grey images are only moved, unless the caller asks for more. Validation and test images are
never changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from quickstudy.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """The largest changes made to an image. Raises ConfigError for a negative shift or a light outside [0, 1).

    >>> import torch
    >>> Augmentation(shift=2, flip=True, light=0.2)(torch.rand(5, 3, 16, 16)).shape
    torch.Size([5, 3, 16, 16])
    """

    shift: int = 4  # pixels in each direction
    flip: bool = False  # mirror half of the images
    light: float = 0.0  # change of contrast, and half as much of brightness, where 1 is from black to white

    def __post_init__(self) -> None:
        if self.shift < 0 or not 0 <= self.light < 1:
            raise ConfigError(f"shift is 0 or more and light from 0 to below 1; got {self.shift} and {self.light}.")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Images [n, channels, height, width] in [0, 1], each changed by its own random draws."""
        return self._lit(self._moved(x, generator), generator) if self.light else self._moved(x, generator)

    def _moved(self, x: Tensor, generator: Generator | None) -> Tensor:
        n, channels, height, width = x.shape
        down, right = torch.randint(-self.shift, self.shift + 1, (2, n, 1), generator=generator)
        rows = (torch.arange(height) + down).clamp(0, height - 1)
        columns = (torch.arange(width) + right).clamp(0, width - 1)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        which, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
        return x[which, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def _lit(self, x: Tensor, generator: Generator | None) -> Tensor:
        contrast, brightness = 2 * torch.rand(2, len(x), 1, 1, 1, generator=generator) - 1
        mean = x.mean((1, 2, 3), keepdim=True)
        return (mean + (1 + self.light * contrast) * (x - mean) + self.light / 2 * brightness).clamp(0, 1)


def for_images(augment: bool | Augmentation, split: str, size: int, channels: int) -> Augmentation | None:
    """The augmentation of a split of images [channels, size, size]; None where `augment` is False.

    True moves images by up to an eighth of the side, and also mirrors and lights colour images. Raises ConfigError for
    validation and test images, because they measure the result.
    """
    if augment is False:
        return None
    if split != "train":
        raise ConfigError(f"augment is for training: the images of the {split!r} split stay as they are. Leave it out.")
    if isinstance(augment, Augmentation):
        return augment
    return Augmentation(size // 8, flip=channels == 3, light=0.2 if channels == 3 else 0.0)
