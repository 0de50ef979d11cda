"""The three splits, disjoint in classes or groups."""

from __future__ import annotations

from quickstudy.errors import ConfigError, suggest

SPLITS = ("train", "val", "test")


def check_split(split: str) -> str:
    """The split itself, or a ConfigError that names the three."""
    if split not in SPLITS:
        raise ConfigError(f"split must be 'train', 'val' or 'test', got {split!r}.{suggest(split, SPLITS)}")
    return split
