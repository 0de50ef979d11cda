"""The page that compares several runs: the best run under each protocol, and which runs cannot be compared."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple
from urllib.parse import quote

from quickstudy.base.figures import DASHES, SERIES, Picture, Series, lines
from quickstudy.base.words import capitalised, listed, plural
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.protocol import Protocol, differences
from quickstudy.evaluation.score import Score, compare
from quickstudy.experiments.ranking import beaten
from quickstudy.experiments.run import SCORES, Run
from quickstudy.report import words
from quickstudy.report.scale import Scale
from quickstudy.report.sections.curves import band, scaled

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
    return sorted(group, key=lambda entry: entry.score.mean, reverse=group[0].score.metric.higher_is_better)


def _headline(group: list[Entry]) -> str:
    """Who is best under this protocol. Nobody is while another may be: the verdict allows for all comparisons made."""
    best, *others = group
    rivals = [entry.name for entry, by in zip(others, _beaten_by(group)[1:], strict=True) if not by]
    lead = f"{words.signed(compare(best.score, group[1].score))} against {group[1].name}"
    verdict = f"leads, {lead}: {listed(rivals)} may be as good" if rivals else f"is best, {lead}"
    return f"{_tasks(best.score)}: {best.name} {verdict}. This holds for these trainings alone."


def _beaten_by(group: list[Entry]) -> list[list[int]]:
    """For each entry the places of those that beat it, by the rule of `ranking`."""
    return beaten([entry.score for entry in group])


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
        "rows": [_row(entry, group, by, scale) for entry, by in zip(group, _beaten_by(group), strict=True)],
        "spreads": _spreads(group),
    }


def _under(p: Protocol) -> str:
    queries = f"{plural(p.queries, 'query', 'queries')} per {'class' if p.ways else 'task'}"
    sight = words.together(p) if p.transductive else "queries were answered one by one"
    return f"Split “{p.split}”, {queries}, {plural(p.episodes, 'test task')} of seed {p.seed}; {sight}."


def _row(entry: Entry, group: list[Entry], beaten_by: list[int], scale: Scale) -> dict[str, Any]:
    row = {"name": entry.name, "link": entry.link, "score": entry.score, "bar": scale.bar(entry.score)}
    return row | {"against": _against(entry, group, beaten_by), "how": _how(entry)}


def _refusal(first: Entry, other: Entry) -> str:
    why = words.differing(first.score.protocol, other.score.protocol)
    return f"Not comparable with the first table, as the protocols differ: {why}."


def _against(entry: Entry, group: list[Entry], beaten_by: list[int]) -> str:
    if len(group) == 1:
        return "alone under this protocol"
    if entry is group[0]:
        return "best"
    difference = compare(entry.score, group[0].score)
    return f"{words.signed(difference)}, {'decided' if beaten_by else 'not decided'}"


def _how(entry: Entry) -> str:
    """The part of the protocol that belongs to the learner, not to the tasks: normalisation and inner steps."""
    return ", ".join(entry.score.protocol.of_the_learner)


def _spreads(group: list[Entry]) -> list[str]:
    """What several trainings of one learner give: runs that differ in their seed alone, tested in the same way.

    A group may hold tests of one training with other inner steps or another ensemble: these are not other trainings.
    Runs of one seed are one training, and a learner without meta-parameters has none.
    """
    alike: dict[tuple[str, Protocol], dict[int, Entry]] = {}
    for entry in (one for one in group if one.run.parameters != 0):
        settings = repr(entry.run.config._replace(seed=0))
        alike.setdefault((settings, entry.score.protocol), {}).setdefault(entry.run.config.seed, entry)
    return [_spread(list(entries.values())) for entries in alike.values() if len(entries) > 1]


def _spread(entries: list[Entry]) -> str:
    score = Score.of_trainings([dataclasses.replace(entry.score, controls={}) for entry in entries])
    apart = score.metric.format.deviation(stdev(entry.score.mean for entry in entries))
    names = ", ".join(entry.name for entry in entries)
    return (
        f"{len(entries)} seeds of the same settings ({names}): {words.both(score)}, an interval that holds their "
        f"spread; {apart} standard deviation from seed to seed."
    )


# --- learning curves -------------------------------------------------------------------------------------------------


def overlaid(names: Sequence[str], runs: Sequence[Run]) -> list[Picture]:
    """One plot per metric with the learning curves of all runs: of validation, or of training where there was none."""
    metrics = list(dict.fromkeys([*SCORES.values(), *(run.metric for run in runs)]))
    curves = [(metric, _curves(names, runs, metric)) for metric in metrics]
    return [_overlay(series, metric) for metric, series in curves if series]


def _curves(names: Sequence[str], runs: Sequence[Run], metric: Metric) -> list[Series]:
    numbered = enumerate(zip(names, runs, strict=True))
    curves = (_curve(i, name, run) for i, (name, run) in numbered if run.metric == metric)
    return [curve for curve in curves if curve is not None]


def _curve(i: int, name: str, run: Run) -> Series | None:
    validated = bool(run.column("val")[0])
    x, y = run.column("val") if validated else run.training_scores
    if not x:
        return None
    label = f"{name} ({'validation' if validated else 'training'})"
    turn = i // len(SERIES)  # with more runs than colours, dashes distinguish runs of one colour
    look = (SERIES[i % len(SERIES)], (i + turn) % len(DASHES))
    return Series(x, scaled(run.metric, y), label, *look, ends=band(run) if validated else None)


def _overlay(series: list[Series], metric: Metric) -> Picture:
    draw = lines(series, "iteration", metric.label, end=metric.format.end)
    ends = "; ".join(f"{s.name} ends at {s.y[-1]:.3g}{metric.format.unit}" for s in series)
    costs = " An iteration takes each learner another time: see the single reports." if len(series) > 1 else ""
    legend = [(s.name, s.colour, s.dash) for s in series]
    caption = f"Bands are 95 % intervals. {ends}.{costs}"
    return Picture(capitalised(metric.name), draw, f"Line plot: {ends}.", legend, caption)
