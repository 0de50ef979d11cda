"""Random seeds: every random draw of a run follows from its one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

T = TypeVar("T")


def derive(seed: int, stream: str, index: int = 0) -> int:
    """The seed for the index-th draw of a named stream. Streams of one run are independent of each other."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A new generator for the index-th draw of a named stream."""
    return torch.Generator().manual_seed(derive(seed, stream, index))


def restored() -> AbstractContextManager[None]:
    """Restore the states of torch's global generators, those of all GPUs too, at the end of a `with` block."""
    return torch.random.fork_rng(range(torch.cuda.device_count()))  # named, because torch warns about several GPUs


@contextmanager
def seeded(seed: int, stream: str, index: int = 0) -> Iterator[None]:
    """Seed torch's global generators for a `with` block and restore their states afterwards."""
    number = derive(seed, stream, index)
    with restored():
        # torch.manual_seed would take 0.6 ms: it formats a stack trace for each kind of device that is missing.
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(number)
        yield


def random_states() -> list[Tensor]:
    """The states of torch's global generators."""
    with _disable_current_modes():  # a tracer's tensors have no values, so it must not see these
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def drawn_since(states: list[Tensor]) -> bool:
    """Whether anything was drawn from torch's global generators since `random_states` returned these states."""
    now = random_states()
    with _disable_current_modes():
        return any(not torch.equal(a, b) for a, b in zip(states, now, strict=True))


@contextmanager
def as_drawn(states: list[Tensor] | None) -> Iterator[None]:
    """Set torch's global generators to these states for a `with` block, to repeat draws; None: leave them alone."""
    if states is None:
        yield
        return
    with restored():
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state_all(states[1:])
        yield


def watching_generator(attempt: Callable[[], T]) -> tuple[T, bool]:
    """The result of attempt(), and whether it drew from torch's global generators."""
    before = random_states()
    result = attempt()
    return result, drawn_since(before)
