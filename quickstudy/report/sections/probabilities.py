"""Are the predicted probabilities calibrated? The reliability diagram of accuracy over confidence, and a summary."""

from __future__ import annotations

import math

from quickstudy.base.figures import Picture
from quickstudy.base.words import percentage_points, plural
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.probabilities import BINS, Answers, figure
from quickstudy.evaluation.metric import PERCENT, Format
from quickstudy.report.sections.section import Section

TABLE = "In numbers, with 95 % intervals over test tasks; the ECE pools all queries and has none."
THREE_DIGITS = Format(spec=".3f")


def section(answers: Answers) -> Section:
    """The section of the page: summary, reliability diagram and table."""
    tasks = plural(answers.protocol.episodes, "test task")
    caption = (
        f"Above: accuracy of the answers of each of {BINS} bins of confidence, over {tasks}; larger points hold more. "
        "On the diagonal a probability is what it says, below it the learner is surer than it should be. Below: how "
        "many of the answers each bin holds."
    )
    said = conclusion(answers)
    alt = f"Reliability diagram. {said}"
    picture = Picture("Accuracy against confidence", lambda c: figure(answers, c), alt, [], caption)
    return Section(said, picture, TABLE, rows=_rows(answers))


def _rows(answers: Answers) -> list[tuple[str, str]]:
    guess = f", {math.log(answers.protocol.ways):.3f} for guessing" if answers.protocol.ways else ""
    return [
        ("expected calibration error (ECE)", percentage_points(answers.ece)),
        *(("ECE without the bias of chance", percentage_points(e)) for e in [answers.debiased_ece] if e is not None),
        ("confidence − accuracy", f"{percentage_points(answers.excess.mean)} {PERCENT.half(answers.excess.interval)}"),
        ("−log p of the true class", f"{answers.negative_log_likelihood.in_words(THREE_DIGITS)} nats{guess}"),
        ("Brier score", answers.brier.in_words(THREE_DIGITS)),
    ]


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(answers: Answers) -> str:
    """Whether the learner is over- or under-confident, by how much, and its expected calibration error."""
    sure, right = answers.accuracy.mean + answers.excess.mean, answers.accuracy.mean
    text = (
        f"On average it gives its answer a probability of {PERCENT.value(sure)} and is right in {PERCENT.value(right)}"
    )
    text += f": {_judged(answers.excess)}."
    error, debiased = percentage_points(answers.ece), answers.debiased_ece
    text += f" Over the bins of confidence the two are {error} apart (expected calibration error)"
    if debiased is None:
        return f"{text}."
    left = f"{percentage_points(debiased)} are left" if debiased > 0 else "nothing is left"
    return f"{text}; without what chance alone makes of so many queries, {left}."


def _judged(excess: Amount) -> str:
    by = f"{percentage_points(abs(excess.mean))} {PERCENT.half(excess.interval)}"
    if math.isinf(excess.interval):
        return f"{by} apart, too few tasks to tell"
    if abs(excess.mean) <= max(excess.interval, 1e-9):  # 1e-9 allows for rounding
        return f"neither over- nor under-confident, {by} apart"
    return f"{'over' if excess.mean > 0 else 'under'}-confident by {by}"
