"""Notes on the command line: what became of the user's data, on the error stream, each once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quickstudy.errors import DataWarning


def print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Within this context, a `DataWarning` is printed as a note, the first time; other warnings are shown as ever."""
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        show = warnings.showwarning

        def shown(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, DataWarning):
                show(message, category, *place)
            elif str(message) not in seen:
                seen.add(str(message))
                print_notes([str(message)])

        warnings.showwarning = shown
        yield
