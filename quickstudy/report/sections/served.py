"""The score of each named task, such as a person or a hospital: which tasks are served well, and which badly."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, NamedTuple

from quickstudy.base.words import plural
from quickstudy.evaluation.score import Score
from quickstudy.report import words
from quickstudy.report.scale import Scale

WORST, BEST = 8, 4  # rows of each, where there are more tasks
FEWEST = 3  # a task needs so many episodes for a score of its own


class Section(NamedTuple):
    """The values that the template needs for this section."""

    conclusion: str
    caption: str
    rows: list[dict[str, Any]]


def section(score: Score) -> Section | None:
    """The worst and the best of the tasks that have enough episodes; None where there are fewer than two of these."""
    counts = Counter(score.tasks)
    alone = {name: _of_task(score, name) for name in sorted(counts) if counts[name] >= FEWEST}
    if len(alone) < 2:
        return None
    ranked = sorted(alone, key=lambda name: alone[name].mean, reverse=not words.higher_is_better(score.protocol.metric))
    chosen = ranked if len(ranked) <= WORST + BEST else [*ranked[:WORST], *ranked[-BEST:]]
    scale = Scale([alone[name] for name in chosen])
    rows = [
        {
            "name": name,
            "mean": words.amount(alone[name]),
            "bar": scale.bar(alone[name]),
            "episodes": len(alone[name].values),
        }
        for name in chosen
    ]
    worst, best = (words.amount(alone[name]) for name in (ranked[0], ranked[-1]))
    few = len(counts) - len(alone)
    rest = f" {plural(few, 'other')} had fewer than {FEWEST} episodes, which say little." if few else ""
    told = f"From {worst} for {ranked[0]} to {best} for {ranked[-1]}, over {len(ranked)} tasks.{rest}"
    kept = "All tasks, the worst first" if chosen is ranked else f"The {WORST} worst of them and the {BEST} best"
    why = "an interval here is over the task's own episodes, which draw other support rows of it"
    return Section(told, f"{kept}; {why}.", rows)


def _of_task(score: Score, name: str) -> Score:
    values = score.values[[task == name for task in score.tasks]]
    return dataclasses.replace(score, values=values, controls={}, tasks=())
