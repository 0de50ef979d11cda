"""The version of the package: its metadata, its files and its pages read it here."""

import re

__version__ = "0.1.0"


def is_later(version: str) -> bool:
    """Whether a version is later than this one. Only its first three numbers count."""
    return _numbers(version) > _numbers(__version__)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
