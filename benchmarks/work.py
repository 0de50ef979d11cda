"""How much arithmetic a computation is, how fast this machine multiplies matrices, and how often it starts a kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

SIZE = 1024  # large enough to keep all cores busy, small enough to take milliseconds


def seconds(compute: Callable[[], Any]) -> float:
    """Wall time of one call, until the device has finished."""
    start = time.perf_counter()
    compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(device: str) -> float:
    """Operations per second of a product of two float32 matrices, the best of 20."""
    a, b = (torch.rand(SIZE, SIZE, device=device) for _ in range(2))
    return 2 * SIZE**3 / min(seconds(lambda: a @ b) for _ in range(20))


def operations(compute: Callable[[], Any]) -> int:
    """Multiplications and additions of matrix products and convolutions, as torch counts them; nothing else counts."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def launches(compute: Callable[[], Any], device: str) -> int | None:
    """Kernels and graphs started on a GPU in one call."""
    if device == "cpu":
        return None
    compute()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        compute()
        torch.cuda.synchronize()
    return sum(e.count for e in profiled.key_averages() if e.key.startswith(("cudaLaunchKernel", "cudaGraphLaunch")))
