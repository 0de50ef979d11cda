"""Measures a computation's time, operations and kernel launches, and how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

SIZE = 1024  # side of the matrices: large enough to keep all cores busy, small enough to take milliseconds


def seconds(compute: Callable[[], Any]) -> float:
    """Wall time of one call in seconds, including all work on the device."""
    start = time.perf_counter()
    compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(device: str) -> float:
    """Operations per second in a product of two float32 matrices, the best of 20 runs."""
    a, b = (torch.rand(SIZE, SIZE, device=device) for _ in range(2))
    return 2 * SIZE**3 / min(seconds(lambda: a @ b) for _ in range(20))


def operations(compute: Callable[[], Any]) -> int:
    """Multiplications and additions in matrix products and convolutions, as counted by torch; others are ignored."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def launches(compute: Callable[[], Any], device: str) -> int | None:
    """The number of kernels and graphs that one call starts on a GPU; None on a CPU."""
    if device == "cpu":
        return None
    compute()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        compute()
        torch.cuda.synchronize()
    return sum(e.count for e in profiled.key_averages() if e.key.startswith(("cudaLaunchKernel", "cudaGraphLaunch")))
