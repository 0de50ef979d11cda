"""Tests a trained row under its protocols, and keeps or takes up its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import quickstudy as qs
from benchmarks.provenance import COMMIT
from benchmarks.reproduce.rows import Row, Test
from benchmarks.reproduce.training import run_row, source_of
from quickstudy.base import files
from quickstudy.evaluation.score import Score
from quickstudy.learner import takes


def test_row(trained: qs.Trained, test: Test, source: Any) -> list[Score]:
    """The score under a test protocol; for a transductive protocol the non-transductive score as well."""
    settings: dict[str, Any] = {"episodes": test.episodes, "seed": 1, "ensemble": test.ensemble}
    settings["steps"] = test.steps if takes(trained.learner, "steps") else None
    scores = [qs.evaluate(trained, source, controls=test.controls, **settings)]
    if scores[0].protocol.transductive:
        scores.append(qs.evaluate(trained, source, transductive=False, **settings))
    return scores


def test_all(
    trained: qs.Trained, tests: Sequence[Test], source: Callable[[Test], Any]
) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """The scores of every test, and a line for each test without a score, because an output was not finite."""
    scores, diverged = [], []
    for test in tests:
        try:
            scores.append([score.to_dict() for score in test_row(trained, test, source(test))])
        except qs.errors.NonFiniteError as error:
            diverged.append(f"{test.shots}-shot, {test.steps} inner steps: {str(error).splitlines()[0]}")
    return scores, diverged


def measure(
    rows: Sequence[Row],
    tasks: str,
    data: str | None,
    folder: Path,
    known: Sequence[dict[str, Any]] = (),
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Train and test every row; an existing result, in the run folder or in `known`, is reused."""
    standing = {(row["name"], json.dumps(row.get("settings"))): row for row in known}
    for row in rows:
        settings = plain_settings(row)
        path = folder / row.name / "results.json"
        done = standing.get((row.name, json.dumps(settings)))
        if done is None and path.exists():
            kept = files.read_json(path)
            done = kept if kept.get("settings", settings) == settings else None
        if done is None:
            done = {"name": row.name, "settings": settings, **train_and_test(row, tasks, data, folder, device)}
            files.write_json(path, done)
        if "course" not in done:
            done |= {"course": course(folder / row.name / "metrics.jsonl")}
        print(f"{row.name}: {done['scores'][0][0]['text'] if done['scores'] else done['diverged'][0]}", flush=True)
        yield done | {"published": row.published, "differs": row.differs}


def plain_settings(row: Row) -> dict[str, Any]:
    """A row's settings in the form in which a result file stores them."""
    return json.loads(json.dumps(row.settings()))


def train_and_test(row: Row, tasks: str, data: str | None, folder: Path, device: str) -> dict[str, Any]:
    """The scores of a row and facts about its training; a diverged training is reported instead of raising."""
    try:
        made = run_row(row, tasks, data, folder, device)
    except qs.errors.NonFiniteError as error:
        return {"scores": [], "diverged": [f"training: {error}"], "timing": None, "parameters": None, "commit": COMMIT}

    def source(test: Test) -> Any:
        return source_of(row, tasks, (test.ways, test.shots, test.queries), "test", data, folder)

    scores, diverged = test_all(made["trained"], row.tests, source)
    facts = {name: made[name] for name in ("timing", "parameters", "commit")}
    if row.instances:
        episodes, streams = row.tests[0].episodes, source(row.tests[0])
        found = qs.instance_accuracy(made["trained"], streams, instances=row.instances, episodes=episodes, seed=1)
        facts["instances"] = found.to_dict()
    if row.movement:
        facts["movement"] = movement(made["trained"], source(row.tests[0]), row.tests[0].steps)
    return {"scores": scores, "diverged": diverged, **facts}


def course(path: Path) -> list[dict[str, float]]:
    """Mean loss and accuracy on training tasks over the last fifth of each quarter of the training.

    They show whether training was still improving.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [line for line in map(json.loads, text.splitlines()) if "accuracy" in line]
    found = []
    for quarter in (1, 2, 3, 4):
        end = quarter * len(lines) // 4
        last = lines[max(0, end - len(lines) // 20 - 1) : end]
        if last:
            means = {key: sum(line[key] for line in last) / len(last) for key in ("loss", "accuracy")}
            found.append({"iteration": last[-1]["iteration"]} | means)
    return found


def movement(trained: qs.Trained, source: Any, steps: int | None) -> dict[str, Any] | None:
    """How far each layer moves under the row's first test; None for learners whose layers do not adapt."""
    try:
        return qs.layer_movement(trained, source, episodes=100, seed=1, steps=steps).to_dict()
    except qs.errors.ConfigError:
        return None
