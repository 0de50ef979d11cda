"""Describes the machine on which a measurement was made."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quickstudy.base.version import __version__


def machine() -> dict[str, Any]:
    """Processor, cores, threads, accelerator and versions of this machine, without names of people or places."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass  # not Linux: use the platform module instead
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "quickstudy": __version__,
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """The result of `machine` as one line, without the values that are None."""
    return ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
