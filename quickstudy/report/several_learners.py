"""The page of `quickstudy compare`: which learner to choose, and the measurements behind this advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quickstudy.base.figures import DASHES, SERIES, Picture, Point, Series, lines, points
from quickstudy.base.words import duration, percentage_points, plural, size
from quickstudy.experiments.advice import advise
from quickstudy.experiments.comparison import Entry, LearnerComparison
from quickstudy.report import words
from quickstudy.report.scale import FAR, Scale
from quickstudy.report.sections.curves import scaled


def learners_values(comparison: LearnerComparison) -> dict[str, Any]:
    """The values that the template needs to show a comparison of learners."""
    best = comparison.entries[0]
    p = best.score.protocol
    asked = advise(comparison)
    scale = Scale([entry.score for entry in comparison.entries])
    sizes = f"{p.ways}-way {p.shots}-shot" if p.ways else f"{p.shots}-shot"
    return {
        "title": f"Which learner for {p.tasks}, {sizes}?",
        "score": best.score,
        "advice": asked,
        "under": _under(comparison),
        "rows": [_row(comparison, entry, scale) for entry in comparison.entries],
        "seeds": len(best.trials) > 1 or any(len(entry.trials) > 1 for entry in comparison.entries),
        "failed": comparison.failed,
        "pictures": [picture for picture in (_curves(comparison), *_costs(comparison)) if picture],
        "settings": comparison.settings,
        "entries": comparison.entries,
        "machine": machine_in_words(comparison.settings.get("machine", {})),
    }


def machine_in_words(machine: Mapping[str, Any]) -> str:
    """The machine in words: 'AMD EPYC, 2 cores, torch 2.13.0 on 2 threads'."""
    if not machine:
        return "an unknown machine"
    threads = plural(machine.get("threads", 1), "thread")
    return (
        f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, torch {machine.get('torch', '?')} on {threads}"
    )


def _under(comparison: LearnerComparison) -> str:
    p, settings = comparison.entries[0].score.protocol, comparison.settings
    minutes = f"{settings['minutes']:g} minute{'s' * (settings['minutes'] != 1)}"
    seeds = plural(len(settings["seeds"]), "training", "trainings with other seeds")
    return (
        f"Every learner was trained for {minutes} ({seeds}), the best theta on validation tasks was kept, and all "
        f"answered the same {plural(p.episodes, 'test task')} of split “{p.split}”, each query by itself. "
        "Differences are paired."
    )


def _row(comparison: LearnerComparison, entry: Entry, scale: Scale) -> dict[str, Any]:
    best, trial = comparison.entries[0], entry.trials[0]
    trained = trial.iterations > 0 and trial.seconds > 0
    return {
        "number": comparison.entries.index(entry) + 1,
        "name": entry.name,
        "kind": "meta-learner" if entry.meta else "baseline",
        "score": entry.score,
        "bar": scale.bar(entry.score),
        "against": ("best", "") if entry is best else _against(comparison, entry),
        "spread": "" if entry.spread is None else entry.score.metric.format.half(entry.spread),
        "trained": (f"{trial.iterations:,} iterations", duration(trial.seconds)) if trained else ("none", ""),
        "adapt": duration(entry.adapt_seconds),
        "answer": duration(entry.predict_seconds),
        "calibration_error": "" if entry.calibration_error is None else percentage_points(entry.calibration_error),
        "size": "" if entry.bytes is None else size(entry.bytes),
    }


def _against(comparison: LearnerComparison, entry: Entry) -> tuple[str, str]:
    difference = comparison.difference(entry, comparison.entries[0])
    return words.signed(difference, points=False), "" if difference.decided else "not decided"


# --- pictures --------------------------------------------------------------------------------------------------------


def _curves(comparison: LearnerComparison) -> Picture | None:
    """The score on validation tasks over the seconds of training."""
    metric = comparison.entries[0].score.metric
    shown = [entry for entry in comparison.entries if entry.trials[0].curve]
    if not shown:
        return None
    series = []
    for i, entry in enumerate(shown):
        x, y = zip(*entry.trials[0].curve, strict=True)
        turn = i // len(SERIES)
        colour, dash = SERIES[i % len(SERIES)], (i + turn) % len(DASHES)
        series.append(Series(x, scaled(metric, y), entry.name, colour, dash, marks=True))
    ends = "; ".join(f"{s.name} {s.y[-1]:.3g}" for s in series)
    draw = lines(series, "seconds of training", f"validation {metric.label}", end=metric.format.end)
    legend = [(s.name, s.colour, s.dash) for s in series]
    seed = f" with seed {shown[0].trials[0].seed}" if any(len(entry.trials) > 1 for entry in shown) else ""
    caption = f"At the end{seed}: {ends}. What still gets better would gain from more time."
    return Picture("What training time buys", draw, f"Line plot: {caption}", legend, caption)


def _costs(comparison: LearnerComparison) -> list[Picture]:
    """The score over the cost of using a learner: its time to learn a task, and its size."""
    milliseconds = {entry.name: 1e3 * entry.adapt_seconds for entry in comparison.entries}
    kilobytes = {entry.name: entry.bytes / 1e3 for entry in comparison.entries if entry.bytes}
    made = [
        _cost(comparison, "Score and time to learn a task", "ms to learn one task", milliseconds),
        _cost(comparison, "Score and size", "kB of its file", kilobytes),
    ]
    return [picture for picture in made if picture]


def _cost(comparison: LearnerComparison, heading: str, label: str, costs: Mapping[str, float]) -> Picture | None:
    best = comparison.entries[0].score
    unit, most = best.metric.format.times, math.inf if best.metric.higher_is_better else FAR * abs(best.mean)
    shown = [
        Point(costs[e.name], unit * e.score.mean, unit * e.score.interval, str(i), "s1" if e.meta else "muted")
        for i, e in enumerate(comparison.entries, 1)
        if e.name in costs and e.score.mean <= most
    ]
    if len(shown) < 2:
        return None
    better = "up" if best.metric.higher_is_better else "down"
    inside = {int(one.name) for one in shown}
    numbers = ", ".join(f"{i} {e.name}" for i, e in enumerate(comparison.entries, 1) if i in inside)
    caption = f"Better is {better} and to the left, where the scale is logarithmic. {numbers}; baselines are grey."
    return Picture(heading, points(shown, label, best.metric.label), f"Scatter plot: {numbers}.", [], caption)
