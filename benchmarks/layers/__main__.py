"""Which layers and functions of torch every engine differentiates rightly, in first and second order.

    python -m benchmarks.layers [--only WORD]

Every case of cases.py is a network whose meta-gradient (MAML with two inner steps) each engine computes in float64 for
four tasks, of which two hold what is awkward for the layer: padding, ties, zeros, repeated indices. It must be the
loop's to 1e-7. Takes two minutes. Writes results/layers.json and layers.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.layers.cases import CASES
from benchmarks.layers.measure import CAUGHT, ORDERS, RIGHT, WRONG, verdicts, verdicts_of_torch
from benchmarks.markdown import table
from benchmarks.provenance import COMMIT, RESULTS
from quickstudy.base import files
from quickstudy.base.machine import in_words as machine_in_words
from quickstudy.base.machine import machine

COLUMNS = [order.name for order in ORDERS]
Found = Mapping[str, Mapping[str, str]]  # name of an order -> verdicts by engine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has this word in it; nothing is written")
    only = parser.parse_args().only
    cases = [case for case in CASES if only in case.name]
    found = {case.name: {order.name: verdicts(case, order) for order in ORDERS} for case in cases}
    bare = {case.name: {order.name: verdicts_of_torch(case, order) for order in ORDERS} for case in cases}
    about = {"commit": COMMIT, "machine": machine()}
    differing = {name: one for name, one in bare.items() if any(one.values()) and one != found[name]}
    text = page(found, differing, about)
    if only:
        print(text)
        return
    files.write_json(RESULTS / "layers.json", {"about": about, "found": found, "torch": bare})
    (RESULTS / "layers.md").write_text(text, encoding="utf-8")


def page(found: Mapping[str, Found], bare: Mapping[str, Found], about: Mapping[str, Any]) -> str:
    safe = [name for name, one in found.items() if {v for each in one.values() for v in each.values()} == {RIGHT}]
    none = [name for name, one in found.items() if "loop" in one["second"]]
    rest = {name: one for name, one in found.items() if name not in safe and name not in none}
    wrong = [name for name, one in rest.items() if any(WRONG in each.values() for each in one.values())]
    lines = [
        "# Which layers the engines differentiate rightly",
        "",
        f"`python -m benchmarks.layers`, commit {about['commit']}, {machine_in_words(about['machine'])}.",
        "Meta-gradients of MAML with two inner steps in float64, against the loop's, on tasks of which every second",
        "one holds padding, ties, zeros or repeated indices. First: `first_order=True`. Second, torch.func: a learner",
        "of the user's own whose inner gradient is `torch.func.grad`. `threads` runs the loop's own operations,",
        "`compile` those of `replay`.",
        "",
        f"{len(found)} layers and functions: {len(safe)} are right on every engine, {len(rest)} are refused by one at",
        f"least, {len(none)} have no second derivative in torch, {len(wrong)} are wrong without being refused.",
        "",
        "## Right on every engine",
        "",
        _listed(safe),
        "",
        "## Replaced",
        "",
        "The library puts its own layers in the place of `Embedding`, `BatchNorm1d` to `3d`, `LayerNorm`, `GroupNorm`",
        "and `Conv2d`, also for cheaper or forward-mode derivatives. Where torch's own gives another result:",
        "",
        *table(["layer", *COLUMNS], [[name, *_cells(one)] for name, one in bare.items()]),
        "",
        "## Refused",
        "",
        "Wrong is found by the comparison with the loop, on the first tasks or later, and another engine takes its",
        'place or the run stops; "no" is refused by torch or the recorder. The loop and threads run all of them.',
        "",
        *table(["layer or function", *COLUMNS], [[name, *_cells(one)] for name, one in rest.items()]),
        "",
        "## No second derivative",
        "",
        "torch has none, so `first_order=True` and learners without an inner gradient are left:",
        "",
        *table(["layer or function", "torch says"], [[name, found[name]["second"]["loop"]] for name in none]),
    ]
    return "\n".join(lines) + "\n"


WORDS = {RIGHT: "", CAUGHT: "wrong on", WRONG: "WRONG, UNSEEN on"}


def _cells(one: Found) -> list[str]:
    return [_cell(one[order.name]) for order in ORDERS]


def _cell(found: Mapping[str, str]) -> str:
    """What is not right, such as 'wrong on vmap; no replay'."""
    by_word: dict[str, list[str]] = {}
    for engine, verdict in found.items():
        by_word.setdefault(WORDS.get(verdict, "no"), []).append(engine)
    return "; ".join(f"{word} {', '.join(names)}" for word, names in by_word.items() if word) or "right"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name.removeprefix('torch: ')}`" for name in names)


if __name__ == "__main__":
    main()
