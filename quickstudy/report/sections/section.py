"""What the template needs of most sections: a conclusion, a picture and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from quickstudy.base.figures import Picture


class Section(NamedTuple):
    """One section of a page; parts that it lacks are None or empty."""

    conclusion: str  # what it shows, in a few sentences
    picture: Picture | None = None
    caption: str = ""  # of the table
    head: Sequence[str] = ()
    rows: Sequence[Any] = ()  # of the table; in most sections tuples of texts
