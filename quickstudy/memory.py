"""How much memory this process takes, took at the most, and may take.

On a CPU that is resident memory, as the system counts it; on a GPU what torch has allocated there.
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
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a container, under CGROUP: of version 2 and of version 1
CGROUP = Path("/sys/fs/cgroup")
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", re.IGNORECASE)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
NO_ROOM = ("can't allocate memory", "CUDA out of memory", "std::bad_alloc")


class Peak:
    """The most that was taken, in bytes; None where the system does not tell."""

    bytes: float | None = None


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """The most that this process takes meanwhile, with all that it took before."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset()
    yield found
    found.bytes = float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def taken(device: torch.device) -> float | None:
    """Bytes that this process takes now."""
    return float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _status("VmRSS")


def tidy() -> None:
    """Give back to the system what nobody holds, so that what is measured next begins from there."""
    gc.collect()
    with suppress(OSError, AttributeError):  # of the C library that Linux mostly has
        ctypes.CDLL(None).malloc_trim(0)


def room(device: torch.device) -> float | None:
    """Bytes that this process may take in all: what it has and what is free, within a container's limit."""
    own = taken(device)
    if own is None:
        return None
    if device.type == "cuda":
        return own + torch.cuda.mem_get_info(device)[0]
    free = re.findall(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    limits = [float(text) for name in LIMITS if (text := _read(CGROUP / name)).isdigit()]
    return min([own + 1024.0 * int(free[0])] * bool(free) + limits, default=None)


def _reset() -> None:
    """Linux: forget the peak so far."""
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
    """Whether this is how torch or Python say that memory is at its end."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_ROOM)
    )


# --- in words --------------------------------------------------------------------------------------------------------


def bytes_of(text: str) -> float:
    """A size such as 500MB, 2GB or 1.5GiB in bytes. Raises ConfigError for another one."""
    found = SIZE.fullmatch(text)
    if found is None:
        raise ConfigError(f"a size of memory is a number and a unit, as in 500MB or 2GB; got {text!r}.")
    return float(found[1]) * (1024 if found[3] else 1000) ** POWERS[found[2].lower()]


def in_words(size: float) -> str:
    """Bytes as people say them, such as 1.3 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
