"""Which classes are confused: the pairs that are confused most, and the confusion matrix where it is small enough."""

from __future__ import annotations

from typing import NamedTuple

from quickstudy.base.words import percent, plural
from quickstudy.evaluation.measures.confusion import READABLE, Confusion
from quickstudy.report.sections.section import Section

SHOWN = 10  # pairs in the table
FEW = 5  # a pair that met in fewer test tasks gives weak evidence


class Cell(NamedTuple):
    """A cell of the confusion matrix: its rate as text and as a shade from 0 to 1; empty where the two never met."""

    text: str
    shade: float
    right: bool
    hint: str  # shown when the pointer is over the cell


class Matrix(NamedTuple):
    """The confusion matrix: the names of its classes, and a row of cells for each true class."""

    names: tuple[str, ...]
    rows: list[tuple[str, list[Cell]]]


def section(confusion: Confusion) -> Section:
    """The section of the page: summary and most confused pairs."""
    return Section(conclusion(confusion), rows=confusion.confused[:SHOWN])


def matrix(confusion: Confusion) -> Matrix | None:
    """The confusion matrix; None where there are too many classes to read it."""
    names = confusion.names
    if len(names) > READABLE:
        return None
    return Matrix(names, [(truth, [_cell(confusion, truth, answer) for answer in names]) for truth in names])


def _cell(confusion: Confusion, truth: str, answer: str) -> Cell:
    try:
        one = confusion[truth, answer]
    except KeyError:
        return Cell("", 0.0, truth == answer, f"{truth} and {answer} never met")
    hint = f"{truth} answered {answer}: {one.answered} of {one.asked}"
    return Cell(f"{100 * one.rate:.0f}", round(one.rate, 3), truth == answer, hint)


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
