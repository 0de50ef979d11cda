"""Draws the plot of the speed benchmark: every contestant's ratio in every case, and the cost as the problem grows."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.speed.peers import PEERS
from quickstudy.base.figures import PRINTED, style

MARKS = {  # contestant: marker, colour
    "quickstudy without compile": ("D", "s1"),
    "quickstudy loop": ("s", "s1"),
    **dict(zip(PEERS, (("o", "s2"), ("^", "s3"), ("v", "s4"), ("P", "s5")), strict=True)),
    "floor": ("|", "muted"),
}
AXES = {"tasks": "tasks", "steps": "inner steps", "width": "units per layer"}
LINES = {"quickstudy_ms": ("Quickstudy without compile", "s1", "-"), "peer_ms": ("fastest peer", "s2", "--"),
         "floor_ms": ("floor", "muted", ":")}  # fmt: skip


def svg(done: dict[str, Any]) -> bytes:
    cases = [case for case in done["cases"] if case["shown"]]
    with rc_context(style(PRINTED)):
        figure = Figure(figsize=(10, 3.6 + 0.36 * len(cases)), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(0.36 * len(cases) + 0.8, 2.8))
        ratios(above.subplots(), cases)
        if done["growth"]:
            growth(below, done["growth"])
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def ratios(axes: Axes, cases: list[dict[str, Any]]) -> None:
    """Draw a row for each case; the ratio 1 is Quickstudy's automatic choice."""
    for name, (marker, colour) in MARKS.items():
        found = [(e["ratio"], i) for i, case in enumerate(cases) for e in case["contestants"] if e["name"] == name]
        points = [(ratio, i) for ratio, i in found if ratio]
        x, y = [ratio for ratio, _ in points], [i for _, i in points]
        axes.plot(x, y, marker, color=PRINTED[colour], ms=6, ls="none", label=name)
    axes.axvline(1, color=PRINTED["ink"], lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlabel("time over that of Quickstudy's automatic choice (right of the line: slower than Quickstudy)")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


def growth(figure: SubFigure, points: list[dict[str, Any]]) -> None:
    axes = figure.subplots(1, len(AXES))
    for one, axis in zip(axes, AXES, strict=True):
        curves(one, axis, [point for point in points if point["axis"] == axis])
    axes[0].set_ylabel("ms per meta-gradient")
    axes[-1].legend(frameon=False, fontsize=9, loc="upper left")


def curves(axes: Axes, axis: str, points: list[dict[str, Any]]) -> None:
    for key, (name, colour, dash) in LINES.items():
        known = [point for point in points if point[key]]
        axes.plot([point["value"] for point in known], [point[key] for point in known], dash, marker="o", ms=4,
                  color=PRINTED[colour], label=name)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([point["value"] for point in points], [str(point["value"]) for point in points])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(AXES[axis])
