"""Plots as inline SVG in the page's own colours, and pictures as data URIs.

matplotlib draws with stand-in colours, which then become CSS variables, so that one drawing serves light and dark mode.
Legends and captions are HTML. User text in a drawing, such as a layer's name, is never parsed as mathematics.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from quickstudy.base import files
from quickstudy.errors import ConfigError

SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")  # CSS variables of the lines, in order of use
NAMES = ("ink", "muted", "line", "page", *SERIES)
STAND_INS = {name: f"#0101{i + 1:02x}" for i, name in enumerate(NAMES)}
FIGURES = ("png", "svg", "pdf")
REACH = 4.0  # whiskers end at so many times the largest value of a plot
LARGEST = 8.3  # rem on a page for an inch of a figure: its text is then a little larger than that of the page
Draw = Callable[[Mapping[str, str]], Figure]  # a plot: takes the colours by name and draws the figure
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))  # for readers who cannot tell the colours apart

# The page's colours in light mode, for figures outside a page.
PRINTED = {"page": "#ffffff", "ink": "#1b1d21", "muted": "#686d76", "line": "#e2e2de", "s1": "#2b59c3", "s2": "#b4500f"}
PRINTED |= {"s3": "#17785a", "s4": "#8a3fa6", "s5": "#8a6d00", "s6": "#b3305d"}


def style(colours: Mapping[str, str]) -> dict[Any, Any]:
    """matplotlib's settings with these colours, which are given by the names in NAMES."""
    return {
        "svg.fonttype": "none",  # keep text as text: it scales, can be searched, and takes the page's font
        "svg.hashsalt": "quickstudy",  # so that the same run gives the same bytes
        "font.size": 10.5,
        "text.color": colours["ink"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": colours["line"],
        "axes.labelcolor": colours["muted"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": colours["line"],
        "grid.linewidth": 0.6,
        "xtick.color": colours["line"],
        "ytick.color": colours["line"],
        "xtick.labelcolor": colours["muted"],
        "ytick.labelcolor": colours["muted"],
    }


STYLE = style(STAND_INS)


@dataclass(frozen=True)
class Series:
    """One line of a plot: its points, its name, and how it is drawn."""

    x: Sequence[float]
    y: Sequence[float]
    name: str
    colour: str = "s1"  # a key of STAND_INS
    dash: int = 0  # index into DASHES
    width: float = 1.8
    ends: Sequence[tuple[float, float]] | None = None  # of the 95 % intervals; infinite where there is none
    marks: bool = False
    ring: float | None = None  # x of the point to highlight with a ring


def lines(
    series: Sequence[Series], x_label: str, y_label: str, *, end: float | None = None, level: float | None = None
) -> Draw:
    """A plot of lines with interval bands.

    end      the y axis is 0 to `end`, such as 100 for percent; None: to the largest value
    level    y of a dotted line across; None: none
    """

    def draw(colours: Mapping[str, str]) -> Figure:
        figure, axes = panel(5.0, 3.0, x_label, y_label)
        for one in series:
            line(axes, one, colours)
        if level is not None:
            axes.axhline(level, color=colours["muted"], linestyle=":", linewidth=1.2)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _limit(axes, series, end)
        return figure

    return draw


def _limit(axes: Axes, series: Sequence[Series], end: float | None) -> None:
    """Start the y axis at zero, and give the x axis a width even where all points have the same x."""
    x, y = ([v for one in series for v in getattr(one, name)] for name in ("x", "y"))
    if min(x) == max(x):
        axes.set_xlim(min(x) - 1, max(x) + 1)
    if end is not None:
        axes.set_ylim(0, 1.02 * end)  # room for a point at the end
    elif min(y) >= 0:
        axes.set_ylim(bottom=0)


def line(axes: Axes, one: Series, colours: Mapping[str, str]) -> None:
    colour = colours[one.colour]
    marker = "o" if one.marks or len(one.x) < 3 else ""  # a line of one point would be invisible
    axes.plot(one.x, one.y, color=colour, linestyle=DASHES[one.dash], linewidth=one.width, marker=marker, markersize=4)
    if one.ends is not None:
        low, high = zip(*whiskers(one.y, one.ends), strict=True)
        axes.fill_between(one.x, low, high, color=colour, alpha=0.18, linewidth=0)
    if one.ring is not None:
        at = list(one.x).index(one.ring)
        axes.plot([one.ring], [one.y[at]], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour)


def whisker(value: float, ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of an interval as they are drawn: the value itself where there is none."""
    low, high = ends
    return low if math.isfinite(low) else value, high if math.isfinite(high) else value


def whiskers(values: Sequence[float], ends: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same for several values, at most REACH times the largest: few errors may have an interval of any length."""
    most = REACH * max(map(abs, values))
    drawn = (whisker(*each) for each in zip(values, ends, strict=True))
    return [(max(low, -most), min(high, most)) for low, high in drawn]


def panel(width: float, height: float, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label, parse_math=False)  # a metric's name is plain text, whatever characters it contains
    axes.tick_params(length=0)
    axes.margins(x=0.02)
    return figure, axes


@dataclass(frozen=True)
class Bars:
    """One panel of horizontal bars: its title, its axis label, and the lengths of the bars (None: no value)."""

    title: str
    label: str
    values: Sequence[float | None]
    ends: Sequence[tuple[float, float]]  # of the 95 % intervals
    colour: str = "s1"
    whole: float | None = None  # the end of the scale; None: the end of the longest bar


def bars(names: Sequence[str], panels: Sequence[Bars]) -> Draw:
    """A plot of panels side by side, each with a bar for every name; the first name is at the top."""
    return lambda colours: _bars(names, panels, colours)


def with_legend(draw: Draw, legend: Sequence[tuple[str, str, int]]) -> Draw:
    """The plot with its legend (name, colour, dash) drawn below it, for figures outside a page."""

    def both(colours: Mapping[str, str]) -> Figure:
        figure = draw(colours)
        looks = [Line2D([], [], color=colours[colour], linestyle=DASHES[dash]) for _, colour, dash in legend]
        if looks:
            key = figure.legend(
                looks, [name for name, *_ in legend], loc="outside lower center", frameon=False, ncols=2
            )
            for text in key.get_texts():
                text.set_parse_math(False)
        return figure

    return both


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot, with a short name."""

    x: float
    y: float
    ends: tuple[float, float]  # of the 95 % interval of y
    name: str
    colour: str = "s1"


def points(shown: Sequence[Point], x_label: str, y_label: str) -> Draw:
    """A scatter plot with a logarithmic x axis and whiskers. Points that lie close together share one label."""

    def draw(colours: Mapping[str, str]) -> Figure:
        figure, axes = panel(5.0, 3.0, x_label, y_label)
        axes.set_xscale("log")
        if len(places := {one.x for one in shown}) == 1:  # margins cannot widen a logarithmic axis of one value
            axes.set_xlim(min(places) / 2, 2 * min(places))
        reach = whiskers([one.y for one in shown], [one.ends for one in shown])
        for one, (low, high) in zip(shown, reach, strict=True):
            axes.errorbar(
                one.x,
                one.y,
                yerr=[[one.y - low], [high - one.y]],
                fmt="none",
                ecolor=colours[one.colour],
                elinewidth=1.5,
            )
            axes.plot([one.x], [one.y], "o", markersize=7, color=colours[one.colour])
        axes.margins(x=0.12, y=0.15)
        for last, names in _on_one_spot(shown, axes):
            axes.annotate(names, (last.x, last.y), (6, 4), textcoords="offset points", fontsize=9, parse_math=False)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        return figure

    return draw


def _on_one_spot(shown: Sequence[Point], axes: Axes) -> list[tuple[Point, str]]:
    """Groups of points whose names would overlap: the rightmost point of each, and the names of all its points."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    places = [(math.log(p.x / left) / math.log(right / left), (p.y - low) / (high - low)) for p in shown]
    groups: list[list[int]] = []
    for i, (x, y) in enumerate(places):
        near = (g for g in groups if any(abs(places[j][0] - x) < 0.08 and abs(places[j][1] - y) < 0.06 for j in g))
        group = next(near, None)
        groups.append([i]) if group is None else group.append(i)
    return [(max((shown[i] for i in g), key=lambda p: p.x), ", ".join(shown[i].name for i in g)) for g in groups]


def drawn(draw: Draw) -> Markup:
    """The plot as an <svg> element for the page."""
    with rc_context(STYLE):
        return _svg(draw(STAND_INS))


def save(path: str | os.PathLike, draw: Draw) -> None:
    """Write the plot to `path`; its suffix chooses the format: .png, .svg or .pdf. Raises ConfigError for another."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FIGURES:
        raise ConfigError(f"a figure is written as .{', .'.join(FIGURES)}, got {str(path)!r}.")
    buffer = io.BytesIO()
    with rc_context(style(PRINTED)):
        date = {} if kind == "png" else {"CreationDate" if kind == "pdf" else "Date": None}
        draw(PRINTED).savefig(buffer, format=kind, dpi=200, metadata=date)
    files.write_atomically(path, buffer.getvalue())


def _bars(names: Sequence[str], panels: Sequence[Bars], colours: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(5.6, 0.9 + 0.27 * len(names)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        _bar_panel(axes, panel, colours)
        axes.set_yticks(range(len(names)), [_shortened(name) for name in names], parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
    return figure


def _bar_panel(axes: Axes, panel: Bars, colours: Mapping[str, str]) -> None:
    lengths = [v or 0.0 for v in panel.values]
    ends = whiskers(lengths, panel.ends)
    end = panel.whole or max(high for _, high in ends) or 1.0
    ends = [(low, min(high, end)) for low, high in ends]
    places = range(len(lengths))
    axes.barh(places, lengths, height=0.62, color=colours[panel.colour], alpha=0.85)
    sides = zip(*((v - low, high - v) for v, (low, high) in zip(lengths, ends, strict=True)), strict=True)
    axes.errorbar(lengths, places, xerr=list(sides), fmt="none", ecolor=colours["ink"], elinewidth=1.5)
    for place, value, (_, high) in zip(places, panel.values, ends, strict=True):
        axes.text(high + 0.03 * end, place, _at_bar(value), va="center", fontsize=9)
    axes.set_xlim(0, 1.3 * end)  # leaves room for the number beside the longest bar
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_title(panel.title, fontsize=10.5, loc="left")
    axes.set_xlabel(panel.label)
    axes.grid(axis="y", visible=False)
    axes.tick_params(length=0)


def _at_bar(value: float | None) -> str:
    return "no number" if value is None else "<0.01" if 0 < value < 0.01 else f"{value:.2f}" if value else "0"


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _svg(figure: Figure) -> Markup:
    """The figure as an <svg> element for HTML: no fixed size, no metadata, the page's colours, unique ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    size = f"--largest: {figure.get_figwidth() * LARGEST:.4g}rem"  # a page may stretch the plot up to this width
    head = rf'<svg viewBox="\1" style="{size}" aria-hidden="true" focusable="false">'
    text = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', head, text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text).replace("xlink:href", "href")
    text = _own_ids(text)
    for name, colour in STAND_INS.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)


def _own_ids(text: str) -> str:
    """Drop ids that nothing refers to, as they repeat from plot to plot. The others are hashes of their content."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    return re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)


class Picture(NamedTuple):
    """A plot with its heading, alternative text, legend and caption."""

    heading: str
    draw: Draw
    alt: str
    legend: list[tuple[str, str, int]]  # name, colour, dash
    caption: str

    @property
    def svg(self) -> Markup:
        return drawn(self.draw)
