"""A training that ends by the clock, where one of so many iterations ends by count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from quickstudy.base.own_time import own_share
from quickstudy.errors import ConfigError

OWN = "own"  # in the timing of a training with a budget: the seconds that count


@dataclass(frozen=True)
class Budget:
    """The time for a training: `seconds` of drawing episodes, meta-gradients and updates.

    On a CPU they are own seconds (`quickstudy.base.own_time`): what other processes take of the machine does not count.
    Choosing the engine and validating do not count either. The iteration in which the time is used up is the last one.
    A learning-rate schedule and a learner that changes in the course of training go by the share of the time used.

    Raises ConfigError where a number is not positive.

    >>> Budget(60.0).share({"own": 15.0})
    0.25
    """

    seconds: float
    validations: int = 10  # at equal shares of the time, the last one at its end

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.validations >= 1):
            raise ConfigError(
                f"a budget needs a time above 0 and at least one validation, got {self.seconds} s and "
                f"{self.validations}."
            )

    def share(self, timing: Mapping[str, float]) -> float:
        """The share of the time that is used, from 0 to 1, by the timing of a training."""
        return min(1.0, used(timing) / self.seconds)

    def validates(self, before: float, now: float) -> bool:
        """Whether a validation is due, where the share was `before` an iteration and is `now`."""
        return int(now * self.validations) > int(before * self.validations)


def used(timing: Mapping[str, float]) -> float:
    """The seconds that count, by the timing of a training; all of its iterations where that was not measured."""
    return timing.get(OWN, timing.get("sampling", 0.0) + timing.get("computing", 0.0))


def stopwatch(device: torch.device) -> Callable[[float], float]:
    """A function from the seconds of an iteration on `device` to those that count."""
    if device.type != "cpu":
        return lambda seconds: seconds  # an accelerator computes on while others have the processor
    share = own_share()
    return lambda seconds: seconds * share()
