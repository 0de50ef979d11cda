"""Every test starts from the same random state, on one thread, and leaves torch's global settings as it found them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_num_threads(
        1
    )  # the tensors are tiny, and on a busy machine two threads wait for each other most of the time
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_warn_always(False)


@pytest.fixture
def double() -> Iterator[None]:
    """Work in float64, where rounding is far below every tolerance."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
