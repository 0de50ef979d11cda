"""The page that compares several runs: the best run under each protocol, and which runs cannot be compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple
from urllib.parse import quote

from quickstudy.base.figures import DASHES, SERIES, Picture, Series, lines
from quickstudy.base.words import plural
from quickstudy.evaluation.protocol import Protocol, differences
from quickstudy.evaluation.score import Score, compare
from quickstudy.experiments.run import Run
from quickstudy.report import words
from quickstudy.report.scale import Scale
from quickstudy.report.sections.curves import is_accuracy

NO_PAIR = "No two of these runs were measured under the same protocol, so none is the best."


class Entry(NamedTuple):
    """One score of one run, and the link to its report."""

    name: str
    run: Run
    score: Score
    link: str


def comparison_values(runs: Sequence[Run], reports: Sequence[Path], out: Path) -> dict[str, Any]:
    """The values that the template needs to compare runs. Links to their pages `reports` are relative to `out`."""
    names = distinct_names(runs)
    links = [quote(Path(os.path.relpath(report, out.parent)).as_posix()) for report in reports]
    known = list(zip(names, runs, links, strict=True))
    entries = [
        Entry(n, run, score, link) for n, run, link in known if run.evaluation for score in run.evaluation.scores
    ]
    groups = grouped(entries)
    return dict(
        title=f"{len(runs)} runs compared",
        headline=[_headline(group) for group in groups if len(group) > 1] or [NO_PAIR],
        groups=[_group(group, groups[0]) for group in groups],
        waiting=[(name, link, run) for name, run, link in known if run.evaluation is None],
        curves=overlaid(names, runs),
    )


def distinct_names(runs: Sequence[Run]) -> list[str]:
    """Folder names, with as many parent folders before them as are needed to make them distinct."""
    parts = [run.folder.resolve().parts for run in runs]
    depth = next(d for d in range(1, max(map(len, parts)) + 1) if len({p[-d:] for p in parts}) == len(parts))
    return ["/".join(p[-depth:]) for p in parts]


def grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Scores grouped by protocol: larger groups first, and the best score first within a group."""
    groups: list[list[Entry]] = []
    for entry in entries:
        fits = (g for g in groups if not differences(g[0].score.protocol, entry.score.protocol))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append(entry)
    return [_ranked(group) for group in sorted(groups, key=len, reverse=True)]


def _ranked(group: list[Entry]) -> list[Entry]:
    highest = words.higher_is_better(group[0].score.protocol.metric)
    return sorted(group, key=lambda entry: entry.score.mean, reverse=highest)


def _headline(group: list[Entry]) -> str:
    best = group[0]
    difference = compare(best.score, group[1].score)
    lead = f"{words.signed(difference)} against {group[1].name}"
    verdict = f"is best, {lead}" if difference.decided else f"leads, {lead}: not decided, as the interval holds zero"
    return f"{_tasks(best.score)}: {best.name} {verdict}."


def _tasks(score: Score) -> str:
    p = score.protocol
    size = f"{p.ways}-way {p.shots}-shot" if p.ways else f"{p.shots}-shot"
    return f"{p.tasks}, {size}{', transductive' if p.transductive else ''}"


def _group(group: list[Entry], first: list[Entry]) -> dict[str, Any]:
    """One table: its protocol, its rows, and why it cannot be compared with the first table."""
    scale = Scale([entry.score for entry in group])
    return {
        "title": _tasks(group[0].score),
        "metric": group[0].score.protocol.metric,
        "under": _under(group[0].score.protocol),
        "refusal": "" if group is first else _refusal(first[0], group[0]),
        "rows": [_row(entry, group, scale) for entry in group],
        "spreads": _spreads(group),
    }


def _under(p: Protocol) -> str:
    queries = f"{plural(p.queries, 'query', 'queries')} per {'class' if p.ways else 'task'}"
    sight = "the queries of a task are normalised together" if p.transductive else "queries are answered one by one"
    return f"Split “{p.split}”, {queries}, {plural(p.episodes, 'test task')} of seed {p.seed}; {sight}."


def _row(entry: Entry, group: list[Entry], scale: Scale) -> dict[str, Any]:
    row = {"name": entry.name, "link": entry.link, "score": entry.score, "bar": scale.bar(entry.score)}
    return row | {"against": _against(entry, group), "how": _how(entry)}


def _refusal(first: Entry, other: Entry) -> str:
    why = words.differing(first.score.protocol, other.score.protocol)
    return f"Not comparable with the first table, as the protocols differ: {why}."


def _against(entry: Entry, group: list[Entry]) -> str:
    if len(group) == 1:
        return "alone under this protocol"
    if entry is group[0]:
        return "best"
    difference = compare(entry.score, group[0].score)
    return f"{words.signed(difference)}, {'decided' if difference.decided else 'not decided'}"


def _how(entry: Entry) -> str:
    """The part of the protocol that belongs to the learner, not to the tasks: normalisation and inner steps."""
    return ", ".join(entry.score.protocol.describe().split(", ")[1:])


def _spreads(group: list[Entry]) -> list[str]:
    """Standard deviation between seeds, for runs that differ in their seed alone."""
    alike: dict[str, list[Entry]] = {}
    for entry in group:
        alike.setdefault(repr(entry.run.config._replace(seed=0)), []).append(entry)
    found = []
    for entries in alike.values():
        seeds = {entry.run.config.seed for entry in entries}
        if len(seeds) == len(entries) > 1:
            found.append(_spread(entries))
    return found


def _spread(entries: list[Entry]) -> str:
    means = [entry.score.mean for entry in entries]
    accurate = entries[0].score.protocol.metric == "accuracy"
    middle, apart = sum(means) / len(means), stdev(means)
    shown = f"{100 * middle:.1f} %, {100 * apart:.1f} points" if accurate else f"{middle:.3g}, {apart:.2g}"
    names = ", ".join(entry.name for entry in entries)
    return f"{len(means)} seeds of the same settings ({names}): mean {shown} standard deviation from seed to seed."


# --- learning curves -------------------------------------------------------------------------------------------------


def overlaid(names: Sequence[str], runs: Sequence[Run]) -> list[Picture]:
    """One plot per metric with the learning curves of all runs: of validation, or of training where there was none."""
    found = []
    for accurate in (True, False):
        chosen = [
            (i, name, run)
            for i, (name, run) in enumerate(zip(names, runs, strict=True))
            if is_accuracy(run) == accurate
        ]
        series = [s for i, name, run in chosen if (s := _curve(i, name, run, accurate)) is not None]
        if series:
            found.append(_overlay(series, accurate))
    return found


def _curve(i: int, name: str, run: Run, accurate: bool) -> Series | None:
    kind = "val" if run.column("val")[0] else "accuracy" if accurate else "error"
    x, y = run.column(kind)
    if not x:
        return None
    unit = 100 if accurate else 1
    half = run.column("val_interval")[1] if kind == "val" else []
    bands = [unit * h for h in half] if len(half) == len(y) else None
    label = f"{name} ({'validation' if kind == 'val' else 'training'})"
    turn = i // len(SERIES)  # with more runs than colours, dashes distinguish runs of one colour
    return Series(x, [unit * v for v in y], label, SERIES[i % len(SERIES)], (i + turn) % len(DASHES), half=bands)


def _overlay(series: list[Series], accurate: bool) -> Picture:
    metric, unit = ("accuracy", "accuracy (%)") if accurate else ("mean squared error", "mean squared error")
    draw = lines(series, "iteration", unit, percent=accurate)
    ends = "; ".join(f"{s.name} ends at {s.y[-1]:.3g}{' %' if accurate else ''}" for s in series)
    costs = " An iteration takes each learner another time: see the single reports." if len(series) > 1 else ""
    caption = f"Bands are 95 % intervals. {ends}.{costs}"
    return Picture(
        metric.capitalize(), draw, f"Line plot: {ends}.", [(s.name, s.colour, s.dash) for s in series], caption
    )
