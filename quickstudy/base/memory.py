"""Measures how much memory this process uses now, its peak, and how much it may use.

On a CPU that is the resident memory that the system reports; on a GPU it is what torch has allocated there.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from quickstudy.errors import ConfigError

PROC = Path("/proc/self")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # a container's limit under CGROUP: version 2 and version 1
CGROUP = Path("/sys/fs/cgroup")
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", re.IGNORECASE)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
NO_ROOM = ("can't allocate memory", "CUDA out of memory", "std::bad_alloc")


class Peak:
    """The peak memory in bytes; None if the system does not report it."""

    bytes: float | None = None


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory of this process inside the `with` block, including what it already uses.

    The yielded Peak gets its `bytes` when the block ends.
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset()
    yield found
    found.bytes = float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def taken(device: torch.device) -> float | None:
    """The bytes of memory that this process uses now; None if the system does not report it."""
    return float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _status("VmRSS")


def tidy() -> None:
    """Return unused memory to the system, so that the next measurement starts without it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc has malloc_trim, other C libraries may not
        ctypes.CDLL(None).malloc_trim(0)


def room(device: torch.device) -> float | None:
    """The bytes that this process may use in total: what it uses plus what is free, within a container's limit.

    None if the system does not report it.
    """
    own = taken(device)
    if own is None:
        return None
    if device.type == "cuda":
        return own + torch.cuda.mem_get_info(device)[0]
    free = re.findall(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    limits = [float(text) for name in LIMITS if (text := _read(CGROUP / name)).isdigit()]
    return min([own + 1024.0 * int(free[0])] * bool(free) + limits, default=None)


def free(device: torch.device) -> float | None:
    """The bytes that this process may still take; None if the system does not report it."""
    own, whole = taken(device), room(device)
    return None if own is None or whole is None else max(0.0, whole - own)


def _reset() -> None:
    """Reset the peak so far, on Linux."""
    with suppress(OSError):
        (PROC / "clear_refs").write_text("5")


def _status(name: str) -> float | None:
    found = re.findall(rf"{name}:\s*(\d+) kB", _read(PROC / "status"))
    return 1024.0 * int(found[0]) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory ran out, in torch or in Python."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_ROOM)
    )


# --- in words --------------------------------------------------------------------------------------------------------


def bytes_of(text: str) -> float:
    """Convert a size such as 500MB, 2GB or 1.5GiB to bytes. Raises ConfigError where the text is not such a size."""
    found = SIZE.fullmatch(text)
    if found is None:
        raise ConfigError(f"a size of memory is a number and a unit, as in 500MB or 2GB; got {text!r}.")
    return float(found[1]) * (1024 if found[3] else 1000) ** POWERS[found[2].lower()]
