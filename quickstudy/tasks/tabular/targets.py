"""What a table asks for: classes, named as they are written, or numbers, scaled as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.tasks.tabular.cells import GAPS
from quickstudy.tasks.tabular.columns import as_levels, as_numbers, check_sane
from quickstudy.tasks.tabular.frames import is_text, listed


def is_class(values: Any, name: str, kind: str | None) -> bool:
    if kind not in (None, "number", "class"):
        raise ConfigError(f"kind is 'number' or 'class', got {kind!r}.{suggest(str(kind), ('number', 'class'))}")
    if kind is None:
        return is_text(values) or values.dtype.kind == "b" or values.nunique() == 2
    if kind == "number" and is_text(values):
        raise DataError(f"the target {name!r} holds words, such as {values.iloc[0]!r}: kind is 'class'.")
    return kind == "class"


def named_like_gaps(names: Sequence[str], what: str) -> list[str]:
    """A note about names that other programs write for a missing value."""
    odd = sorted(GAPS.intersection(names))
    return [f"{listed(odd)} is a {what}, as written: leave a cell empty where it is missing"] if odd else []


def learn_scale(answers: np.ndarray, target: str) -> dict[str, float]:
    """Mean and standard deviation of training answers [n]. Raises DataError for absurd ones and if all are equal."""
    check_sane(answers, target)
    if answers.std() == 0:
        raise DataError(f"the target {target!r} is {answers[0]:g} in every training row: nothing to learn.")
    return {"mean": float(answers.mean()), "std": float(answers.std())}


def answers_of(learned: Mapping[str, Any], values: Any) -> np.ndarray:
    """The target as the learner reads it: class numbers [n], or scaled values [n, 1].

    Raises DataError for a class that training did not know.
    """
    if "classes" not in learned:
        scaled = (as_numbers(values, learned["target"]) - learned["mean"]) / learned["std"]
        return scaled.astype(np.float32)[:, None]
    words, known = as_levels(values, learned["classes"]).to_numpy().astype(str), np.array(learned["classes"])
    places = np.searchsorted(known, words).clip(max=len(known) - 1)
    if (unknown := known[places] != words).any():
        raise DataError(
            f"the target {learned['target']!r} holds {words[unknown][0]!r}; the classes of training are "
            f"{listed(known.tolist())}.{suggest(words[unknown][0], known.tolist())}"
        )
    return places.astype(np.int64)
