"""Values to one HTML page."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from quickstudy.base.version import __version__
from quickstudy.base.words import duration, percent, plural
from quickstudy.report import words


def render(kind: str, **values: Any) -> str:
    """The HTML of a page. `kind` is 'run', 'comparison' or 'learners'; `values` are what the template needs."""
    source = (resources.files("quickstudy.report") / "page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    values |= {"words": words, "duration": duration, "percent": percent, "plural": plural}
    return environment.from_string(source).render(kind=kind, version=__version__, **values)
