"""The horizontal axis for bars of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quickstudy.evaluation.score import Score

FAR = 5.0  # the axis ends at so many times the smallest error: one huge error would shrink all other bars


class Scale:
    """Maps scores to positions on a horizontal axis, in percent of its width.

    The axis is 0 to 1 for accuracies. For errors it starts at 0 (or below a negative interval end) and ends at most at
    FAR times the smallest error.
    """

    def __init__(self, scores: Sequence[Score]) -> None:
        ends = [(s.mean - _finite(s.interval), s.mean + _finite(s.interval)) for s in scores]
        accuracy = all(s.protocol.metric == "accuracy" for s in scores)
        self.low = 0.0 if accuracy else min(0.0, *(low for low, _ in ends))
        worst = max(*(high for _, high in ends), self.low + 1e-12)
        near = FAR * min(abs(s.mean) + _finite(s.interval) for s in scores) or worst
        self.high = 1.0 if accuracy else min(worst, near)

    def at(self, value: float) -> float:
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0), 1), 2)

    def bar(self, score: Score) -> dict[str, float]:
        """The bar (left, width), its interval (low, wide) and its mean, all in percent of the axis."""
        zero, mean = self.at(0), self.at(score.mean)
        low, high = (self.at(score.mean + sign * _finite(score.interval)) for sign in (-1, 1))
        return {"left": min(zero, mean), "width": abs(mean - zero), "low": low, "wide": high - low, "mean": mean}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
