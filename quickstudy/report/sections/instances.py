"""How much further examples help: the figure of accuracy at the n-th instance of a class, and a summary."""

from __future__ import annotations

from quickstudy.base.figures import Picture, bars
from quickstudy.base.words import plural
from quickstudy.evaluation.measures.instances import InstanceAccuracy, figure, in_words


def picture(found: InstanceAccuracy) -> Picture:
    """The plot for the page, with its caption."""
    said = conclusion(found)
    return Picture("Accuracy at the n-th instance", bars(*figure(found)), f"Bar plot. {said}", [], said)


def conclusion(found: InstanceAccuracy) -> str:
    """What the figure shows, in two or three sentences."""
    first, last = found.instances[0], found.instances[-1]
    text = f"{in_words(found[first])} at instance {first} of a class"
    text += f", {in_words(found[last])} at instance {last}" if last != first else ""
    text += f", over {plural(found.protocol.episodes, 'stream')} in random order. "
    if found.leaks:
        return text + "That is more than can be known before a label is seen: labels leak into the answers."
    return text + (
        f"Before a class was seen no more than {100 * found.by_exclusion:.1f} % is possible, by excluding the others; "
        f"the first example of a stream is at {in_words(found.first)} (chance {100 * found.chance:.1f} %)."
    )
