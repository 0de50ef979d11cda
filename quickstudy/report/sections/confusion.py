"""Which classes are confused: the pairs that are confused most, and the confusion matrix where it is small enough."""

from __future__ import annotations

from typing import NamedTuple

from quickstudy.base.words import percent, plural
from quickstudy.evaluation.measures.confusion import READABLE, Confusion, Pair

SHOWN = 10  # pairs in the table
FEW = 5  # a pair that met in fewer test tasks gives weak evidence


class Cell(NamedTuple):
    """A cell of the confusion matrix: its rate as text and as a shade from 0 to 1; empty where the two never met."""

    text: str
    shade: float
    right: bool
    told: str  # shown when the pointer is over the cell


class Section(NamedTuple):
    """The values that the template needs for this section."""

    conclusion: str
    rows: list[Pair]
    names: tuple[str, ...]  # classes of the matrix; empty where there are too many to read
    matrix: list[tuple[str, list[Cell]]]


def section(confusion: Confusion) -> Section:
    """The section of the page: summary, most confused pairs and confusion matrix."""
    names = confusion.names if len(confusion.names) <= READABLE else ()
    matrix = [(truth, [_cell(confusion, truth, answer) for answer in names]) for truth in names]
    return Section(conclusion(confusion), confusion.confused[:SHOWN], names, matrix)


def _cell(confusion: Confusion, truth: str, answer: str) -> Cell:
    try:
        one = confusion[truth, answer]
    except KeyError:
        return Cell("", 0.0, truth == answer, f"{truth} and {answer} never met")
    told = f"{truth} answered {answer}: {one.answered} of {one.asked}"
    return Cell(f"{100 * one.rate:.0f}", round(one.rate, 3), truth == answer, told)


def conclusion(confusion: Confusion) -> str:
    """One sentence about the pair of classes that is confused most clearly."""
    classes = plural(len(confusion.names), "class", "classes")
    if not confusion.confused:
        return f"Of {classes} none was taken for another."
    worst = confusion.confused[0]
    met = plural(worst.episodes, "test task")
    text = (
        f"Of {classes}, {worst.truth} is taken for {worst.answer} most clearly: in {percent(worst.rate)} of "
        f"{worst.asked:,} queries, from {met} with both."
    )
    return f"{text} Such pairs meet too seldom for more: --episodes gives more tasks." if worst.episodes < FEW else text
