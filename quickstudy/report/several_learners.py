"""The page of `quickstudy compare`: which learner to choose, and the measurements behind this advice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from quickstudy.base.figures import DASHES, SERIES, Picture, Point, Series, lines, points
from quickstudy.base.words import duration, percentage_points, plural, size
from quickstudy.experiments.advice import advise, more_trainings
from quickstudy.experiments.comparison import UNEVEN, Entry, LearnerComparison, from_to, had
from quickstudy.experiments.ranking import Standing, standings
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
        "more": more_trainings(comparison),
        "warnings": comparison.warnings,
        "rows": [_row(i, one, scale) for i, one in enumerate(standings(comparison), 1)],
        "seeds": len(best.trials) > 1 or any(len(entry.trials) > 1 for entry in comparison.entries),
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
    p = comparison.entries[0].score.protocol
    seeds = max(len(entry.trials) for entry in comparison.entries)
    times = "once" if seeds == 1 else f"{seeds} times with other seeds"
    return (
        f"Every learner was trained {times}, {_time(comparison)}. The best theta on validation tasks was kept, and all "
        f"answered the same {plural(p.episodes, 'test task')} of split “{p.split}”, each query by itself. "
        "Differences are paired."
    )


def _time(comparison: LearnerComparison) -> str:
    """The time that trainings had, and on a shared machine how long that took."""
    trials = [trial for entry in comparison.entries if entry.trained for trial in entry.trials]
    if not trials:
        return f"for {plural(comparison.settings['minutes'], 'minute')}"
    own, walls = [trial.seconds for trial in trials], [trial.wall_seconds or trial.seconds for trial in trials]
    had_time = f"each time for {from_to(own, duration)}" if len(trials) > 1 else f"for {duration(own[0])}"
    if sum(walls) <= UNEVEN * sum(own):
        return had_time
    return f"{had_time} (by the clock on the wall {from_to(walls, duration)}: what other programs took does not count)"


def _row(number: int, one: Standing, scale: Scale) -> dict[str, Any]:
    entry = one.entry
    return {
        "number": number,
        "name": entry.name,
        "kind": "meta-learner" if entry.meta else "baseline",
        "score": entry.score,
        "bar": scale.bar(entry.score),
        "against": ("best", "") if number == 1 else _against(one),
        "spread": "" if entry.spread is None else entry.score.metric.format.half(entry.spread),
        "trained": _trained(entry),
        "adapt": duration(entry.adapt_seconds),
        "answer": duration(entry.predict_seconds),
        "calibration_error": "" if entry.calibration_error is None else percentage_points(entry.calibration_error),
        "size": "" if entry.bytes is None else size(entry.bytes),
    }


def _trained(entry: Entry) -> tuple[str, str]:
    iterations, seconds = had(entry)
    return (f"{iterations} iterations", seconds) if iterations else ("none", "")


def _against(one: Standing) -> tuple[str, str]:
    """The difference from the best with its sign, and why it does or does not rule the entry out."""
    sign = -1 if one.entry.score.metric.higher_is_better else 1
    loss = one.loss
    low, high = sorted((sign * loss.low, sign * loss.high))
    signed = dataclasses.replace(loss, mean=sign * loss.mean, low=low, high=high)
    behind = "" if loss.decided else f"behind {one.beaten_by[0]}" if one.beaten_by else ""
    return words.signed(signed, points=False), "not told apart" if one.may_be_best else behind


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
        Point(
            costs[e.name],
            unit * e.score.mean,
            (unit * e.score.low, unit * e.score.high),
            str(i),
            "s1" if e.meta else "muted",
        )
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
