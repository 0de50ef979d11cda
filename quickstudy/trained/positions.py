"""Labels of the positions of examples, as they are given to `adapt`: tags [n, T], masks [n, H, W].

Whole numbers are the numbers of the model's outputs, as in training. Names, such as "noun", are numbered in sorted
order, and None stands for a position without a label, which the loss ignores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from quickstudy.engine.labels import FUNCTIONS, class_axis, classes_on_axis, function_of, ignored_by, takes_classes
from quickstudy.errors import DataError
from quickstudy.learner import Batch, Learner, Theta, setting


class Labels(NamedTuple):
    names: tuple[Any, ...] | None  # in the order of their numbers; None: the numbers are their own names
    numbers: Tensor  # [n, ...]


class Classes(NamedTuple):
    """What the columns of an output stand for."""

    names: tuple[Any, ...] | None  # None: they are values
    axis: int = 1  # of the output, on which the classes stand


def labels_of(y: np.ndarray, loss: Any) -> Labels | None:
    """The labels y [n, ...] of positions; None where y holds values.

    Whole numbers may be either under a loss of the user's own: they stay as they are, and the output tells, see
    `classes_of`. Raises DataError for names under a loss for values, and where all are the same.
    """
    kind = y.dtype.kind
    if kind == "b" and takes_classes(loss):
        return Labels((False, True), torch.as_tensor(y).long())
    if kind in "iu" and takes_classes(loss):
        return Labels(None, torch.as_tensor(y).long())
    return _named(y, loss) if kind in "USO" else None


def _named(y: np.ndarray, loss: Any) -> Labels:
    ignored = ignored_by(loss)
    if function_of(loss) in FUNCTIONS.values() and not takes_classes(loss):
        raise DataError(
            f"y holds names {list(y.shape)}, but {function_of(loss).__name__} takes numbers: give values [n, d], or "
            "train with a loss for classes, such as torch's cross entropy."
        )
    given = np.array([one is not None for one in y.flat], dtype=bool).reshape(y.shape)
    numbers = torch.full(y.shape, ignored)
    if all(isinstance(one, (int, np.integer)) for one in y[given].tolist()):
        numbers[given] = torch.as_tensor(y[given].astype(np.int64))
        return Labels(None, numbers)
    names, places = np.unique(y[given].astype(str), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"the labels are {names.tolist()} alone. Give examples of two classes or more.")
    check_numbers(names, loss)
    numbers[given] = torch.as_tensor(places.reshape(-1))
    return Labels(tuple(names.tolist()), numbers)


def check_numbers(names: np.ndarray, loss: Any) -> None:
    """Raise DataError where the loss would ignore a class, because its number is the one that it ignores."""
    ignored = ignored_by(loss)
    if takes_classes(loss) and 0 <= ignored < len(names):
        raise DataError(
            f"the loss ignores the label {ignored}, which would be the number of the class {str(names[ignored])!r}. "
            "Train with another ignore_index, such as torch's own, -100."
        )
    if takes_classes(loss) and ignored in names.tolist():
        raise DataError(
            f"y holds {ignored}, which the loss ignores, so it is no class. Leave examples without a label out."
        )


def classes_of(learner: Learner, theta: Theta, phi: Any, support: Batch, names: tuple[Any, ...] | None) -> Classes:
    """The classes of the adapted model's outputs, and where they stand.

    Raises DataError for names under an output that has no axis of classes.
    """
    y = support.y
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dim() < 2:
        return Classes(names)
    with torch.no_grad():
        output = learner.predict(theta, phi, support.x)
    fits = isinstance(output, Tensor) and output.shape != y.shape
    axis = class_axis(output, y, setting(learner, "loss")) if fits else None
    if axis is not None:
        return Classes(names or tuple(range(output.shape[axis])), axis)
    if names is not None:
        raise DataError(
            f"y holds names {list(y.shape)}, but the model's answer has no axis for their classes. Give a model with "
            f"outputs {classes_on_axis(y)}, as torch's cross entropy takes them."
        )
    return Classes(None)


def named(numbers: Any, names: Sequence[Any]) -> Any:
    """Nested lists of class numbers, as nested lists of names."""
    return [named(one, names) for one in numbers] if isinstance(numbers, list) else names[numbers]
