"""The three splits train, val and test, which share no class or group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from quickstudy.errors import ConfigError, DataError, suggest

T = TypeVar("T")

SPLITS = ("train", "val", "test")


def check_split(split: str) -> str:
    """The split itself. Raises ConfigError where it is not one of the three."""
    if split not in SPLITS:
        raise ConfigError(f"split must be 'train', 'val' or 'test', got {split!r}.{suggest(split, SPLITS)}")
    return split


def by_name(of: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Splits names 60/20/20 in the order of their hashes, so that a new name moves only a few others, at the two cuts.

    Returns split -> name -> what `of` holds for the name.
    """
    names = sorted(of, key=lambda name: hashlib.sha256(name.encode()).digest())
    fifth = round(len(names) / 5)
    parts = (names[2 * fifth :], names[fifth : 2 * fifth], names[:fifth])
    return {split: {name: of[name] for name in sorted(part)} for split, part in zip(SPLITS, parts, strict=True)}


def check_disjoint(thing: str, things: str, splits: Mapping[str, Iterable[str]], advice: str) -> None:
    """Raise DataError, with the advice, for a name in two splits; the keys of `splits` name them in the error."""
    owner: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if owner.setdefault(name, split) != split:
                raise DataError(
                    f"{thing} {name!r} is in both {owner[name]} and {split}: the test is on {things} never seen in "
                    f"training. {advice}"
                )
