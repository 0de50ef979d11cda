"""A mean over test episodes with its 95 % interval, as reported by every measurement other than the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from quickstudy.evaluation.score import half_width


class Amount(NamedTuple):
    """A mean over test episodes and the half width of its 95 % interval (infinite for one episode)."""

    mean: float
    interval: float

    @classmethod
    def of(cls, values: Tensor) -> Amount:
        """The mean of values [n], one for each episode, and Student's interval for it."""
        return cls(float(values.mean()), half_width(values))

    def to_dict(self) -> dict[str, float | None]:
        """Plain values. An infinite interval becomes None, because JSON has no infinity."""
        return {"mean": self.mean, "interval": None if math.isinf(self.interval) else self.interval}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Amount:
        """The amount that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        mean, interval = float(plain["mean"]), plain["interval"]
        if not math.isfinite(mean):
            raise ValueError("a mean is not finite")
        return cls(mean, math.inf if interval is None else float(interval))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines of text with aligned columns."""
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(w) for text, w in zip(row, width, strict=True)).rstrip() for row in rows]
