"""Are the predicted intervals calibrated? The reliability curve of their coverage, and a summary."""

from __future__ import annotations

from typing import NamedTuple

from quickstudy.base.figures import Picture
from quickstudy.base.words import plural
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.intervals import SHOWN, AtSize, Calibration, figure

CLOSE = 0.02  # a coverage this close to the nominal level counts as right


class Section(NamedTuple):
    """The values that the template needs for this section."""

    conclusion: str
    picture: Picture
    head: list[str]
    rows: list[list[str]]


def section(found: Calibration) -> Section:
    """The section of the page: summary, reliability curve and table."""
    said, levels = conclusion(found), [level for level in SHOWN if level in found.levels] or list(found.levels)
    tasks = plural(found.protocol.episodes, "test task")
    caption = (
        f"Over {tasks}; the band is the 95 % interval of the last line. On the diagonal an interval holds what it "
        "promises, below it too few values lie inside (too sure of itself), above it too many."
    )
    picture = Picture("Coverage", lambda c: figure(found, c), f"Line plot. {said}", [], caption)
    head = ["support points", *(f"{100 * level:g} % interval" for level in levels), "−log p", "mean std"]
    return Section(said, picture, head, [_row(one, found, levels) for one in found.sizes])


def _row(one: AtSize, found: Calibration, levels: list[float]) -> list[str]:
    inside = [one.coverage[found.levels.index(level)] for level in levels]
    ends = [f"{a.mean:.3g} ± {a.interval:.2g}" for a in (one.surprise, one.std)]
    return [str(one.points), *(f"{100 * a.mean:.1f} ± {100 * a.interval:.1f}" for a in inside), *ends]


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(found: Calibration) -> str:
    """Whether 90 % intervals (or the largest level measured) have the right coverage.

    First at the largest number of support points, then over all numbers of support points.
    """
    level = 0.9 if 0.9 in found.levels else max(found.levels)
    shares, last = found.coverage(level), found.sizes[-1].points
    promise = f"{100 * level:g} % intervals hold {_percent(shares[last])} of the values"
    text = f"After {plural(last, 'support point')} {promise}: {_judged(shares[last], level)}."
    if len(shares) == 1:
        return text
    worst = max(shares, key=lambda points: abs(shares[points].mean - level))
    ends = f"from {_percent(min(shares.values()))} to {_percent(max(shares.values()))}"
    return f"{text} Over all numbers of support points they hold {ends}, farthest off at {worst}."


def _judged(share: Amount, level: float) -> str:
    if abs(share.mean - level) <= CLOSE:
        return "they keep their promise"
    if abs(share.mean - level) <= share.interval:
        return f"too few tasks to tell whether they keep their promise (± {100 * share.interval:.1f})"
    return "too wide" if share.mean > level else "too narrow, the learner is surer than it should be"


def _percent(share: Amount) -> str:
    return f"{100 * share.mean:.1f} %"
