"""The two import rules that import-linter cannot express, read off the syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import quickstudy as qs

PACKAGE = Path(qs.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
DRAWING = {"base/figures.py", "report"}  # may import matplotlib where they begin


def _imports(nodes) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_inside_imports_the_face(path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "quickstudy" and path != PACKAGE / "__init__.py":
            for alias in node.names:  # a wing is a module, not a name that the face hands on
                place = PACKAGE / alias.name
                assert place.is_dir() or place.with_suffix(".py").exists(), f"{alias.name} comes from the face"
        assert not isinstance(node, ast.Import) or "quickstudy" not in [alias.name for alias in node.names]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_matplotlib_is_imported_where_something_is_drawn(path):
    place = path.relative_to(PACKAGE).as_posix()
    if place in DRAWING or place.split("/")[0] in DRAWING:
        return
    imported = _imports(ast.parse(path.read_text("utf-8")).body)
    assert not any(name.split(".")[0] == "matplotlib" for name in imported)
    assert not any(name.startswith("quickstudy.base.figures") for name in imported), "base.figures imports matplotlib"
