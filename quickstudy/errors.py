"""The library's errors. A message says what was expected, what was given, and what to do.

Every error that bad input can raise is a `QuickstudyError`. The command line prints its message and exits 2.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable


class QuickstudyError(Exception):
    """Base of every error that bad input raises."""


class ConfigError(QuickstudyError, ValueError):
    """A setting that cannot work: an unknown name, an impossible number, options that contradict each other."""


class DataError(QuickstudyError, ValueError):
    """Data that cannot be used: too few classes, a broken image, labels out of range, NaN."""


class FileFormatError(QuickstudyError, ValueError):
    """A file that is not what it claims to be."""


class RunError(QuickstudyError, RuntimeError):
    """A run folder that cannot be used, written or resumed."""


class NonFiniteError(QuickstudyError, ArithmeticError):
    """A loss or gradient became infinite or NaN."""


class OutOfMemoryError(QuickstudyError, MemoryError):
    """Memory ran out; the message names a setting that needs less."""


class ProtocolError(QuickstudyError, ValueError):
    """Scores that were measured under different protocols."""


class EngineError(QuickstudyError, RuntimeError):
    """An engine that gives another result than the loop."""


class RankError(QuickstudyError, RuntimeError):
    """The other processes of a training run cannot be reached."""


class AccuracyWarning(UserWarning):
    """A number is less exact than was asked for."""


class ModelWarning(UserWarning):
    """A model does something that has no effect in meta-learning."""


class DataWarning(UserWarning):
    """Inputs were changed before they were used: numbers far outside training, long texts."""


class EngineWarning(UserWarning):
    """The engine could not do what was asked and took another way to the same result."""


def noted(note: str) -> None:
    """Tell what became of inputs, as a `DataWarning`. The command line prints each such note once."""
    warnings.warn(note, DataWarning, stacklevel=2)


def suggest(given: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the nearest known name, else an empty string."""
    nearest = difflib.get_close_matches(given.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
