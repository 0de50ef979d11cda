"""Are the predicted intervals calibrated? The reliability curve of their coverage, and a summary."""

from __future__ import annotations

from quickstudy.base.figures import Picture
from quickstudy.base.words import plural
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.intervals import BARE_PERCENT, SHOWN, AtSize, Calibration, figure
from quickstudy.evaluation.metric import PERCENT, PLAIN
from quickstudy.report.sections.section import Section

CLOSE = 0.02  # a coverage this close to the nominal level counts as right
TABLE = "Percent of the query values inside central intervals, by number of support points, with 95 % intervals."


def section(calibration: Calibration) -> Section:
    """The section of the page: summary, reliability curve and table."""
    said = conclusion(calibration)
    levels = [level for level in SHOWN if level in calibration.levels] or list(calibration.levels)
    tasks = plural(calibration.protocol.episodes, "test task")
    caption = (
        f"Over {tasks}; the band is the 95 % interval of the last line. On the diagonal an interval holds what it "
        "promises, below it too few values lie inside (too sure of itself), above it too many."
    )
    picture = Picture("Coverage", lambda c: figure(calibration, c), f"Line plot. {said}", [], caption)
    head = ("support points", *(f"{100 * level:g} % interval" for level in levels), "−log p", "mean std")
    return Section(said, picture, TABLE, head, [_row(one, calibration, levels) for one in calibration.sizes])


def _row(one: AtSize, calibration: Calibration, levels: list[float]) -> tuple[str, ...]:
    inside = [one.coverage[calibration.levels.index(level)] for level in levels]
    shares = [share.in_words(BARE_PERCENT) for share in inside]
    return (str(one.points), *shares, *(amount.in_words(PLAIN) for amount in (one.negative_log_likelihood, one.std)))


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(calibration: Calibration) -> str:
    """Whether 90 % intervals (or the largest level measured) have the right coverage.

    First at the largest number of support points, then over all numbers of support points.
    """
    level = 0.9 if 0.9 in calibration.levels else max(calibration.levels)
    shares = calibration.coverage(level)
    last = max(shares)
    promise = f"{100 * level:g} % intervals hold {PERCENT.value(shares[last].mean)} of the values"
    text = f"After {plural(last, 'support point')} {promise}: {_judged(shares[last], level)}."
    if len(shares) == 1:
        return text
    worst = max(shares, key=lambda points: abs(shares[points].mean - level))
    least, most = (PERCENT.value(end(shares.values()).mean) for end in (min, max))
    return f"{text} Over all numbers of support points they hold from {least} to {most}, farthest off at {worst}."


def _judged(share: Amount, level: float) -> str:
    if abs(share.mean - level) <= CLOSE:
        return "they keep their promise"
    if share.low <= level <= share.high:
        return f"too few tasks to tell whether they keep their promise ({PERCENT.ends(*share)})"
    return "too wide" if share.mean > level else "too narrow, the learner is surer than it should be"
