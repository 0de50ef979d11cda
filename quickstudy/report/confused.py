"""Which classes are confused: the pairs that are confused most, and the confusion matrix where it is small enough."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from quickstudy.confusion import READABLE, Confusion, Pair
from quickstudy.report import words
from quickstudy.report.plots import save

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
    classes = words.plural(len(confusion.names), "class", "classes")
    if not confusion.confused:
        return f"Of {classes} none was taken for another."
    worst = confusion.confused[0]
    met = words.plural(worst.episodes, "test task")
    text = (
        f"Of {classes}, {worst.truth} is taken for {worst.answer} most clearly: in {words.percent(worst.rate)} of "
        f"{worst.asked:,} queries, from {met} with both."
    )
    return f"{text} Such pairs meet too seldom for more: --episodes gives more tasks." if worst.episodes < FEW else text


def write_figure(confusion: Confusion, path: str | os.PathLike) -> None:
    """Write the confusion matrix to `path`, as .png, .svg or .pdf. Raises ConfigError for another suffix."""
    save(path, lambda colours: _figure(confusion, colours))


def _figure(confusion: Confusion, colours: Mapping[str, str]) -> Figure:
    names, rates = confusion.names, {(one.truth, one.answer): one.rate for one in confusion.pairs}
    side = 2.0 + 0.34 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    table = [[rates.get((truth, answer), float("nan")) for answer in names] for truth in names]
    axes.imshow(table, cmap=LinearSegmentedColormap.from_list("", [colours["page"], colours["s1"]]), vmin=0, vmax=1)
    for row, rank in enumerate(table):
        for column, rate in enumerate(rank):
            ink = colours["page" if rate > 0.5 else "ink"]
            if rate == rate:  # not NaN: the two classes have met in a task
                axes.text(column, row, f"{100 * rate:.0f}", ha="center", va="center", color=ink, fontsize=8)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="answered (%)", ylabel="is")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure
