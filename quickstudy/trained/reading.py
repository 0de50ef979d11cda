"""Raw input and answers as the tensors that a learner reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quickstudy.base import trees
from quickstudy.engine.fitting import device_of, not_finite
from quickstudy.errors import DataError, first_line
from quickstudy.learner import Theta
from quickstudy.tasks.classes import scaled
from quickstudy.tasks.features import extract
from quickstudy.trained.readers.known import reader_of
from quickstudy.trained.readers.reader import Preprocess


def in_units(preprocess: Preprocess, values: Any) -> Any:
    """The learner's output values [m, d], converted to the target's own unit."""
    return reader_of(preprocess).in_units(preprocess, values)


def as_inputs(x: Any, theta: Theta, least: int = 1) -> Any:
    """Tensors, arrays or lists as the model's input [n, ...]: floats as precise as theta, on its device.

    A single array of uint8 is taken for images and scaled to [0, 1]. In a dict or tuple of arrays, whole numbers keep
    their type: they are tokens, masks or categories. Raises DataError for anything but numbers, for fewer than `least`
    examples, for arrays of different lengths, and for NaN or infinity.
    """
    x = trees.converted(x, _tensor)
    if trees.first(x).dim() < 1 or trees.size(x) < least:
        raise DataError(f"x holds no example: its shape is {trees.shapes(x)}. Give at least one, as [n, ...].")
    if wrong := trees.uneven(x):
        raise DataError(f"the inputs differ in their number of examples: {wrong}. Give one row for each example.")
    if (where := not_finite(x)) is not None:
        raise DataError(f"x{where} holds NaN or infinity. Remove or fill the missing values first.")
    x = scaled(x) if isinstance(x, Tensor) else x
    return trees.mapped(lambda t: like_theta(t, theta), x)


def _tensor(place: str, array: Any) -> Tensor:
    try:
        return array if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"x{place} must be a tensor or an array of numbers [n, ...], got {type(array).__name__}: {error}."
        ) from error


def like_theta(values: Tensor, theta: Theta) -> Tensor:
    """The values on theta's device; floats as precise as theta's, other numbers in their own type."""
    precision = _precision(theta) if values.is_floating_point() else None
    return values.to(device_of(theta), precision or values.dtype)


def _precision(theta: Theta) -> torch.dtype | None:
    """The type of theta's first floats; None where it has none."""
    return next((value.dtype for value in theta.values() if value.is_floating_point()), None)


def as_answers(y: Any) -> Any:
    """Answers as an array of names, class numbers or values; several targets as a dict or tuple of tensors.

    Raises DataError where an answer is missing, where names and numbers are mixed, where one of several targets does
    not hold numbers, and for lists of unequal lengths.
    """
    if trees.is_nested(y):
        return trees.converted(y, _target)
    try:
        values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    except ValueError as error:
        raise DataError(
            f"the labels of y differ in their number: {first_line(error)}. Give lists of equal length, with None, or "
            "the number that the loss ignores, where there is no label."
        ) from error
    if values.dtype.kind == "f":
        return _known(values, np.isnan(values))
    if isinstance(y, (Tensor, np.ndarray)) and values.dtype.kind in "iub":
        return values
    if values.ndim > 1:  # labels of positions, of which those with None have no label
        return values
    given = np.asarray(y, dtype=object)  # before numpy makes the name '1' of the number 1, and 'nan' of a missing one
    _known(given, np.array([_is_missing(one) for one in given.flat]).reshape(given.shape))
    _check_alike(given.flat)
    return np.asarray(given.tolist())


def _known(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The values. Raises DataError where one is missing."""
    if missing.any():
        place = int(np.argwhere(missing)[0][0])
        raise DataError(f"y[{place}] is missing ({values[place]!r}). Leave that example out, or give its answer.")
    return values


def _is_missing(one: Any) -> bool:
    """None, NaN, text without a letter, and what pandas writes for a gap."""
    if isinstance(one, str):
        return not one.strip()
    return one is None or type(one).__name__ in ("NAType", "NaTType") or (isinstance(one, float) and one != one)


def _check_alike(given: Iterable[Any]) -> None:
    """Raise DataError where names, numbers and booleans are mixed: 1, '1' and True could become one class."""
    first: dict[str, Any] = {}
    for one in given:
        kind = "bool" if isinstance(one, (bool, np.bool_)) else "text" if isinstance(one, str) else "number"
        first.setdefault(kind, one)
    if len(first) > 1:
        raise DataError(
            f"y mixes {' and '.join(map(repr, first.values()))}. Give all answers as text, or all as numbers."
        )


def _target(place: str, array: Any) -> Tensor:
    values = array if isinstance(array, Tensor) else np.asarray(array)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "fiub":
        raise DataError(
            f"y{place} holds {values.reshape(-1)[:1].tolist()}; several targets are numbers each: values, or class "
            "numbers from 0."
        )
    return torch.as_tensor(values)


def as_features(x: Any, extractor: nn.Module | None, theta: Theta) -> Any:
    """The learner's inputs for raw inputs of n examples: the extractor's features, or x itself where there is none.

    Features are on theta's device and as precise as theta; for an empty theta in torch's default precision, as
    `qs.tasks.features` gives them. The inputs do not decide: they may be whole numbers, such as tokens.
    """
    if extractor is None:
        return x
    return extract(extractor, x).to(device_of(theta), _precision(theta) or torch.get_default_dtype())
