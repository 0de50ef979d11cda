"""Writes the pages of stored results again, from the values of every test episode, without measuring anything.

    python -m benchmarks.reproduce.again

For a change of how intervals, differences or tables are computed. Amounts of which a result holds no values for each
episode (movement of layers, accuracy at an instance) stay as they are.
"""

from __future__ import annotations

from typing import Any

from benchmarks.provenance import RESULTS
from benchmarks.reproduce.pages import table
from benchmarks.reproduce.pairing import differences
from benchmarks.reproduce.tables import TABLES
from quickstudy.base import files
from quickstudy.evaluation.score import Score


def again(result: dict[str, Any], what: str, family: str, long: bool) -> dict[str, Any]:
    """The result with its texts, intervals and paired differences computed again."""
    rows = [row | {"scores": [[_again(plain) for plain in test] for test in row["scores"]]} for row in result["rows"]]
    known = [row | {"settings": row.get("settings", {"learner": ""})} for row in rows]  # older results have none
    baselines = TABLES[what, family](long)[1]
    return result | {"rows": rows, "paired": differences(known, baselines, family)}


def _again(plain: dict[str, Any]) -> dict[str, Any]:
    return Score.from_dict(plain).to_dict()


def main() -> None:
    """Write every stored result of `benchmarks.reproduce` again."""
    for what, family in TABLES:
        for long in (False, True):
            name = what if family == "foundation" else f"{what}-{family}" + "-long" * long
            path = RESULTS / f"{name}.json"
            if path.exists() and not (long and family == "foundation"):
                result = again(files.read_json(path), what, family, long)
                files.write_json(path, result)
                (RESULTS / f"{name}.md").write_text(table(result), encoding="utf-8")
                print(f"written: benchmarks/results/{name}.json and .md")


if __name__ == "__main__":
    main()
