"""`quickstudy adapt` and `quickstudy predict`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from quickstudy.cli.evaluating import request_of_run
from quickstudy.cli.notes import print_notes, warnings_as_notes
from quickstudy.cli.options import AdaptOptions, PredictOptions, parse
from quickstudy.errors import ConfigError
from quickstudy.evaluation.measures import scope
from quickstudy.experiments import evaluate_run
from quickstudy.experiments.request import open_tasks
from quickstudy.tasks.source import source_of
from quickstudy.trained.answers import write_answers
from quickstudy.trained.load import load
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.trained import Trained


def adapt(argv: list[str]) -> None:
    options = parse(AdaptOptions, argv, "adapt")
    trained = evaluate_run.load_run(options.run)
    classification = trained.tasks.get("ways") is not None
    shown = trained.basis.reader.support(trained.preprocess, Path(options.support), classification)
    print_notes(shown.notes)
    if options.reject:
        trained = _scoped(options.run, trained, shown.y)
    with warnings_as_notes():
        predictor = trained.adapt(shown.x, shown.y)
    predictor.save(options.out)
    learned = f"classes {', '.join(map(str, predictor.classes))}" if predictor.classes else "one regression task"
    print(f"learned {learned}: {options.out}")
    print(f"next: quickstudy predict {options.out} INPUT...")


def _scoped(run: str, trained: Trained, y: Any) -> Trained:
    """The learner with a distance beyond which an input belongs to none of the classes.

    The distance is found on validation tasks with the ways and shots of the support set.
    """
    tasks = open_tasks(request_of_run(run), "val", trained.preprocess)
    if source_of(tasks).ways is None:
        raise ConfigError("--reject is for classes; this run answers with values.")
    sizes = Counter(y)
    tasks = scope.sized(tasks, len(sizes), min(sizes.values()))
    trained = scope.scoped(trained, tasks)
    kind = f"{tasks.ways}-way {tasks.shots}-shot validation tasks"
    print(f"none of the classes: beyond a distance of {trained.scope:.3g}, within which are 95 % of queries of {kind}")
    return trained


def predict(argv: list[str]) -> None:
    options = parse(PredictOptions, argv, "predict")
    predictor = load(options.predictor)
    if not isinstance(predictor, Predictor):
        raise ConfigError(
            f"{options.predictor!r} is not adapted to a task yet. First: quickstudy adapt RUN SUPPORT --out F"
        )
    if options.csv and options.json:
        raise ConfigError("--json prints the answers and --csv writes them to a file: give one of the two.")
    if not options.inputs:
        raise ConfigError("predict needs something to answer for: quickstudy predict FILE INPUT...")
    reader = predictor.basis.reader
    read = [reader.inputs(predictor.preprocess, Path(name)) for name in options.inputs]
    print_notes([note for one in read for note in one.notes])
    with warnings_as_notes():
        answers = [answer for one in read for answer in _answers(predictor, one.x, one.names, options.reject)]
    if options.csv:
        write_answers(Path(options.csv), read, answers)
        print(f"answers: {options.csv}")
        return
    if options.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    table = Table(Column("input", overflow="fold"), "label", "probability")
    for answer in answers:
        sure = "" if answer["probability"] is None else f"{answer['probability']:.3f}"
        label = "none of these" if answer["label"] is None else answer["label"]
        table.add_row(answer["input"], f"{label:.5g}" if isinstance(label, float) else str(label), sure)
    Console().print(table)
    if options.reject:
        print(f"{sum(answer['label'] is None for answer in answers)} of {len(answers)} are none of the classes")


def _answers(predictor: Predictor, x: Any, names: list[str], reject: bool) -> list[dict[str, Any]]:
    labels = predictor.predict(x, reject=reject)
    if predictor.classes is None:
        values = [value if len(value) > 1 else value[0] for value in torch.as_tensor(labels).tolist()]
        return [{"input": n, "label": v, "probability": None} for n, v in zip(names, values, strict=True)]
    sure = predictor.predict_proba(x).amax(predictor.axis)
    if sure.dim() > 1:  # of several labels there is no one probability
        return [{"input": n, "label": k, "probability": None} for n, k in zip(names, labels, strict=True)]
    rows = zip(names, labels, sure.tolist(), strict=True)
    return [{"input": n, "label": k, "probability": None if k is None else round(p, 6)} for n, k, p in rows]
