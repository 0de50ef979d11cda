"""Distributed training: the rank of this process, its share of the tasks, and the values that all ranks share.

N ranks of a `torch.distributed` process group hold the same theta. Of the B tasks of a meta-batch rank r has b_r, and

    loss, gradient  =  sum over r of  b_r / B * (mean loss, mean gradient) over the tasks of rank r

is one all-reduce of one flat tensor. It is the mean over the B tasks, whatever N. Without a process group there is one
rank, which has all tasks, and nothing is sent. All ranks must make the same collective calls in the same order.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from quickstudy.engine.choice.race import Choice
from quickstudy.engine.engines import ENGINES
from quickstudy.episodes import Episodes, part_of
from quickstudy.errors import ConfigError, RankError
from quickstudy.learner import Learner, Theta
from quickstudy.tasks.source import Source, TaskSource, source_of

PATIENCE = 600.0  # seconds that the first rank waits for the others to join
DESCRIBED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # environment variables that torchrun sets


def size() -> int:
    """The number of ranks: 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank() if size() > 1 else 0


def first() -> bool:
    """Whether this is the rank that writes files, prints and shows progress."""
    return rank() == 0


# --- joining ---------------------------------------------------------------------------------------------------------


@contextmanager
def joined(device: str | torch.device = "cpu") -> Iterator[torch.device]:
    """Join the process group that torchrun describes and leave it afterwards; yields the device of this rank.

    On "cuda" each rank gets the GPU with its local number, and NCCL is the backend. On "cpu" the backend is gloo, and
    each rank gets its share of the cores. Inside, only the first rank prints. Without torchrun it yields the device
    and changes nothing.

    Raises ConfigError where there are more processes than GPUs, RankError where the other ranks cannot be reached.
    """
    device = torch.device(device)
    joins = launched() and not dist.is_initialized()
    if joins:
        device = _own_device(device)
        _share_cores()
        with _others():
            store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[operator]
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=_of_this_start(store, rank, size), rank=rank, world_size=size)
    with contextlib.nullcontext() if first() else _silent():
        yield device
    if joins:  # not in a finally: after an error the process ends without waiting for the others
        dist.destroy_process_group()


def launched() -> bool:
    """Whether torchrun, or something like it, started this process."""
    return dist.is_available() and all(name in os.environ for name in DESCRIBED_BY)


def restarted() -> bool:
    """Whether torchrun has restarted any rank after a failure; if so, a run continues from its checkpoint."""
    count = _local("TORCHELASTIC_RESTART_COUNT", 0) if dist.is_available() and dist.is_initialized() else 0
    return bool(total(torch.tensor([count])) > 0)  # each machine counts its own failures


def alone(what: str) -> None:
    """Raises ConfigError where there are several ranks; for work that only a single process can do (`what`)."""
    if size() > 1 or (launched() and int(os.environ["WORLD_SIZE"]) > 1):
        raise ConfigError(f"{what} runs in one process. Start it without torchrun: only training and evaluation share.")


def _of_this_start(store: Any, rank: int, size: int) -> Any:
    """A part of torchrun's store that no earlier start of the ranks has written to.

    torchrun keeps one store through all restarts, so it still holds the addresses of dead processes, and its restart
    count differs between machines. Therefore every process asks rank 0 under a new name for the number of this start,
    and rank 0 answers until all ranks know it.
    """
    if rank:
        name = uuid.uuid4().hex
        store.set(f"quickstudy/asking/{rank}", name)
        start = store.get(name).decode()  # blocks until rank 0 answers
        store.add(f"quickstudy/answered/{start}", 1)
    else:
        start, deadline = str(store.add("quickstudy/starts", 1)), time.monotonic() + PATIENCE
        while store.add(f"quickstudy/answered/{start}", 0) < size - 1:
            if time.monotonic() > deadline:
                raise RuntimeError(f"of {size} ranks not all have come")
            for key in (f"quickstudy/asking/{other}" for other in range(1, size)):
                if store.check([key]):
                    store.set(store.get(key).decode(), start)
            time.sleep(0.01)
    return dist.PrefixStore(f"quickstudy/start/{start}", store)  # pyright: ignore[reportPrivateImportUsage]


def _own_device(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    place, gpus = _local("LOCAL_RANK", 0), torch.cuda.device_count()
    if place >= gpus:
        raise ConfigError(
            f"this machine has {gpus} GPUs, but process {place} (from 0) was started on it. Give torchrun "
            f"--nproc-per-node {gpus}, or use the cpu."
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def _share_cores() -> None:
    """Give each process its share of the cores. By default torchrun gives each of several processes one thread."""
    ranks_here = _local("LOCAL_WORLD_SIZE", 1)
    if ranks_here > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // ranks_here))


def _local(name: str, otherwise: int) -> int:
    return int(os.environ.get(name, otherwise))


@contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- shares ----------------------------------------------------------------------------------------------------------


def share(n: int) -> range:
    """The tasks of this rank out of n: a contiguous range. Sizes differ by at most one; the first ranks have more."""
    each, more = divmod(n, size())
    start = rank() * each + min(rank(), more)
    return range(start, start + each + (rank() < more))


def draw(
    tasks: TaskSource | Source,
    n: int,
    generator: torch.Generator,
    learner: Learner | None = None,
    theta: Theta | None = None,
) -> Episodes:
    """This rank's share of `tasks.sample(n, generator)`: together the ranks have the tasks of a single process.

    A task source with a method `share(n, places, generator)` makes only the tasks at these places. From any other
    source all tasks are drawn, and those of other ranks are dropped. A source that is `on_policy` is also given the
    learner and theta. Raises ConfigError where it is on policy and they are missing.
    """
    source = source_of(tasks)
    if not source.on_policy:
        return source.sample(n, generator) if size() == 1 else source.share(n, share(n), generator)
    if learner is None or theta is None:
        raise ConfigError("these tasks depend on who acts in them (on_policy): draw them with learner and theta.")
    return part_of(source.draw(n, generator, learner, theta), share(n))


def stream(name: str) -> str:
    """The name of this rank's stream of random numbers; the first rank has the stream of a single process."""
    return name if first() else f"{name} of rank {rank()}"


# --- shared by all ranks ---------------------------------------------------------------------------------------------


def begin_mean(loss: Tensor, gradient: Theta, weight: float, flag: bool) -> Callable[[], tuple[Tensor, Theta, bool]]:
    """Start the mean over all ranks, weighted by each rank's share of the tasks; call the result to wait for it.

    `loss` (a scalar) and `gradient` are this rank's means, `weight` its share of the tasks. The call returns the mean
    loss, the mean gradient, and whether any rank raised the flag; they are the same on all ranks.

    Raises RankError where the other ranks cannot be reached.
    """
    if size() == 1:
        return lambda: (loss, gradient, flag)
    values = torch.cat([value.reshape(-1) for value in gradient.values()])
    flat = torch.cat([torch.stack([weight * loss, torch.full_like(loss, flag)]).to(values.dtype), weight * values])
    _end_in_peace()
    with _others():
        work = dist.all_reduce(flat, async_op=True)

    def wait() -> tuple[Tensor, Theta, bool]:
        with _others():
            work.wait()  # type: ignore[union-attr]
        parts = flat[2:].split([value.numel() for value in gradient.values()])
        mean = {name: one.view_as(v).to(v.dtype) for one, (name, v) in zip(parts, gradient.items(), strict=True)}
        return flat[0], mean, bool(flat[1] > 0)

    return wait


@functools.cache
def _end_in_peace() -> None:
    """Give gloo's thread a moment to release its last tensor before Python exits.

    To release it the thread needs the interpreter, and it aborts the process if the interpreter is shutting down.
    Without the pause one process in five aborted after all its work was done, and torchrun reported a failure.
    """
    atexit.register(time.sleep, 0.1)


def total(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks. It is exact where at most one rank holds a nonzero value for each entry.

    Raises RankError where the other ranks cannot be reached.
    """
    if size() == 1:
        return values
    sums = values.to(_wire())
    _end_in_peace()
    with _others():
        dist.all_reduce(sums)
    return sums.to(values.device)


def barrier() -> None:
    """Wait until all ranks have reached this call. Raises RankError where the other ranks cannot be reached."""
    total(torch.zeros(1))


def same_engine(choice: Choice) -> Choice:
    """The first rank's choice, on all ranks.

    Ranks may measure different engines as the fastest, and engines agree only up to rounding.
    """
    own = [ENGINES.index(choice.engine), choice.chunk or 0] if first() else [0, 0]
    engine, chunk = total(torch.tensor(own)).tolist()
    return choice._replace(engine=ENGINES[engine], chunk=chunk or None)


def check_same(**facts: Any) -> None:
    """Raises ConfigError, on every rank, where a fact differs between ranks. Facts are JSON values by name."""
    numbers = torch.zeros(size(), len(facts), dtype=torch.int64)
    numbers[rank()] = torch.tensor([_number(value) for value in facts.values()])
    apart = (numbers := total(numbers)) != numbers[0]
    if apart.any():
        where, which = apart.nonzero()[0].tolist()
        raise ConfigError(
            f"rank {where} begins with another {list(facts)[which]} than rank 0. Give every rank the same settings, "
            "seed torch before the network is built (torch.manual_seed), and let all see one run folder."
        )


def _number(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest(), "big", signed=True)


def _wire() -> str:
    """The device that a tensor must be on for this process group to send it."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RankError(
            f"the other ranks cannot be reached ({reason}). If one has stopped, its own message says why; if not, "
            "every rank must call qs.train and qs.evaluate alike. A run that was cut goes on with --resume, and by "
            "itself with torchrun --max-restarts."
        ) from error
