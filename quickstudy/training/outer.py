"""The outer optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from quickstudy.learner import Outer


def optimizer_of(outer: Outer) -> Callable[[list[Tensor]], Optimizer]:
    """A function from parameters to the torch optimizer that an `Outer` names."""
    optimizers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
    return lambda values: optimizers[outer.optimizer](values, lr=outer.lr)


def schedule_of(name: str, iterations: int) -> Callable[[Optimizer], LRScheduler] | None:
    """A function from an optimizer to its learning-rate schedule; None for a constant learning rate.

    `name`: "cosine" or "linear", which go down to 0 over all iterations; any other name is constant.
    """
    if name == "cosine":
        return lambda optimizer: CosineAnnealingLR(optimizer, iterations)
    if name == "linear":
        return lambda optimizer: LinearLR(optimizer, 1.0, 0.0, iterations)
    return None


def described_outer(part: Any, settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """An optimizer or scheduler as plain values, so that a resumed run can check that it is the same."""
    if part is None:
        return None
    plain = {
        name: value for name, value in (settings or {}).items() if isinstance(value, (int, float, str, tuple, list))
    }
    return {"name": type(part).__name__, **plain}
