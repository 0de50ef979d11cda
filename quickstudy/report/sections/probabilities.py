"""Are the predicted probabilities calibrated? The reliability diagram of accuracy over confidence, and a summary."""

from __future__ import annotations

import math
from typing import NamedTuple

from quickstudy.base.figures import Picture
from quickstudy.base.words import half, plural
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.probabilities import BINS, Answers, figure


class Section(NamedTuple):
    """The values that the template needs for this section."""

    conclusion: str
    picture: Picture
    rows: list[tuple[str, str]]


def section(found: Answers) -> Section:
    """The section of the page: summary, reliability diagram and table."""
    tasks = plural(found.protocol.episodes, "test task")
    caption = (
        f"Above: accuracy of the answers of each of {BINS} bins of confidence, over {tasks}; larger points hold more. "
        "On the diagonal a probability is what it says, below it the learner is surer than it should be. Below: how "
        "many of the answers each bin holds."
    )
    said = conclusion(found)
    picture = Picture(
        "Accuracy against confidence", lambda c: figure(found, c), f"Reliability diagram. {said}", [], caption
    )
    return Section(said, picture, _rows(found))


def _rows(found: Answers) -> list[tuple[str, str]]:
    guess = f", {math.log(found.protocol.ways):.3f} for guessing" if found.protocol.ways else ""
    return [
        ("expected calibration error (ECE)", _points(found.ece)),
        ("confidence − accuracy", f"{_points(found.excess.mean)} {half(found.excess.interval, 'accuracy')}"),
        ("−log p of the true class", f"{_plain(found.surprise)} nats{guess}"),
        ("Brier score", _plain(found.brier)),
    ]


def _plain(amount: Amount) -> str:
    return f"{amount.mean:.3f} {half(amount.interval, '')}"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points".replace("-", "−")


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(found: Answers) -> str:
    """Whether the learner is over- or under-confident, by how much, and its expected calibration error."""
    sure, right = found.accuracy.mean + found.excess.mean, found.accuracy.mean
    text = f"On average it gives its answer a probability of {100 * sure:.1f} % and is right in {100 * right:.1f} %"
    text += f": {_judged(found.excess)}."
    return f"{text} Over the bins of confidence the two are {_points(found.ece)} apart (expected calibration error)."


def _judged(excess: Amount) -> str:
    by = f"{_points(abs(excess.mean))} {half(excess.interval, 'accuracy')}"
    if math.isinf(excess.interval):
        return f"{by} apart, too few tasks to tell"
    if abs(excess.mean) <= max(excess.interval, 1e-9):  # 1e-9 allows for rounding
        return f"neither over- nor under-confident, {by} apart"
    return f"{'over' if excess.mean > 0 else 'under'}-confident by {by}"
