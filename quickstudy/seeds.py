"""Seeds: one number per run, from which every draw of the run follows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def derive(seed: int, stream: str, index: int = 0) -> int:
    """A seed for the index-th draw of a named stream. Streams of one run are independent of each other."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A generator of its own for the index-th draw of a named stream."""
    return torch.Generator().manual_seed(derive(seed, stream, index))


@contextmanager
def seeded(seed: int, stream: str, index: int = 0) -> Iterator[None]:
    """Draw from torch's global generators as seeded here; the caller's generators go on afterwards as if untouched."""
    number = derive(seed, stream, index)
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # all of them: unnamed, several make torch warn
        # torch.manual_seed would format a stack trace for each kind of device that is not there: 0.6 ms.
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(number)
        yield


def random_states() -> list[Tensor]:
    """Where torch's global generators stand."""
    with _disable_current_modes():  # a tracer has no values: these it must leave alone
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def drawn_since(states: list[Tensor]) -> bool:
    """Whether anything was drawn from torch's global generators since they stood so."""
    now = random_states()
    with _disable_current_modes():
        return any(not torch.equal(a, b) for a, b in zip(states, now, strict=True))


@contextmanager
def as_drawn(states: list[Tensor] | None) -> Iterator[None]:
    """Draw once more what was drawn from these states on; nothing to repeat where there are none."""
    if states is None:
        yield
        return
    with torch.random.fork_rng():
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state_all(states[1:])
        yield
