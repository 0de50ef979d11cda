"""Characters of invented alphabets, as different people would write them: few-shot images without a download.

A *character* has one to four strokes. A pen draws a stroke in eight equal steps. It starts in some direction and turns
between steps; the turns (`STROKES`) make the stroke a line, an arc, a hook, a loop or a zigzag. Each further stroke
touches or crosses an earlier one, in a place where it crowds the character little.

A *drawer* has habits that hold for all their characters: slant, tilt, aspect, size, pen, roundness, shake (`HABITS`).
A *drawing* is a character in a drawer's hand, with random variations of its own, somewhere on the paper.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from quickstudy.tasks.classes import ClassTasks, stack_classes
from quickstudy.tasks.splits import check_split


class Stroke(NamedTuple):
    """A way to move the pen, and how often it is the first or a further stroke of a character."""

    turns: Sequence[float]  # degrees before each step; the first is relative to the direction of the stroke
    first: float  # people build characters from one distinctive stroke ...
    further: float  # ... and simpler ones across it


STROKES = {
    "line": Stroke((0, 0, 0, 0, 0, 0, 0, 0), 3, 9),
    "arc": Stroke((-63, 18, 18, 18, 18, 18, 18, 18), 2, 2),
    "bowl": Stroke((0, 0, 0, 60, 60, 60, 0, 0), 3, 2),
    "hook": Stroke((0, 0, 0, 0, 0, 50, 60, 60), 3, 2),
    "cane": Stroke((-180, 60, 60, 60, 0, 0, 0, 0), 2, 1),
    "corner": Stroke((0, 0, 0, 0, 95, 0, 0, 0), 3, 2),
    "roof": Stroke((-60, 0, 0, 0, 120, 0, 0, 0), 2, 1),
    "box": Stroke((0, 0, 90, 0, 0, 0, 90, 0), 2, 1),
    "zigzag": Stroke((0, 0, 0, 135, 0, -135, 0, 0), 2, 0.5),
    "wave": Stroke((-60, 50, 50, 30, -30, -50, -50, -50), 2, 1),
    "snake": Stroke((-150, 60, 60, 60, 0, -60, -60, -60), 3, 0.5),
    "three": Stroke((-90, 60, 60, 60, -180, 60, 60, 60), 2, 0.5),
    "ring": Stroke((0, 52, 52, 52, 52, 52, 52, 52), 2, 1),
    "loop": Stroke((0, 0, 75, 75, 75, 60, 0, 0), 2, 0.5),
    "ear": Stroke((0, 0, 100, 50, 50, 50, 50, 40), 2, 0.5),
    "spiral": Stroke((0, 20, 30, 40, 50, 60, 70, 85), 1, 0),
    "dot": Stroke((0, 90, 90, 90, 90, 90, 90, 90), 0, 0.5),
}
STROKE_COUNTS = (2, 6, 6, 3)  # relative frequencies of characters with one, two, three and four strokes
PROPOSALS = 12  # candidates that are tried for each further stroke


class Habit(NamedTuple):
    """How a property of handwriting is distributed."""

    usual: float
    people: float  # standard deviation between drawers
    times: float  # standard deviation between the drawings of one drawer


HABITS = {
    "slant": Habit(0.05, 0.2, 0.06),  # sideways shift per unit of height
    "tilt": Habit(0.0, 0.12, 0.06),  # rotation, radians
    "aspect": Habit(1.0, 0.15, 0.07),  # width over height, relative to the character's own
    "size": Habit(0.7, 0.07, 0.03),  # longest side, share of the paper
    "pen": Habit(1.8 / 28, 0.2 / 28, 0.05 / 28),  # width of a stroke, share of the paper
    "roundness": Habit(0.7, 0.25, 0.1),  # 0 goes straight between control points, 1 is a cubic spline
    "shake": Habit(0.014, 0.004, 0.001),  # standard deviation of a control point, share of the character
}


def draw_glyphs(classes: int, drawers: int, seed: int, size: int = 28) -> Tensor:
    """Drawings of `classes` characters by `drawers` people: uint8 [classes, drawers, size, size], 255 ink, 0 paper.

    The same arguments give the same images; another seed gives other characters and other people.

    >>> draw_glyphs(classes=3, drawers=2, seed=0).shape
    torch.Size([3, 2, 28, 28])
    """
    generator = torch.Generator().manual_seed(seed)
    characters = _characters(classes, generator)
    hand = {name: _in_hand(habit, classes, drawers, generator) for name, habit in HABITS.items()}
    # A long stroke has three times the width of the paper; 2 * size points still leave no gaps in it.
    lines = _written(characters, hand, 2 * size, generator)
    # Ink a hundred drawings at a time, because the pen footprints of all of them would fill the memory.
    hundreds = zip(lines.flatten(0, 1).split(100), hand["pen"].flatten().split(100), strict=True)
    return torch.cat([_inked(line, pen, size) for line, pen in hundreds]).unflatten(0, (classes, drawers))


def _characters(n: int, generator: Generator) -> Tensor:
    """Control points [n, strokes, points, 2], longest side 1; all points of an absent stroke are equal."""
    strokes = _strokes(n, generator, first=True)[:, None]
    for _ in STROKE_COUNTS[1:]:
        strokes = torch.cat([strokes, _further_stroke(strokes, generator)[:, None]], dim=1)
    count = 1 + _pick(STROKE_COUNTS, n, generator)
    there = torch.arange(len(STROKE_COUNTS)) < count[:, None]
    return _fitted(torch.where(there[..., None, None], strokes, strokes[:, :1, :1]), torch.ones(n))


def _strokes(n: int, generator: Generator, first: bool) -> Tensor:
    """Control points [n, points, 2] of n strokes."""
    kind = _pick([stroke.first if first else stroke.further for stroke in STROKES.values()], n, generator)
    turns = torch.tensor([stroke.turns for stroke in STROKES.values()])[kind]
    turns = turns * _uniform(0.8, 1.15, (n, 1), generator) * (_pick((1, 1), n, generator)[:, None] * 2 - 1)
    # In real scripts horizontal and vertical strokes are more frequent than diagonal ones.
    direction = 45 * _pick((3, 1) * 4, n, generator)[:, None] + _normal((n, 1), generator) * 5
    heading = (direction + turns.cumsum(1)).deg2rad()
    steps = torch.stack([heading.cos(), heading.sin()], dim=-1)
    points = torch.cat([torch.zeros(n, 1, 2), steps.cumsum(1)], dim=1)
    side = _uniform(0.8, 1.2, (n,), generator) if first else _uniform(0.4, 1.1, (n,), generator)
    side = torch.where(kind == list(STROKES).index("dot"), 0.08, side)
    return _fitted(points[:, None], side)[:, 0]


def _further_stroke(strokes: Tensor, generator: Generator) -> Tensor:
    """One more stroke [n, points, 2] that touches the strokes [n, strokes, points, 2]: the best of some proposals."""
    n = len(strokes)
    earlier = strokes.flatten(1, 2).repeat_interleave(PROPOSALS, 0)
    proposals = _strokes(len(earlier), generator, first=False)
    touched, touching = _one_of(earlier, generator), _one_of(proposals[:, ::4], generator)  # begin, middle or end
    proposals = proposals + (touched - touching)[:, None]
    best = _ugliness(proposals, earlier).view(n, PROPOSALS).argmin(1)
    return proposals.unflatten(0, (n, PROPOSALS))[torch.arange(n), best]


def _ugliness(further: Tensor, earlier: Tensor) -> Tensor:
    """How much strokes `further` [n, k, 2] would crowd and widen characters with points `earlier` [n, m, 2]: [n]."""
    gap = torch.cdist(further, earlier).amin(2)
    crowding = torch.exp(-((gap / 0.2) ** 2)).mean(1)  # strokes nearer than a fifth of the character run together
    together = torch.cat([further, earlier], dim=1)
    spread = (together.amax(1) - together.amin(1)).amax(1)
    return 1.5 * crowding + spread  # a larger weight gives sprawling snakes, a smaller one blots


def _in_hand(habit: Habit, classes: int, drawers: int, generator: Generator) -> Tensor:
    """The value of a habit in each drawing: [classes, drawers]."""
    person, time = _normal((drawers,), generator), _normal((classes, drawers), generator)
    return habit.usual + habit.people * person + habit.times * time


def _written(characters: Tensor, hand: dict[str, Tensor], samples: int, generator: Generator) -> Tensor:
    """Points along the strokes of each drawing [classes, drawers, strokes, samples, 2]; the paper is [0, 1]^2."""
    points = _with_accidents(characters[:, None], hand["shake"], generator)
    lines = _curves(points, hand["roundness"], samples)
    lines = _fitted(torch.einsum("cdxy,cdsty->cdstx", _transforms(hand), lines), hand["size"])
    margin = 1 - 2 / 28 - (lines.amax((2, 3)) - lines.amin((2, 3)))  # keeps the pen on the paper
    shift = margin * _uniform(-0.3, 0.3, margin.shape, generator)  # 0.5 would reach the edge
    return 0.5 + lines + shift[:, :, None, None]


def _with_accidents(points: Tensor, shake: Tensor, generator: Generator) -> Tensor:
    """Control points [classes, 1, strokes, points, 2] with the variations of each drawing: [classes, drawers, ...]."""
    shape = (*shake.shape, *points.shape[2:])
    shake = shake[..., None, None, None]
    # The factors scale the variation of a stroke's size, position and ends relative to that of its control points.
    centre = points.mean(-2, keepdim=True)
    grown = 1 + 5 * shake * _normal((*shape[:3], 1, 2), generator)
    moved = 1.5 * shake * _normal((*shape[:3], 1, 2), generator)
    drawn = centre + (points - centre) * grown + moved + shake * _normal(shape, generator)
    reach = 15 * shake * _normal((*shape[:3], 2, 1), generator)
    drawn[..., [0, -1], :] += reach * (drawn[..., [0, -1], :] - drawn[..., [1, -2], :])
    there = (points != points[..., :1, :]).any(-2, keepdim=True).any(-1, keepdim=True)
    return torch.where(there, drawn, drawn[:, :, :1, :1])  # an absent stroke must stay a point


def _curves(points: Tensor, roundness: Tensor, samples: int) -> Tensor:
    """Points along the curves of control points: [..., points, 2] -> [..., samples, 2]."""
    # The spline needs a control point beyond each end. With these two it starts at the first point, ends at the last.
    beyond = 2 * points[..., [0, -1], :] - points[..., [1, -2], :]
    points = torch.cat([beyond[..., :1, :], points, beyond[..., 1:, :]], dim=-2)
    k = points.shape[-2]
    distance = (torch.linspace(1, k - 2, samples)[:, None] - torch.arange(k)).abs()
    straight = (1 - distance).clamp(min=0)
    spline = torch.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp(min=0) ** 3 / 6)
    return torch.lerp(straight @ points, spline @ points, roundness[..., None, None, None])


def _transforms(hand: dict[str, Tensor]) -> Tensor:
    """The linear map of each drawing, [classes, drawers, 2, 2]: aspect and slant, then tilt."""
    stretch, tilt = hand["aspect"].sqrt(), hand["tilt"]
    slant = -hand["slant"]  # y points down, and handwriting leans to the right
    upright = torch.stack([stretch, slant, torch.zeros_like(slant), 1 / stretch], dim=-1)
    turn = torch.stack([tilt.cos(), -tilt.sin(), tilt.sin(), tilt.cos()], dim=-1)
    return turn.unflatten(-1, (2, 2)) @ upright.unflatten(-1, (2, 2))


def _fitted(strokes: Tensor, side: Tensor) -> Tensor:
    """Strokes [..., strokes, points, 2] moved and scaled: bounding box around 0, its longest side `side` [...]."""
    low, high = strokes.amin((-3, -2), keepdim=True), strokes.amax((-3, -2), keepdim=True)
    longest = (high - low).amax(-1, keepdim=True)
    return (strokes - (low + high) / 2) * (side[..., None, None, None] / longest)


def _inked(lines: Tensor, pen: Tensor, size: int) -> Tensor:
    """Lines [n, strokes, samples, 2] drawn with round pens of width [n]: uint8 [n, size, size].

    Every short piece of a line leaves a Gaussian footprint, weighted by its length. Summed along the line, the level at
    distance d from it is exp(-d^2 / (2 blur^2)), from which d follows. A pixel is inked where d is less than half the
    width.
    """
    blur = 0.8 / 28 * size  # pixels
    lines = lines * size
    length = lines.diff(dim=-2).norm(dim=-1).flatten(1)
    middle = ((lines[..., 1:, :] + lines[..., :-1, :]) / 2).flatten(1, 2)
    footprint = torch.exp(-((middle[..., None] - torch.arange(size) - 0.5) ** 2) / (2 * blur**2))
    x, y = footprint.unbind(2)  # [n, pieces, size]; the footprint in the plane is their outer product
    level = (y * length[..., None]).mT @ x / (blur * math.sqrt(2 * math.pi))
    distance = blur * (-2 * level.clamp(1e-6, 1).log()).sqrt()
    ink = (pen[:, None, None] * size / 2 + 0.5 - distance).clamp(0, 1)
    return (ink * 255).round().to(torch.uint8)


def _one_of(points: Tensor, generator: Generator) -> Tensor:
    """One of each row's points: [n, points, 2] -> [n, 2]."""
    n, k, _ = points.shape
    return points[torch.arange(n), torch.randint(k, (n,), generator=generator)]


def _pick(weights: Sequence[float], n: int, generator: Generator) -> Tensor:
    """n indices into `weights`, drawn in proportion to the weights."""
    return torch.multinomial(torch.tensor(weights, dtype=torch.float32), n, replacement=True, generator=generator)


def _normal(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard normal, clipped at two standard deviations, because real handwriting stays readable."""
    return torch.randn(shape, generator=generator).clamp(-2, 2)


def _uniform(low: float, high: float, shape: Sequence[int], generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


CLASSES = {"train": 600, "val": 100, "test": 200}  # characters of each split
DRAWERS = 20  # as in Omniglot
SEEDS = {"train": 0, "val": 1, "test": 2}  # different seeds give disjoint characters and drawers


def glyphs(split: str = "train", ways: int = 5, shots: int = 1, queries: int = 15) -> ClassTasks:
    """Episodes of generated characters: 600, 100 and 200 in train, val and test, by 20 drawers each; x [1, 28, 28].

    Every split has its own characters and drawers. Raises ConfigError for an unknown split, DataError for more ways or
    examples than there are.
    """
    examples, starts = _alphabet(check_split(split))
    names = [f"{split}{i:03d}" for i in range(CLASSES[split])]
    return ClassTasks(examples, starts, names, ways, shots, queries, "glyphs", split, PREPROCESS)


PREPROCESS = {"kind": "image", "size": 28, "channels": 1, "invert": True}  # photographs have dark ink on light paper


@functools.cache
def _alphabet(split: str) -> tuple[Tensor, Tensor]:
    return stack_classes(list(draw_glyphs(CLASSES[split], DRAWERS, SEEDS[split])[:, :, None]))
