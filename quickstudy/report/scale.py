"""The horizontal axis for bars of scores."""

from __future__ import annotations

from collections.abc import Sequence

from quickstudy.base.figures import whisker
from quickstudy.evaluation.score import Score

FAR = 5.0  # an axis of errors ends at so many times the smallest: one huge error would shrink all other bars


class Scale:
    """Maps scores to positions on a horizontal axis, in percent of its width.

    Where the metric has a largest value the axis is 0 to that, as 0 to 1 for accuracies. Else it starts at 0 (or below
    a negative interval end) and ends at the largest value, where lower is better at most at FAR times the smallest.
    """

    def __init__(self, scores: Sequence[Score]) -> None:
        ends = [whisker(s.mean, s.ends) for s in scores]
        metric = scores[0].metric
        largest = metric.format.largest
        negative = any(score.mean < 0 for score in scores)  # means, as the interval of a plain value may reach below 0
        self.low = 0.0 if largest is not None and not negative else min(0.0, *(low for low, _ in ends))
        most = max(*(high for _, high in ends), self.low + 1e-12)
        near = FAR * min(max(abs(low), abs(high)) for low, high in ends) or most
        self.high = largest if largest is not None else most if metric.higher_is_better else min(most, near)

    def at(self, value: float) -> float:
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0), 1), 2)

    def bar(self, score: Score) -> dict[str, float]:
        """The bar (left, width), its interval (low, wide) and its mean, all in percent of the axis."""
        zero, mean = self.at(0), self.at(score.mean)
        low, high = map(self.at, whisker(score.mean, score.ends))
        return {"left": min(zero, mean), "width": abs(mean - zero), "low": low, "wide": high - low, "mean": mean}
