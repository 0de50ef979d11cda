"""The outer optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler

from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Outer

Part = TypeVar("Part")
Schedule = Callable[[Optimizer], LRScheduler]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}

SCHEDULES: dict[str, Callable[[int], Schedule | None]] = {  # all iterations -> the schedule; None: a constant rate
    "constant": lambda iterations: None,
    "cosine": lambda iterations: lambda optimizer: CosineAnnealingLR(optimizer, iterations),
    "linear": lambda iterations: lambda optimizer: LinearLR(optimizer, 1.0, 0.0, iterations),
}

FALLS: dict[str, Callable[[float], float] | None] = {  # share of the training done -> factor of the learning rate
    "constant": None,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "linear": lambda share: 1 - share,
}


def optimizer_of(outer: Outer) -> Callable[[list[Tensor]], Optimizer]:
    """A function from parameters to the torch optimizer that an `Outer` names.

    Raises ConfigError for an unknown name.
    """
    optimizer = _named("optimizer", outer.optimizer, OPTIMIZERS)
    return lambda values: optimizer(values, lr=outer.lr)  # type: ignore[call-arg]


def schedule_of(name: str, iterations: int) -> Schedule | None:
    """A function from an optimizer to its learning-rate schedule; None for a constant learning rate.

    `name`: "constant"; "cosine" or "linear", which go down to 0 over all iterations. Raises ConfigError for another.
    """
    return _named("schedule", name, SCHEDULES)(iterations)


def schedule_by_share(name: str, share: Callable[[], float]) -> Schedule | None:
    """As `schedule_of`, where `share()` tells how much of the training is done, from 0 to 1."""
    fall = _named("schedule", name, FALLS)
    return fall and (lambda optimizer: LambdaLR(optimizer, lambda _: fall(share())))


def _named(what: str, name: str, known: Mapping[str, Part]) -> Part:
    if name not in known:
        raise ConfigError(f"{what} must be one of {', '.join(known)}; got {name!r}.{suggest(str(name), known)}")
    return known[name]


def described_outer(part: Any, settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """An optimizer or scheduler as plain values, so that a resumed run can check that it is the same."""
    if part is None:
        return None
    plain = {
        name: value for name, value in (settings or {}).items() if isinstance(value, (int, float, str, tuple, list))
    }
    return {"name": type(part).__name__, **plain}
