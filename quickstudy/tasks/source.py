"""What a task source is."""

from __future__ import annotations

from typing import Any


def describe(tasks: Any) -> dict[str, Any]:
    """A task source's description of itself, with at least its name."""
    return dict(tasks.describe()) if hasattr(tasks, "describe") else {"name": type(tasks).__name__}
