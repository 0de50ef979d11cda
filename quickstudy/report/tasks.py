"""How the learner represents tasks: the figure of their embeddings, and a summary."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from quickstudy.embeddings import NEIGHBOURS, Fact, TaskEmbeddings, Told, in_words
from quickstudy.report import words
from quickstudy.report.curves import Picture
from quickstudy.report.plots import SERIES, save

STEPS = 8  # colours of a colour scale: enough to show a trend, and few enough for its key
MARKS = ("o", "^", "s")  # three marks times six colours distinguish 18 groups
CLEAR = 0.9  # from this R^2 on a fact can be read off the embedding
SEEN = 0.3  # from this R^2 on it can be read off in part


class Section(NamedTuple):
    """The values that the template needs for this section."""

    conclusion: str
    picture: Picture


def section(embeddings: TaskEmbeddings) -> Section:
    """The section of the page: summary and figure."""
    said, e = conclusion(embeddings), embeddings
    place = "Tasks that lie near each other look alike to the learner. The plane of PCA is that of the largest variance"
    place += f", {words.percent(e.share)} of it"
    place += "; that of t-SNE keeps neighbours, not distances." if "t-SNE" in e.planes else "."
    what = f"{words.plural(e.protocol.episodes, 'test task')}, one point each. {place}"
    heading = f"Embeddings of {words.plural(e.protocol.episodes, 'test task')}"
    return Section(said, Picture(heading, lambda c: _figure(e, c), f"Scatter plot. {said}", [], what))


def write_figure(embeddings: TaskEmbeddings, path: str | os.PathLike) -> None:
    """Write the figure to `path`, as .png, .svg or .pdf. Raises ConfigError for another suffix."""
    save(path, lambda colours: _figure(embeddings, colours))


def _figure(e: TaskEmbeddings, colours: Mapping[str, str]) -> Figure:
    """A row for each plane and a column for each fact. With one fact or none, planes are side by side with one key."""
    names: list[str | None] = [*e.facts] or [None]
    panels = [(plane, name) for plane in e.planes for name in names]
    columns = len(names) if len(names) > 1 else len(e.planes)
    size = (0.4 + 3.6 * columns, 0.3 + 2.9 * len(panels) / columns)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels) // columns, columns, squeeze=False)
    for i, (axes, (plane, name)) in enumerate(zip(grid.flat, panels, strict=True)):
        fact = None if name is None else e.facts[name]
        keyed = len(names) > 1 or i == len(panels) - 1
        _panel(axes, plane, e.planes[plane].numpy(), name, fact, colours, keyed)
    return figure


def _panel(
    axes: Axes,
    plane: str,
    places: np.ndarray,
    name: str | None,
    fact: Fact | None,
    colours: Mapping[str, str],
    keyed: bool,
) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(plane if name is None else f"{plane}, by {name}", fontsize=10.5, loc="left", parse_math=False)
    if fact is None or name is None:
        axes.scatter(*places.T, s=12, color=colours["s1"])
    elif isinstance(fact[0], str):
        _groups(axes, places, [str(value) for value in fact], colours, keyed)
    else:
        scale = ListedColormap(colormaps["viridis"](np.linspace(0, 1, STEPS)))
        points = axes.scatter(*places.T, c=np.asarray(fact, dtype=float), s=12, cmap=scale, linewidths=0)
        if keyed:
            key = axes.figure.colorbar(points, ax=axes, fraction=0.05, pad=0.02)  # type: ignore[union-attr]
            key.outline.set_visible(False)  # type: ignore[operator]
            key.ax.tick_params(length=0)


def _groups(axes: Axes, places: np.ndarray, fact: list[str], colours: Mapping[str, str], keyed: bool) -> None:
    """Draw the largest groups in their own colours and marks, and all others in grey."""
    looks = [(colours[colour], mark) for mark in MARKS for colour in SERIES]
    largest = [name for name, _ in Counter(fact).most_common(len(looks))]
    rest = np.array([name not in largest for name in fact])
    axes.scatter(*places[rest].T, s=12, color=colours["line"])
    for name, (colour, mark) in zip(sorted(largest), looks, strict=False):
        inside = np.array([value == name for value in fact])
        axes.scatter(*places[inside].T, s=14, color=colour, marker=mark, label=_short(name), linewidths=0)
    if not keyed:
        return
    key = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, handletextpad=0.1)
    for text in key.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    plain = name.replace("_", " ").strip()
    return plain if len(plain) <= 20 else f"{plain[:19]}…"


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(e: TaskEmbeddings) -> str:
    """What the embedding reveals about the tasks, in a few sentences."""
    plane = f"Two directions of its {e.length} hold {words.percent(e.share)} of the variance."
    if not e.facts:
        return f"Nothing else is known of these tasks. {plane}"
    return " ".join([*(_of_fact(name, e.facts[name], told) for name, told in e.told.items()), plane])


def _of_fact(name: str, fact: Fact, told: Told) -> str:
    known, by_words = in_words(fact, told), isinstance(fact[0], str)
    if by_words and told.value > max(2 * told.chance, told.chance + 0.1):
        return f"Tasks of one {name} lie together: {known}."
    if not by_words and told.value >= CLEAR:
        return f"The {name} of a task can be read off its {NEIGHBOURS} neighbours: {known}."
    if not by_words and told.value >= SEEN:
        return f"The embedding tells the {name} in part: {known}."
    return f"The embedding hardly tells the {name}: {known}."
