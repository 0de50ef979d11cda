"""Writes the Markdown page for a result of `benchmarks.reproduce`."""

from __future__ import annotations

import statistics
from typing import Any

import quickstudy as qs
from benchmarks.reproduce.rows import BEHIND, METRIC_BEHIND, PUBLISHED_UNDER
from quickstudy.base.machine import in_words as machine_in_words
from quickstudy.evaluation.measures.movement import in_words as movement_in_words
from quickstudy.evaluation.metric import PERCENT
from quickstudy.evaluation.protocol import Protocol
from quickstudy.evaluation.score import Score


def table(result: dict[str, Any]) -> str:
    """The Markdown page for a result."""
    lines = [
        f"# {result['name']}",
        "",
        f"Command: `{result['command']}` · training seed 0 unless named, test episodes from seed 1",
        "",
    ]
    machine = machine_in_words(result["machine"])
    lines += [f"Machine: {machine}", "", *published_under(result["rows"]), *over_steps(result["rows"])]
    lines += [
        "| learner | protocol | result (95 % CI) | training | engine | published | differs |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        for plain in (plain for test in row["scores"] for plain in test):
            score = Score.from_dict(plain)
            shown = score.in_words()
            p = score.protocol
            queries = f"{p.queries} {'query' if p.queries == 1 else 'queries'}"
            what = f"{p.describe()}; {queries}, {p.episodes} episodes of {p.tasks} {p.split}"
            minutes = f"{spent(row['timing'])} ({row['commit']})"
            cells = (row["name"], what, shown, minutes, row["timing"]["engine"], row["published"], row["differs"])
            lines.append("| " + " | ".join(cells) + " |")
    for row in result["rows"]:
        lines += [f"\n{row['name']} at {what}" for what in row.get("diverged", [])]
    lines += over_seeds(result["rows"])
    lines += controls(result["rows"])
    lines += instances(result["rows"])
    lines += courses(result["rows"]) if result["name"].startswith("omniglot-memory") else []
    lines += layers(result["rows"])
    if result["paired"]:
        lines += [
            "",
            "Paired differences on the same episodes:",
            "",
            "| row | protocol | baseline | difference |",
            "|---|---|---|---|",
        ]
        for d in result["paired"]:
            lines.append(f"| {d['row']} | {d['protocol']} | {d['baseline']} ({d['against']}) | {d['text']} |")
        lines += behind(result)
    return "\n".join(lines) + "\n"


def published_under(rows: list[dict[str, Any]]) -> list[str]:
    """What the published numbers of rows on Omniglot were measured under, where that is not the rows' own protocol."""
    compared = [row["scores"][0][0]["protocol"] for row in rows if row["published"] and row["scores"]]
    names = dict.fromkeys(p["learner"] for p in compared if p["tasks"] == "omniglot")
    notes = [f"{name}'s published numbers: {PUBLISHED_UNDER[name]}" for name in names if name in PUBLISHED_UNDER]
    return [line for note in notes for line in (note, "")]


def over_steps(rows: list[dict[str, Any]]) -> list[str]:
    """A short table: one line per row with its score at each number of inner steps, where several were tested."""
    scores = {row["name"]: [Score.from_dict(plain) for test in row["scores"] for plain in test] for row in rows}
    found = {name: {score.protocol.steps: score for score in of} for name, of in scores.items()}
    steps = sorted({k for scores in found.values() if len(scores) > 2 for k in scores})
    if not steps:
        return []
    lines = ["In short, at so many inner steps (a dash: an output was not finite):", ""]
    lines += ["| learner | " + " | ".join(map(str, steps)) + " |", "|---|" + "---|" * len(steps)]
    for name, scores in found.items():
        cells = [
            scores[k].metric.format.between(scores[k].mean, *scores[k].ends) if k in scores else "-" for k in steps
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def behind(result: dict[str, Any]) -> list[str]:
    """The reasons why learners score below their family's baseline, for those where the difference is decided.

    They were measured on Omniglot and say nothing of other tasks.
    """
    if not result["name"].startswith("omniglot"):
        return []
    learner = {
        row["name"]: row["settings"]["learner"] for row in result["rows"] if "settings" in row
    }  # older lack them
    lower = [learner.get(d["row"], "") for d in result["paired"] if d["decided"] and d["text"].startswith("-")]
    bar = next((d["baseline"].rsplit("-", 1)[0] for d in result["paired"] if d["decided"]), "")
    why = METRIC_BEHIND if bar == "protonet" else BEHIND
    reasons = [f"- **{name}**: {why[name]}" for name in dict.fromkeys(lower) if name in why]
    bar = {"maml": "MAML", "protonet": "ProtoNet"}.get(bar, bar)
    heading = (
        f"Behind {bar} by more than the interval, and why (what stands in no row above was measured once, by hand):"
    )
    return ["", heading, "", *reasons] if reasons else []


def controls(rows: list[dict[str, Any]]) -> list[str]:
    """The scores of the controls on the same episodes."""
    lines = ["", "Controls on the same episodes:", ""]
    lines += ["| row | protocol | control | result (95 % CI) |", "|---|---|---|---|"]
    first = len(lines)
    for row in rows:
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            for name, control in (score.controls or {}).items():
                shown = control.in_words()
                lines.append(f"| {row['name']} | {score.protocol.describe()} | {name} | {shown} |")
    return lines if len(lines) > first else []


def instances(rows: list[dict[str, Any]]) -> list[str]:
    """Accuracy at the n-th instance of a class in a stream, before its label is seen."""
    found = {row["name"]: qs.InstanceAccuracy.from_dict(row["instances"]) for row in rows if row.get("instances")}
    if not found:
        return []
    first = next(iter(found.values()))
    names = [f"instance {n}" for n in first.instances]
    lines = ["", "Accuracy at the n-th instance of a class in a stream, each answered before its label is seen:", ""]
    lines += ["| row | first of the stream | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for name, one in found.items():
        cells = [a.in_words(PERCENT) for a in (one.first, *one.amounts)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def courses(rows: list[dict[str, Any]]) -> list[str]:
    """Loss and accuracy on training tasks after each quarter of the iterations: was training still improving?"""
    found = {row["name"]: row["course"] for row in rows if row.get("course")}
    if not found:
        return []
    lines = ["", "Was training still getting on when its time was over? Loss and accuracy on training tasks:", ""]
    lines += ["| row | a quarter of the iterations | half | three quarters | all |", "|---|---|---|---|---|"]
    for name, quarters in found.items():
        cells = [f"{q['loss']:.3f}, {100 * q['accuracy']:.0f} % ({q['iteration']:,})" for q in quarters]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def spent(timing: dict[str, Any]) -> str:
    """The processor time, which does not depend on other load; the wall time for older results, which lack it."""
    if "processor" in timing:
        return f"{timing['processor'] / 60:.1f} min of one core"
    return f"{timing['total'] / 60:.1f} min wall"


def layers(rows: list[dict[str, Any]]) -> list[str]:
    """How far adaptation moves each layer's representation of the queries (1 - CKA), for rows where it was measured."""
    found = {row["name"]: row["movement"] for row in rows if row.get("movement")}
    if not found:
        return []
    names = [layer["name"] for layer in next(iter(found.values()))["layers"]]
    lines = ["", "How far adaptation moves each layer's representation (1 - linear CKA, 100 test episodes):", ""]
    lines += ["| learner | " + " | ".join(names) + " | moves most |", "|---|" + "---|" * (len(names) + 1)]
    for row, moved in found.items():
        amounts = [movement_in_words(one.representation) for one in qs.Movement.from_dict(moved).layers]
        lines.append(f"| {row} | " + " | ".join(amounts) + f" | {moved['most']} |")
    return lines


def over_seeds(rows: list[dict[str, Any]]) -> list[str]:
    """The score over several trainings, for rows that differ in their training seed alone."""
    found: dict[tuple[str, Protocol], dict[str, Score]] = {}
    for row in rows:
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            # The whole protocol: one training that is tested with 1 query and with 15 is still one training.
            found.setdefault((row["name"].split("-seed")[0], score.protocol), {})[row["name"]] = score
    several = {key: list(scores.values()) for key, scores in found.items() if len(scores) > 1}
    if not several:
        return []
    lines = ["", "Over training seeds, on the same test tasks; the interval holds the spread from seed to seed:", ""]
    lines += [
        "| learner | protocol | result (95 % CI) | standard deviation of seeds | seeds |",
        "|---|---|---|---|---|",
    ]
    for (name, protocol), scores in several.items():
        apart = scores[0].metric.format.deviation(statistics.stdev(score.mean for score in scores))
        over = Score.of_trainings(scores).in_words()
        lines.append(f"| {name} | {protocol.describe()} | {over} | {apart} | {len(scores)} |")
    return lines
