"""How much further examples help: the figure of accuracy at the n-th instance of a class, and a summary."""

from __future__ import annotations

import os

from quickstudy.instances import InstanceAccuracy, in_words
from quickstudy.report import words
from quickstudy.report.curves import Picture
from quickstudy.report.plots import Bars, bars, save


def picture(found: InstanceAccuracy) -> Picture:
    """The plot for the page, with its caption."""
    said = conclusion(found)
    return Picture("Accuracy at the n-th instance", bars(*_figure(found)), f"Bar plot. {said}", [], said)


def write_figure(found: InstanceAccuracy, path: str | os.PathLike) -> None:
    """Write the figure to `path`, as .png, .svg or .pdf. Raises ConfigError for another suffix."""
    save(path, bars(*_figure(found)))


def _figure(found: InstanceAccuracy) -> tuple[list[str], list[Bars]]:
    names = [f"instance {n}" for n in found.instances]
    means, half = [a.mean for a in found.amounts], [a.interval for a in found.amounts]
    return names, [Bars("share of right answers", "accuracy", means, half, whole=1.0)]


def conclusion(found: InstanceAccuracy) -> str:
    """What the figure shows, in two or three sentences."""
    first, last = found.instances[0], found.instances[-1]
    text = f"{in_words(found[first])} at instance {first} of a class"
    text += f", {in_words(found[last])} at instance {last}" if last != first else ""
    text += f", over {words.plural(found.protocol.episodes, 'stream')} in random order. "
    if found.leaks:
        return text + "That is more than can be known before a label is seen: labels leak into the answers."
    return text + (
        f"Before a class was seen no more than {100 * found.by_exclusion:.1f} % is possible, by excluding the others; "
        f"the first example of a stream is at {in_words(found.first)} (chance {100 * found.chance:.1f} %)."
    )
