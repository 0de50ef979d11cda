"""What it takes to read one kind of input: a value, one for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from quickstudy.tasks.texts.sentences import Encoder

Preprocess = Mapping[str, Any]  # how raw input became numbers in training: plain values, kept in `.qs` files


class Shown(NamedTuple):
    """A support set as read from a file."""

    x: Any
    y: Any
    notes: Sequence[str] = ()  # what was left out of it, for people


class Asked(NamedTuple):
    """Inputs as read from a file."""

    x: Any
    names: list[str]  # of each input
    rows: Any = None  # a DataFrame with the user's own columns, a row for each input; None where there are none
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Reader:
    """How raw input and answers of one kind become what a learner reads, and its answers what a user reads.

    Each function is given the learner's `preprocess` first. Those that read files raise DataError where they cannot.
    """

    support: Callable[[Preprocess, Path, bool], Shown]  # path of a support set, whether it has classes -> x, y
    inputs: Callable[[Preprocess, Path], Asked]  # path of inputs -> x, and a name for each
    encoded: Callable[[Preprocess, Any, Encoder | None], Any]  # raw x, in memory -> arrays or tensors
    targets: Callable[[Preprocess, Any], Any]  # answers in the user's unit -> as the learner reads them
    in_units: Callable[[Preprocess, Tensor], Tensor]  # the learner's values -> in the user's unit


def as_given(preprocess: Preprocess, x: Any, text_encoder: Encoder | None = None) -> Any:
    """Inputs that need no encoding."""
    return x


def unchanged(preprocess: Preprocess, values: Any) -> Any:
    """Answers that have no unit of their own."""
    return values
