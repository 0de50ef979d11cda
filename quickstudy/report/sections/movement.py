"""Which layers adaptation changes: the figure of each layer's movement, and a summary."""

from __future__ import annotations

from quickstudy.base.figures import Picture, bars
from quickstudy.base.words import percent, plural
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.movement import CHANGE, KINDS, STILL, LayerMovement, Movement, figure, in_words
from quickstudy.report.sections.section import Section

TABLE = "Movement by adaptation, relative to what was there before, with 95 % intervals."
REUSED = 0.1  # features whose representation changes by less count as reused


def section(movement: Movement) -> Section:
    """The section of the page: summary, figure and table."""
    said = conclusion(movement)
    tasks = plural(movement.protocol.episodes, "test task")
    caption = (
        f"Means over {tasks}; whiskers are 95 % intervals. Representation: how unlike a layer’s outputs at the same "
        "queries are before and after adaptation, 0 the same up to rotation and scale, 1 nothing alike. "
        "Weights: the way they move, relative to their length."
    )
    picture = Picture("Movement of each layer", bars(*figure(movement)), f"Bar plot. {said}", [], caption)
    rows = [(one.name, *(in_words(getattr(one, kind)) for kind in KINDS)) for one in movement.layers]
    return Section(said, picture, TABLE, ("layer", *KINDS), rows)


# --- in words --------------------------------------------------------------------------------------------------------


def conclusion(movement: Movement) -> str:
    """Which layers move, in two or three sentences."""
    return f"{_of_representations(movement)} {_of_weights(movement)}"


def _of_representations(movement: Movement) -> str:
    most, last = movement[movement.most], movement.layers[-1]
    if _amount(most).mean < STILL:
        return (
            f"Adaptation moves nothing to speak of: no layer’s representation changes by more than {STILL} ({CHANGE})."
        )
    body = [one for one in movement.layers[:-1] if one.representation]
    if not body or not last.representation:
        return f"{most.name} moves most: its representation changes by {_amount(most).mean:.2f} ({CHANGE})."
    below = max(body, key=lambda one: _amount(one).mean)
    if _clearly_above(last, below):
        return _head_moves_most(last, below)
    if _clearly_above(below, last):
        return (
            f"The body moves most: the representation of {below.name} changes by {_amount(below).mean:.2f} ({CHANGE}), "
            f"that of {_called(last)} by {_amount(last).mean:.2f}. Each task gets features of its own."
        )
    return (
        f"The body moves as much as {_called(last)}: representations change by {_amount(below).mean:.2f} ({CHANGE}, "
        f"{below.name}) and {_amount(last).mean:.2f}, a difference within the 95 % intervals."
    )


def _head_moves_most(last: LayerMovement, below: LayerMovement) -> str:
    name, change = _called(last), _amount(below).mean
    text = (
        f"{name[0].upper()}{name[1:]} moves most: its representation changes by {_amount(last).mean:.2f} ({CHANGE}), "
    )
    text += f"that of every layer below by {change:.3f} or less."
    if last.weights and last.weights.mean == 0:
        return f"{text} Its weights do not move: it hands on, enlarged, what changes below it."
    if change < min(REUSED, _amount(last).mean / 4):
        return f"{text} The body’s features are reused nearly as they are, and {name} learns the task."
    return f"{text} The body’s features change too."


def _of_weights(movement: Movement) -> str:
    known = [(one.name, one.weights.mean) for one in movement.layers if one.weights]
    moving = [(name, way) for name, way in known if way > 0]
    if not moving:
        return "No weight moves."
    name, way = max(moving, key=lambda pair: pair[1])
    where = f"in {len(moving)} of {plural(len(known), 'layer')} only" if len(moving) < len(known) else "everywhere"
    return f"Weights move {where}, farthest in {name}: by {percent(way)} of their length."


def _amount(one: LayerMovement) -> Amount:
    assert one.representation is not None
    return one.representation


def _clearly_above(a: LayerMovement, b: LayerMovement) -> bool:
    """Whether a moves more than b, with 95 % intervals that do not overlap."""
    return _amount(a).low > _amount(b).high


def _called(last: LayerMovement) -> str:
    return "the head" if last.name.rpartition(".")[2] == "head" else f"the last layer ({last.name})"
