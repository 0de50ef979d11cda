"""Inputs as small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from quickstudy.base.figures import Draw, Series, line, panel
from quickstudy.experiments.run import Example


def fit(example: Example, limits: tuple[float, float], tested: str) -> Draw:
    """A plot of a regression task of one number: the adapted functions, the support points and the query points.

    `limits` are those of the y axis; `tested` is the curve that gave the answers (see `fit_series`).
    """

    def draw(colours: Mapping[str, str]) -> Figure:
        figure, axes = panel(3.6, 2.7, "x", "y")
        for one in fit_series(example, tested):
            line(axes, one, colours)
        ink = colours["ink"]
        x, truth = _column(example.query_x), _column(example.query_y)
        axes.vlines(x, truth, _column(example.output), color=colours["muted"], linewidth=0.8)
        axes.plot(x, truth, "o", markersize=5, markerfacecolor=colours["page"], markeredgecolor=ink)
        axes.plot(_column(example.support_x), _column(example.support_y), "o", markersize=5.5, color=ink)
        axes.set_ylim(*limits)
        return figure

    return draw


def fit_series(example: Example, tested: str) -> list[Series]:
    """The adapted functions of one episode, by number of inner steps. The one named `tested` gave the answers: it is
    drawn thicker.
    """
    grid = [] if example.grid is None else _column(example.grid)
    looks = {"0": ("muted", 1, 1.4), tested: ("s1", 0, 2.2)}
    names = sorted(example.curves, key=lambda name: int(name) if name.isdigit() else 0)
    return [Series(grid, _column(example.curves[name]), name, *looks.get(name, ("s2", 2, 1.8))) for name in names]


def _column(values: Tensor) -> list[float]:
    return values.double().reshape(len(values), -1)[:, 0].tolist()


# --- pictures --------------------------------------------------------------------------------------------------------

SIDE = 56  # largest side of a thumbnail in pixels: larger ones would make the page heavy
SHARP = 32  # pictures up to this side are stored as PNG, which is lossless, larger ones as JPEG


def is_image(x: Tensor) -> bool:
    """Whether inputs [n, channels, height, width] can be shown as pictures."""
    return x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= 4


def is_drawing(x: Tensor) -> bool:
    """Whether pictures [n, channels, height, width] are ink drawings: one channel, and mostly exactly zero.

    They are shown inverted, as dark ink on white paper.
    """
    return x.shape[1] == 1 and float((x == 0).double().mean()) > 0.5


def thumbnail(image: Tensor, low: float, high: float, drawing: bool) -> str:
    """One picture [channels, height, width] as a data URI. Values from `low` to `high` are scaled to [0, 1].

    `drawing`: the picture is inverted, as ink on paper.
    """
    scaled = ((image.double() - low) / max(high - low, 1e-12)).clamp(0, 1).permute(1, 2, 0)
    array = (255 * (1 - scaled if drawing else scaled)).round().byte().numpy()
    picture = Image.fromarray(array if array.shape[2] == 3 else np.ascontiguousarray(array[:, :, 0]))
    picture.thumbnail((SIDE, SIDE))
    lossless = max(image.shape[1:]) <= SHARP
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if lossless else "JPEG", **({"optimize": True} if lossless else {"quality": 85}))
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
