"""The three splits, disjoint in classes or groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from quickstudy.errors import ConfigError, DataError, suggest

SPLITS = ("train", "val", "test")
T = TypeVar("T")


def check_split(split: str) -> str:
    """The split itself, or a ConfigError that names the three."""
    if split not in SPLITS:
        raise ConfigError(f"split must be 'train', 'val' or 'test', got {split!r}.{suggest(split, SPLITS)}")
    return split


def by_name(of: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """60/20/20 in the order of a hash of the name, so a new class or group moves only a few others, at the two cuts."""
    names = sorted(of, key=lambda name: hashlib.sha256(name.encode()).digest())
    fifth = round(len(names) / 5)
    parts = (names[2 * fifth :], names[fifth : 2 * fifth], names[:fifth])
    return {split: {name: of[name] for name in sorted(part)} for split, part in zip(SPLITS, parts, strict=True)}


def check_disjoint(thing: str, things: str, splits: Mapping[str, Iterable[str]], advice: str) -> None:
    """Raise DataError for a name in two splits, which are called as the keys say, with the advice."""
    owner: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if owner.setdefault(name, split) != split:
                raise DataError(
                    f"{thing} {name!r} is in both {owner[name]} and {split}: the test is on {things} never seen in "
                    f"training. {advice}"
                )
