"""Measures how long a computation takes, also on an accelerator, which returns before it has finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(function: Callable[[], T], device: torch.device | None = None) -> tuple[T, float]:
    """The function's result, and the seconds until `device` had finished computing it.

    `device`: where the function computes; None: this machine's accelerator, if it has one. Work that was given to the
    device before is waited for first, so it does not count.
    """
    finish(device)
    began = time.perf_counter()
    result = function()
    finish(device)
    return result, time.perf_counter() - began


def finish(device: torch.device | None = None) -> None:
    """Wait until the device has done all that it was given; nothing to wait for on the CPU."""
    if device is None and torch.accelerator.is_available():
        torch.accelerator.synchronize()
    elif device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)
