"""Are the predicted probabilities calibrated? The reliability diagram of accuracy over confidence, and a summary."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.figure import Figure

from quickstudy.amount import Amount
from quickstudy.answers import BINS, Answers
from quickstudy.report import words
from quickstudy.report.curves import Picture
from quickstudy.report.plots import save


class Section(NamedTuple):
    """The values that the template needs for this section."""

    conclusion: str
    picture: Picture
    rows: list[tuple[str, str]]


def section(found: Answers) -> Section:
    """The section of the page: summary, reliability diagram and table."""
    tasks = words.plural(found.protocol.episodes, "test task")
    caption = (
        f"Above: accuracy of the answers of each of {BINS} bins of confidence, over {tasks}; larger points hold more. "
        "On the diagonal a probability is what it says, below it the learner is surer than it should be. Below: how "
        "many of the answers each bin holds."
    )
    said = conclusion(found)
    picture = Picture(
        "Accuracy against confidence", lambda c: _figure(found, c), f"Reliability diagram. {said}", [], caption
    )
    return Section(said, picture, _rows(found))


def write_figure(found: Answers, path: str | os.PathLike) -> None:
    """Write the reliability diagram to `path`, as .png, .svg or .pdf. Raises ConfigError for another suffix."""
    save(path, lambda colours: _figure(found, colours))


def _rows(found: Answers) -> list[tuple[str, str]]:
    guess = f", {math.log(found.protocol.ways):.3f} for guessing" if found.protocol.ways else ""
    return [
        ("expected calibration error (ECE)", _points(found.ece)),
        ("confidence − accuracy", f"{_points(found.excess.mean)} {words.half(found.excess.interval, 'accuracy')}"),
        ("−log p of the true class", f"{_plain(found.surprise)} nats{guess}"),
        ("Brier score", _plain(found.brier)),
    ]


def _plain(amount: Amount) -> str:
    return f"{amount.mean:.3f} {words.half(amount.interval, '')}"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points".replace("-", "−")


def _figure(found: Answers, colours: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    curve, held = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    curve.plot([0, 100], [0, 100], color=colours["muted"], linestyle=":", linewidth=1.2)
    shares = [one.queries / sum(b.queries for b in found.bins) for one in found.bins]
    sure, right = ([100 * getattr(one, name) for one in found.bins] for name in ("confidence", "accuracy"))
    curve.plot(sure, right, color=colours["s1"], linewidth=1.6)
    curve.scatter(sure, right, s=[12 + 120 * share for share in shares], color=colours["s1"], zorder=3)
    held.bar(
        [100 * one.low for one in found.bins],
        [100 * share for share in shares],
        width=0.88 * 100 / BINS,
        align="edge",
        color=colours["s2"],
        alpha=0.85,
    )
    curve.set(xlim=(0, 102), ylim=(0, 104), ylabel="accuracy (%)")
    held.set(xlabel="confidence: probability of the answer (%)", ylabel="answers (%)")
    for axes in (curve, held):
        axes.tick_params(length=0)
    return figure


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(found: Answers) -> str:
    """Whether the learner is over- or under-confident, by how much, and its expected calibration error."""
    sure, right = found.accuracy.mean + found.excess.mean, found.accuracy.mean
    text = f"On average it gives its answer a probability of {100 * sure:.1f} % and is right in {100 * right:.1f} %"
    text += f": {_judged(found.excess)}."
    return f"{text} Over the bins of confidence the two are {_points(found.ece)} apart (expected calibration error)."


def _judged(excess: Amount) -> str:
    by = f"{_points(abs(excess.mean))} {words.half(excess.interval, 'accuracy')}"
    if math.isinf(excess.interval):
        return f"{by} apart, too few tasks to tell"
    if abs(excess.mean) <= max(excess.interval, 1e-9):  # 1e-9 allows for rounding
        return f"neither over- nor under-confident, {by} apart"
    return f"{'over' if excess.mean > 0 else 'under'}-confident by {by}"
