"""Raw input and answers as the tensors that a learner reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from quickstudy.engine.fitting import device_of
from quickstudy.errors import DataError
from quickstudy.learner import Theta
from quickstudy.tasks.classes import scaled
from quickstudy.tasks.features import extract
from quickstudy.tasks.tabular import columns, ratings
from quickstudy.tasks.texts import text
from quickstudy.tasks.texts.sentences import Encoder, as_vectors

Preprocess = Mapping[str, Any]
TABLES = ("table", "ratings")  # kinds whose rows have columns


def encoded(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Rows of a table as numbers [n, d], texts as subword numbers or vectors; tensors and arrays unchanged.

    Raises DataError for rows or texts that do not fit the training data, ConfigError where the encoder is missing.
    """
    if preprocess.get("kind") == "text" and not _is_numbers(x):
        if "encoder" in preprocess:
            return as_vectors(preprocess, text.as_texts(x), text_encoder)
        return text.hashed(text.as_texts(x), preprocess["buckets"], preprocess["words"])
    if preprocess.get("kind") == "table" and not isinstance(x, (Tensor, np.ndarray)):
        return columns.encode(preprocess["columns"], columns.as_frame(x))
    if preprocess.get("kind") == "ratings" and not isinstance(x, (Tensor, np.ndarray)):
        return ratings.encode(preprocess, columns.as_frame(x))
    return x


def _is_numbers(x: Any) -> bool:
    return isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind in "fiu")


def answers(preprocess: Preprocess, y: Any) -> Any:
    """Answers as the learner reads them: values for tables and ratings scaled, [n, d]; everything else unchanged."""
    if preprocess.get("kind") not in TABLES or "classes" in preprocess:
        return y
    values = torch.from_numpy(np.array(y, dtype=np.float64)).reshape(len(y), -1)
    return (values - preprocess["mean"]) / preprocess["std"]


def in_units(preprocess: Preprocess, values: Tensor) -> Tensor:
    """The learner's output values [m, d], converted to the target's own unit."""
    return values * preprocess["std"] + preprocess["mean"] if "std" in preprocess else values


class SupportSet(NamedTuple):
    """The support set that a predictor learned from."""

    x: Tensor  # [n, ...], rows and texts already encoded as numbers
    y: np.ndarray  # [n] names or numbers, or [n, d] values, in the target's unit
    transductive: bool  # as passed to `adapt`


def as_inputs(x: Any, theta: Theta, least: int = 1) -> Tensor:
    """Tensors, arrays or lists as the model's input [n, ...]: images scaled, floats as precise as theta, on its device.

    Raises DataError for anything but numbers, for fewer than `least` examples, and for NaN or infinity.
    """
    try:
        x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"x must be a tensor or an array of numbers [n, ...], got {type(x).__name__}: {error}."
        ) from error
    if x.dim() < 1 or len(x) < least:
        raise DataError(f"x holds no example: its shape is {tuple(x.shape)}. Give at least one, as [n, ...].")
    x = scaled(x)
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise DataError("x holds NaN or infinity. Remove or fill the missing values first.")
    floats = [value for value in theta.values() if value.is_floating_point()]
    return x.to(device_of(theta), floats[0].dtype if floats and x.is_floating_point() else x.dtype)


def as_features(x: Tensor, extractor: nn.Module | None) -> Tensor:
    """The learner's inputs for raw inputs x [n, ...]: the extractor's features, or x itself where there is none.

    Features are on x's device, and in its precision if x holds floats.
    """
    if extractor is None:
        return x
    z = extract(extractor, x)
    return z.to(x.device, x.dtype) if x.is_floating_point() else z.to(x.device)
