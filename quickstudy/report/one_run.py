"""The page of one run: its sections as plain values, and the template that renders them."""

from __future__ import annotations

from typing import Any

from quickstudy.base.words import duration, listed, plural, short
from quickstudy.errors import ProtocolError
from quickstudy.evaluation.score import Score
from quickstudy.experiments.run import Run
from quickstudy.report import words
from quickstudy.report.scale import Scale
from quickstudy.report.sections import (
    confusion,
    embeddings,
    examples,
    instances,
    intervals,
    movement,
    probabilities,
    served,
)
from quickstudy.report.sections.curves import learning_curves, steps_section


def run_values(run: Run) -> dict[str, Any]:
    """The values that the template needs for the page of one run."""
    confused = run.answers.confusion if run.answers else None
    return dict(
        title=f"{run.config.learner} on {run.config.tasks.get('name', 'tasks')}",
        run=run,
        score=run.score,
        facts=facts(run),
        controls=controls(run.score) if run.score else [],
        verdict=verdict(run.score) if run.score else "",
        chance=_chance_mark(run.score),
        curves=learning_curves(run),
        steps=steps_section(run),
        instances=instances.section(run.instances) if run.instances else None,
        moved=movement.section(run.movement) if run.movement else None,
        intervals=intervals.section(run.calibration) if run.calibration else None,
        probabilities=probabilities.section(run.answers) if run.answers else None,
        confused=confusion.section(confused) if confused else None,
        matrix=confusion.matrix(confused) if confused else None,
        embedded=embeddings.section(run.embeddings) if run.embeddings else None,
        served=served.section(run.score) if run.score else None,
        episodes=examples.episodes(run.examples, run.score.protocol.steps if run.score else None),
        most={"classes": examples.CLASSES, "shown": examples.SHOWN},
        shares=words.shares(run.timing) if run.timing and run.parameters != 0 else {},
        speed=speed(run),
    )


def facts(run: Run) -> list[tuple[str, str]]:
    """The most important numbers besides the headline, each with its explanation."""
    if run.evaluation is None:
        return []
    numbers = [
        (words.both(score), "when queries are answered one by one, each blind to the others")
        for score in run.evaluation.scores[1:]
        if run.evaluation.scores[0].protocol.transductive and not score.protocol.transductive
    ]
    main = run.evaluation.scores[0]
    if "zero_steps" in main.controls:
        numbers.append((words.both(main.controls["zero_steps"]), "without inner steps: theta alone, not adapted"))
    if main.controls:
        beaten = sum(row["beaten"] for row in controls(main))
        numbers.append((f"{beaten} of {len(main.controls)}", "controls beaten, in pairs on the same test tasks"))
    numbers.append((duration(run.evaluation.adapt_seconds), "to adapt to one new task"))
    return numbers


# --- controls --------------------------------------------------------------------------------------------------------


def controls(score: Score) -> list[dict[str, Any]]:
    """One row per control: its bar, its paired difference from the score, and the conclusion."""
    scale = Scale([score, *score.controls.values()])
    rows = []
    for name, control in score.controls.items():
        about = words.said(name)
        what = about.what + words.on_the_first(score, control)
        row = {"name": name, "label": about.label, "what": what, "score": control, "bar": scale.bar(control)}
        rows.append(row | _against(name, score, control) | {"own": scale.bar(score)})
    return rows


def _against(name: str, score: Score, control: Score) -> dict[str, Any]:
    try:
        difference = score.against(control)
    except ProtocolError:
        why = words.differing(score.protocol, control.protocol)
        return {"beaten": False, "reading": f"Not comparable: another protocol, {why}.", "difference": ""}
    beaten, reading = words.reading(name, score, control, difference)
    return {"beaten": beaten, "reading": reading, "difference": words.signed(difference)}


ABLATIONS = {"zero_steps", "shuffled_labels"}  # the learner itself with something taken away: no rival to it


def verdict(score: Score) -> str:
    """The conclusion from all controls together, which names those that were beaten and those that could not be run."""
    return " ".join(filter(None, [_outcome(score), _open_question(score), words.left_out(score)]))


def _outcome(score: Score) -> str:
    rows, who = controls(score), score.protocol.learner
    missed = [row for row in rows if not row["beaten"]]
    named = [words.said(row["name"]).beaten for row in rows if row["beaten"]]
    beaten = f"{who} beats {listed(named)}" if named else ""
    if not missed:
        why = ": its score is owed to what it learned across tasks and to adapting"
        trained = {"untrained", "from_scratch"} & set(score.controls)
        return f"{beaten}{why if trained and 'shuffled_labels' in score.controls else ''}."
    if named and [row["name"] for row in missed] == ["nil"]:
        # NIL uses the learner's own features, so a learner that does not beat it has still learned something.
        why = "the features carry the score, and the inner loop adds nothing to them"
        return f"{beaten}, but not NIL, which reads its features as they are: {why}."
    text = f"Not beaten: {', '.join(row['label'] for row in missed)}."
    return f"{text} Until every control is, the score does not show that meta-learning helped."


def _open_question(score: Score) -> str:
    """What cannot be concluded where no control learned the tasks in another way."""
    if set(score.controls) - ABLATIONS:
        return ""
    return "None of these learned the tasks without meta-training, so it is open whether that helped."


def _chance_mark(score: Score | None) -> float | None:
    return words.level(score.metric, score.protocol.ways) if score else None


# --- timing ----------------------------------------------------------------------------------------------------------


def speed(run: Run) -> list[tuple[str, str]]:
    """Rows of the timing table: a label and a value."""
    trained = _training_speed(run) if run.timing and run.parameters != 0 else []
    return trained + (_evaluation_speed(run) if run.evaluation else [])


def _training_speed(run: Run) -> list[tuple[str, str]]:
    assert run.timing is not None
    total, why = run.timing.total, f" ({run.timing.reason})" if run.timing.reason else ""
    rows = [("training", duration(total)), ("engine", f"{run.timing.engine}{why}")]
    if run.metrics and total > 0:
        rate = run.metrics[-1]["iteration"] / total
        tasks = short(rate * run.config.meta_batch)
        rows.insert(1, ("rate", f"{short(rate)} iterations per second, {tasks} tasks per second"))
    return rows


def _evaluation_speed(run: Run) -> list[tuple[str, str]]:
    assert run.evaluation is not None
    e, p = run.evaluation, run.evaluation.scores[0].protocol
    queries = plural(p.queries * (p.ways or 1), "query", "queries")
    machine = {key: value for key, value in e.machine.items() if value is not None}
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "quickstudy") if name in machine)
    cores = f"{machine.get('cores', '?')} cores, torch on {plural(machine.get('threads', 1), 'thread')}"
    return [
        ("adapting to a task", f"{duration(e.adapt_seconds)}, median, one task at a time"),
        ("answering a task", f"{duration(e.predict_seconds)}, median, for its {queries}"),
        (
            "evaluated on",
            ", ".join(str(machine[key]) for key in ("accelerator", "cpu") if key in machine) + f", {cores}",
        ),
        ("versions", versions),
    ]
