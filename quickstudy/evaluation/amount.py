"""A mean over test episodes with its 95 % interval, as reported by every measurement other than the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from quickstudy.evaluation.confidence import Interval, mean_interval
from quickstudy.evaluation.metric import PLAIN, Format


class Amount(NamedTuple):
    """A mean over test episodes and the ends of its 95 % interval (infinite for one episode)."""

    mean: float
    low: float
    high: float

    @property
    def interval(self) -> float:
        """Half the width of the interval."""
        return Interval(self.low, self.high).half

    @classmethod
    def of(cls, values: Tensor, kind: Format = PLAIN) -> Amount:
        """The mean of values [n], one for each episode, in the range that `kind` declares."""
        return cls(float(values.mean()), *mean_interval(values, kind))

    def in_words(self, kind: Format) -> str:
        """'97.4 % ± 0.3', written as `kind` says."""
        return kind.between(*self)

    def to_dict(self) -> dict[str, float | None]:
        """Plain values. Infinite ones become None, because JSON has no infinity."""
        each = {"mean": self.mean, "interval": self.interval, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in each.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Amount:
        """The amount that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        mean, half = float(plain["mean"]), math.inf if plain["interval"] is None else float(plain["interval"])
        if not math.isfinite(mean):
            raise ValueError("a mean is not finite")
        low, high = (plain.get(name, end) for name, end in (("low", mean - half), ("high", mean + half)))
        return cls(mean, -math.inf if low is None else float(low), math.inf if high is None else float(high))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines of text with aligned columns."""
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(w) for text, w in zip(row, width, strict=True)).rstrip() for row in rows]
