"""How much further examples help: the figure of accuracy at the n-th instance of a class, and a summary."""

from __future__ import annotations

from quickstudy.base.figures import Picture, bars
from quickstudy.base.words import plural
from quickstudy.evaluation.measures.instances import InstanceAccuracy, figure
from quickstudy.evaluation.metric import PERCENT
from quickstudy.report.sections.section import Section

STREAMS = (
    "Streams of labelled examples in random order, each answered before its label is seen. An instance is how many of "
    "its class have come so far, itself included."
)


def section(accuracy: InstanceAccuracy) -> Section:
    """The section of the page: what a stream is, and the plot, whose caption says what it shows."""
    said = conclusion(accuracy)
    return Section(
        STREAMS, Picture("Accuracy at the n-th instance", bars(*figure(accuracy)), f"Bar plot. {said}", [], said)
    )


def conclusion(accuracy: InstanceAccuracy) -> str:
    """What the figure shows, in two or three sentences."""
    first, last = min(accuracy.instances), max(accuracy.instances)
    text = f"{accuracy[first].in_words(PERCENT)} at instance {first} of a class"
    text += f", {accuracy[last].in_words(PERCENT)} at instance {last}" if last != first else ""
    text += f", over {plural(accuracy.protocol.episodes, 'stream')} in random order. "
    if accuracy.leaks:
        return text + "That is more than can be known before a label is seen: labels leak into the answers."
    possible, chance = PERCENT.value(accuracy.by_exclusion), PERCENT.value(accuracy.chance)
    return text + (
        f"Before a class was seen no more than {possible} is possible, by excluding the others; "
        f"the first example of a stream is at {accuracy.first.in_words(PERCENT)} (chance {chance})."
    )
