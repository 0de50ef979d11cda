"""Are the predicted intervals calibrated? The reliability curve of their coverage, and a summary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.figure import Figure

from quickstudy.amount import Amount
from quickstudy.calibration import AtSize, Calibration
from quickstudy.report import words
from quickstudy.report.curves import Picture
from quickstudy.report.plots import DASHES, SERIES, save

SHOWN = (0.5, 0.8, 0.9, 0.95)  # levels in the table, as far as they were measured
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
    tasks = words.plural(found.protocol.episodes, "test task")
    caption = (
        f"Over {tasks}; the band is the 95 % interval of the last line. On the diagonal an interval holds what it "
        "promises, below it too few values lie inside (too sure of itself), above it too many."
    )
    picture = Picture("Coverage", lambda c: _figure(found, c), f"Line plot. {said}", [], caption)
    head = ["support points", *(f"{100 * level:g} % interval" for level in levels), "−log p", "mean std"]
    return Section(said, picture, head, [_row(one, found, levels) for one in found.sizes])


def write_figure(found: Calibration, path: str | os.PathLike) -> None:
    """Write the reliability curve to `path`, as .png, .svg or .pdf. Raises ConfigError for another suffix."""
    save(path, lambda colours: _figure(found, colours))


def _row(one: AtSize, found: Calibration, levels: list[float]) -> list[str]:
    inside = [one.coverage[found.levels.index(level)] for level in levels]
    ends = [f"{a.mean:.3g} ± {a.interval:.2g}" for a in (one.surprise, one.std)]
    return [str(one.points), *(f"{100 * a.mean:.1f} ± {100 * a.interval:.1f}" for a in inside), *ends]


def _figure(found: Calibration, colours: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(4.6, 4.1), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=colours["muted"], linestyle=":", linewidth=1.2)
    promised = [100 * level for level in found.levels]
    for i, one in enumerate(found.sizes):
        colour, dash = colours[SERIES[i % len(SERIES)]], DASHES[i // len(SERIES) % len(DASHES)]
        inside, half = ([100 * a[k] for a in one.coverage] for k in (0, 1))
        label = words.plural(one.points, "point")
        axes.plot(promised, inside, color=colour, linestyle=dash, linewidth=1.6, marker="o", markersize=3, label=label)
        if one is found.sizes[-1]:  # the bands of all lines would overlap
            low, high = ([y + sign * h for y, h in zip(inside, half, strict=True)] for sign in (-1, 1))
            axes.fill_between(promised, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="level of the interval (%)", ylabel="values inside (%)")
    axes.legend(title="support", frameon=False, loc="upper left", fontsize=9)
    axes.tick_params(length=0)
    return figure


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(found: Calibration) -> str:
    """Whether 90 % intervals (or the largest level measured) have the right coverage.

    First at the largest number of support points, then over all numbers of support points.
    """
    level = 0.9 if 0.9 in found.levels else max(found.levels)
    shares, last = found.coverage(level), found.sizes[-1].points
    promise = f"{100 * level:g} % intervals hold {_percent(shares[last])} of the values"
    text = f"After {words.plural(last, 'support point')} {promise}: {_judged(shares[last], level)}."
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
