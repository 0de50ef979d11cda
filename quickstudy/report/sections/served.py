"""The score of each named task, such as a person or a hospital: which tasks are served well, and which badly."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from quickstudy.base.words import plural
from quickstudy.evaluation.score import Score
from quickstudy.report import words
from quickstudy.report.scale import Scale
from quickstudy.report.sections.section import Section

WORST, BEST = 8, 4  # rows of each, where there are more tasks
FEWEST = 3  # a task needs so many episodes for a score of its own


def section(score: Score) -> Section | None:
    """The worst and the best of the tasks that have enough episodes; None where there are fewer than two of these."""
    counts = Counter(score.tasks)
    alone = {name: _of_task(score, name) for name in sorted(counts) if counts[name] >= FEWEST}
    if len(alone) < 2:
        return None
    ranked = sorted(alone, key=lambda name: alone[name].mean, reverse=not score.metric.higher_is_better)
    shown = ranked if len(ranked) <= WORST + BEST else [*ranked[:WORST], *ranked[-BEST:]]
    worst, best = (words.amount(alone[name]) for name in (ranked[0], ranked[-1]))
    few = len(counts) - len(alone)
    rest = f" {plural(few, 'other')} had fewer than {FEWEST} episodes, which say little." if few else ""
    conclusion = f"From {worst} for {ranked[0]} to {best} for {ranked[-1]}, over {len(ranked)} tasks.{rest}"
    which = "All tasks, the worst first" if shown is ranked else f"The {WORST} worst of them and the {BEST} best"
    caption = f"{which}; an interval here is over the task's own episodes, which draw other support rows of it."
    return Section(conclusion, caption=caption, rows=_rows({name: alone[name] for name in shown}))


def _rows(scores: dict[str, Score]) -> list[dict[str, Any]]:
    scale = Scale(list(scores.values()))
    return [
        {"name": name, "mean": words.amount(one), "bar": scale.bar(one), "episodes": len(one.values)}
        for name, one in scores.items()
    ]


def _of_task(score: Score, name: str) -> Score:
    values = score.values[[task == name for task in score.tasks]]
    return dataclasses.replace(score, values=values, controls={}, left_out={}, tasks=())
