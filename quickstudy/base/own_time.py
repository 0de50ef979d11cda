"""Tells how much of the passing time this process had, on a machine that it shares with other processes.

    own seconds = seconds - (wanted - ran) / threads      wanted  = min(ran + waited, seconds x cores)
                                                          threads = wanted / seconds, or 1 where that is less

`ran` and `waited` are seconds of all threads of this process, added up: those in which they ran, and those in which
they could have run but others had the cores. So what others take does not count. What is idle (waiting for a disk)
counts, and two threads that run at once count once. On an idle machine own seconds are seconds.

The processor time is no such measure: two threads of torch that wait for each other on a busy machine spend it too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

READ_EVERY = 0.05  # seconds: reading the times of some threads takes about 0.2 ms
THREADS = Path("/proc/self/task")

Times = dict[str, tuple[float, float]]  # thread -> seconds that it ran, and that it waited for a core


def own_share(threads: Path = THREADS) -> Callable[[], float]:
    """A function that tells the share, in (0, 1], of the latest stretch of time, which is READ_EVERY or longer.

    Linux tells how long threads waited for a core. On other systems the share is always 1.
    """
    cores, read = _cores(), (time.perf_counter(), _times(threads))
    latest = 1.0

    def share() -> float:
        nonlocal read, latest
        if time.perf_counter() - read[0] >= READ_EVERY:
            before, read = read, (time.perf_counter(), _times(threads))
            latest = share_between(before[1], read[1], read[0] - before[0], cores)
        return latest

    return share


def share_between(before: Times, after: Times, seconds: float, cores: int) -> float:
    """The own seconds between two readings as a share of the `seconds` between them."""
    both = before.keys() & after.keys()  # a thread that began or ended in between has no difference
    ran, waited = (sum(after[one][i] - before[one][i] for one in both) for i in (0, 1))
    wanted = min(ran + waited, seconds * cores)
    return 1 - max(0.0, wanted - ran) / max(wanted, seconds)


def _times(threads: Path) -> Times:
    """What the system tells of each thread; nothing where it does not."""
    found: Times = {}
    with suppress(OSError):
        for thread in threads.iterdir():
            with suppress(OSError, ValueError):  # a thread may end while it is read
                ran, waited, _ = (thread / "schedstat").read_text().split()
                found[thread.name] = (1e-9 * int(ran), 1e-9 * int(waited))
    return found


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
