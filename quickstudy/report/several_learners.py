"""The page of `quickstudy compare`: which learner to choose, and the measurements behind this advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quickstudy.base.figures import DASHES, SERIES, Picture, Point, Series, lines, points
from quickstudy.base.words import duration, half, plural
from quickstudy.experiments.advice import advise
from quickstudy.experiments.comparison import Entry, LearnerComparison, size
from quickstudy.report import words
from quickstudy.report.scale import FAR, Scale


def learners_values(found: LearnerComparison) -> dict[str, Any]:
    """The values that the template needs to show a comparison of learners."""
    best = found.entries[0]
    p = best.score.protocol
    asked = advise(found)
    scale = Scale([entry.score for entry in found.entries])
    sizes = f"{p.ways}-way {p.shots}-shot" if p.ways else f"{p.shots}-shot"
    return {
        "title": f"Which learner for {p.tasks}, {sizes}?",
        "score": best.score,
        "advice": asked,
        "under": _under(found),
        "rows": [_row(found, entry, scale) for entry in found.entries],
        "seeds": len(best.trials) > 1 or any(len(entry.trials) > 1 for entry in found.entries),
        "failed": found.failed,
        "pictures": [picture for picture in (_curves(found), *_costs(found)) if picture],
        "settings": found.settings,
        "entries": found.entries,
        "machine": machine_in_words(found.settings.get("machine", {})),
    }


def machine_in_words(machine: Mapping[str, Any]) -> str:
    """The machine in words: 'AMD EPYC, 2 cores, torch 2.13.0 on 2 threads'."""
    if not machine:
        return "an unknown machine"
    threads = plural(machine.get("threads", 1), "thread")
    return (
        f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, torch {machine.get('torch', '?')} on {threads}"
    )


def _under(found: LearnerComparison) -> str:
    p, settings = found.entries[0].score.protocol, found.settings
    minutes = f"{settings['minutes']:g} minute{'s' * (settings['minutes'] != 1)}"
    seeds = plural(len(settings["seeds"]), "training", "trainings with other seeds")
    return (
        f"Every learner was trained for {minutes} ({seeds}), the best theta on validation tasks was kept, and all "
        f"answered the same {plural(p.episodes, 'test task')} of split “{p.split}”, each query by itself. "
        "Differences are paired."
    )


def _row(found: LearnerComparison, entry: Entry, scale: Scale) -> dict[str, Any]:
    best, trial = found.entries[0], entry.trials[0]
    trained = trial.iterations > 0 and trial.seconds > 0
    return {
        "number": found.entries.index(entry) + 1,
        "name": entry.name,
        "kind": "meta-learner" if entry.meta else "baseline",
        "score": entry.score,
        "bar": scale.bar(entry.score),
        "against": ("best", "") if entry is best else _against(found, entry),
        "spread": "" if entry.spread is None else half(entry.spread, entry.score.protocol.metric),
        "trained": (f"{trial.iterations:,} iterations", duration(trial.seconds)) if trained else ("none", ""),
        "adapt": duration(entry.adapt_seconds),
        "answer": duration(entry.predict_seconds),
        "honest": "" if entry.dishonest is None else f"{100 * entry.dishonest:.1f} points",
        "size": "" if entry.bytes is None else size(entry.bytes),
    }


def _against(found: LearnerComparison, entry: Entry) -> tuple[str, str]:
    difference = found.difference(entry, found.entries[0])
    return words.signed(difference).replace(" points", ""), "" if difference.decided else "not decided"


# --- pictures --------------------------------------------------------------------------------------------------------


def _unit(found: LearnerComparison) -> tuple[float, str, bool]:
    """How plots show scores: the factor, the axis label, and whether the axis is in percent."""
    metric = found.entries[0].score.protocol.metric
    return (100.0, "accuracy (%)", True) if metric == "accuracy" else (1.0, metric, False)


def _curves(found: LearnerComparison) -> Picture | None:
    """The score on validation tasks over the seconds of training."""
    unit, label, percent = _unit(found)
    shown = [entry for entry in found.entries if entry.trials[0].curve]
    if not shown:
        return None
    series = []
    for i, entry in enumerate(shown):
        x, y = zip(*entry.trials[0].curve, strict=True)
        turn = i // len(SERIES)
        colour, dash = SERIES[i % len(SERIES)], (i + turn) % len(DASHES)
        series.append(Series(x, [unit * v for v in y], entry.name, colour, dash, marks=True))
    ends = "; ".join(f"{s.name} {s.y[-1]:.3g}" for s in series)
    draw = lines(series, "seconds of training", f"validation {label}", percent=percent)
    legend = [(s.name, s.colour, s.dash) for s in series]
    caption = f"At the end: {ends}. What still gets better would gain from more time."
    return Picture("What training time buys", draw, f"Line plot: {caption}", legend, caption)


def _costs(found: LearnerComparison) -> list[Picture]:
    """The score over the cost of using a learner: its time to learn a task, and its size."""
    milliseconds = {entry.name: 1e3 * entry.adapt_seconds for entry in found.entries}
    kilobytes = {entry.name: entry.bytes / 1e3 for entry in found.entries if entry.bytes}
    made = [
        _cost(found, "Score and time to learn a task", "ms to learn one task", milliseconds),
        _cost(found, "Score and size", "kB of its file", kilobytes),
    ]
    return [picture for picture in made if picture]


def _cost(found: LearnerComparison, heading: str, label: str, costs: Mapping[str, float]) -> Picture | None:
    unit, y_label, percent = _unit(found)
    most = math.inf if percent else FAR * found.entries[0].score.mean
    shown = [
        Point(costs[e.name], unit * e.score.mean, unit * e.score.interval, str(i + 1), "s1" if e.meta else "muted")
        for i, e in enumerate(found.entries)
        if e.name in costs and e.score.mean <= most
    ]

    if len(shown) < 2:
        return None
    better = "up" if words.higher_is_better(found.entries[0].score.protocol.metric) else "down"
    inside = {int(one.name) for one in shown}
    numbers = ", ".join(f"{i} {e.name}" for i, e in enumerate(found.entries, 1) if i in inside)
    caption = f"Better is {better} and to the left, where the scale is logarithmic. {numbers}; baselines are grey."
    return Picture(heading, points(shown, label, y_label), f"Scatter plot: {numbers}.", [], caption)
