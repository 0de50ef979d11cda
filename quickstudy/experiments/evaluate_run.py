"""Run folders: load the learner that was trained there, evaluate it, and keep what a report needs.

Training writes config.json, protocol.json, metrics.jsonl, checkpoint.safetensors, timing.json and learner.qs, and with
`tensorboard` also events.out.tfevents.*. Evaluation adds scores.json and examples.safetensors. For learners that can
fill them it also adds answers.json (classes), movement.json (inner steps), embeddings.json (a vector for a task),
calibration.json (a distribution of values) and instances.json (streams). A report adds report.html.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import files, seeds
from quickstudy.base.machine import machine
from quickstudy.base.progress import counting_bar
from quickstudy.base.timing import timed
from quickstudy.engine import ranks
from quickstudy.engine.fitting import device_of, fitted, for_test, has_both_forms, normalisation_of
from quickstudy.engine.labels import class_axis, takes_classes
from quickstudy.episodes import moved, unstack
from quickstudy.errors import DataError, NonFiniteError, RunError
from quickstudy.evaluation import controls
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.embeddings import FEWEST, task_embeddings
from quickstudy.evaluation.measures.instances import (
    INSTANCES,
    InstanceAccuracy,
    has_instances,
    instance_accuracy,
    with_instances,
)
from quickstudy.evaluation.measures.intervals import interval_coverage
from quickstudy.evaluation.measures.movement import layer_movement, moves_layers
from quickstudy.evaluation.measures.probabilities import calibration_of
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.predictions import Predictions, Settings, predictions, score_of
from quickstudy.evaluation.score import Score
from quickstudy.evaluation.scoring import control_predictions, with_controls
from quickstudy.experiments.examples import keep_examples, with_own
from quickstudy.learner import Learner, offers, setting
from quickstudy.tasks.source import source_of
from quickstudy.trained.load import load
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.trained import Trained

CURVE = (0, 1, 2, 3, 5, 10)  # inner steps of the curve in the report
CURVE_EPISODES = 200
MOVEMENT_EPISODES = 100
EMBEDDED = 300  # test tasks in the plot of embeddings
CALIBRATED = 200


def load_run(path: str | os.PathLike) -> Trained:
    """The trained learner of a run folder or of a `.qs` file.

    Raises RunError where there is no such learner, where its training has not finished, or where the file is a
    predictor.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "learner.qs").exists():
            cut = (path / "checkpoint.safetensors").exists()
            hint = "its training has not finished: continue it with --resume" if cut else "it is not a run folder"
            raise RunError(f"{str(path)!r} holds no learner.qs: {hint}.")
        path = path / "learner.qs"
    if not path.exists():
        raise RunError(f"there is no run folder or .qs file {str(path)!r}. Check the path.")
    loaded = load(path)
    if isinstance(loaded, Predictor):
        raise RunError(
            f"{str(path)!r} is a predictor, adapted to one task already. Give the run that it was made from."
        )
    return loaded


def evaluate_run(
    folder: str | os.PathLike,
    trained: Trained,
    tasks: Any,
    *,
    episodes: int = 600,
    seed: int = 1,
    steps: int | None = None,
    ensemble: int = 1,
    names: list[str] | None = None,
    metric: str | Metric | None = None,
    engine: str = "auto",
    progress: bool = True,
) -> list[Score]:
    """Score a run on test tasks and write scores.json and examples.safetensors into its folder; returns the scores.

    `episodes` test episodes are drawn from `tasks` with `seed`; `steps` is the number of inner steps, None for that of
    training. The first score carries the controls `names`, by default all that make sense. A transductive learner gets
    a second score, of its inductive form: queries are normalised with the support set's statistics. `metric` is as in
    `evaluate`.

    Episodic learners with inner steps get a curve over steps, and movement.json where the steps move the layers of a
    model. Learners with an `embed` method get embeddings.json, those with a distribution of values calibration.json.
    Calibration and confusion of answers to classes are in answers.json. The learner as declared, its inductive form
    and each control answer the test episodes once; all that is measured of their answers follows from these.

    With `ensemble` above 1, that many thetas answer together for the scores and answers.json; everything else uses the
    best theta alone. In a process group every rank calls this with the same arguments: the ranks share the work, and
    the first rank writes.
    """
    learner = for_test(trained.learner, tasks, steps)
    names, hindered = controls.chosen(learner, tasks, names)
    moving = min(episodes, MOVEMENT_EPISODES) if moves_layers(trained, tasks, steps) else 0
    todo = _episodes_to_do(learner, names, episodes, moving, ensemble)
    with counting_bar("evaluating", todo, progress and ranks.first()) as count:
        settings = Settings(episodes, seed, metric, engine, count)
        own = predictions(trained, tasks, settings, steps=steps, ensemble=ensemble)
        score, similar = score_of(own), dataclasses.replace(settings, metric=own.metric, tried=own.engine)
        made = {name: control_predictions(name, own, trained.theta, tasks, settings) for name in names}
        scores = [with_controls(score, made, hindered)]
        if has_both_forms(learner):
            inductive = predictions(trained, tasks, similar, steps=steps, transductive=False, ensemble=ensemble)
            scores.append(score_of(inductive))
        known = [own, *(one for name, one in made.items() if name == "zero_steps")] if ensemble == 1 else []
        curve = _over_steps(trained, tasks, learner, similar, known)
        if ranks.first():  # before all that is measured beside the score and may fail
            _write_scores(Path(folder), trained, tasks, steps, scores, curve)
        if _answers_classes(own, tasks):
            _write(folder, "answers.json", calibration_of(own, tasks).to_dict())
        if moving:
            common = {"seed": seed, "steps": steps, "engine": engine, "progress": count}
            movement = layer_movement(trained, tasks, episodes=moving, **common)
            _write(folder, "movement.json", movement.to_dict())
    _look_at_tasks(folder, trained, tasks, settings, own if steps is None and ensemble == 1 else None)
    if ranks.first():
        keep_examples(Path(folder), trained, tasks, seed, steps, episodes, own.metric)
    return scores


def _answers_classes(made: Predictions, tasks: Any) -> bool:
    """Whether answers are classes, of examples or of their positions, so that their probabilities can be measured."""
    y, output, loss = made.truths[0], made.outputs[0], setting(made.learner, "loss")
    if not isinstance(y, Tensor) or not isinstance(output, Tensor) or y.is_floating_point():
        return False
    declared = source_of(tasks).ways is not None and y.shape == output.shape[:1] and output.dim() == 2
    return declared or (takes_classes(loss) and class_axis(output, y, loss) is not None)


def _episodes_to_do(learner: Learner, names: Sequence[str], episodes: int, moving: int, ensemble: int) -> int:
    """How many episodes are answered in all: the end of the progress bar."""
    answered = episodes * (1 + has_both_forms(learner)) + moving
    answered += sum(controls.CONTROLS[name].episodes(episodes) for name in names)
    known = {setting(learner, "steps"), *([0] if "zero_steps" in names else [])} if ensemble == 1 else set()
    counts = with_own(CURVE, learner) if learner.episodic else []
    return answered + min(episodes, CURVE_EPISODES) * len(set(counts) - known)


def _over_steps(
    trained: Trained, tasks: Any, learner: Learner, settings: Settings, known: Sequence[Predictions]
) -> list[dict[str, Any]]:
    """The score of a learner after each number of inner steps; what is `known` already is not computed again."""
    if not learner.episodic:
        return []
    few = dataclasses.replace(settings, episodes=min(settings.episodes, CURVE_EPISODES))
    answered = {setting(one.learner, "steps"): one for one in known}
    curve = []
    for k in with_own(CURVE, learner):
        made = answered[k].first(few.episodes) if k in answered else predictions(trained, tasks, few, steps=k)
        with contextlib.suppress(NonFiniteError):  # more steps than in training may diverge: that point is left out
            curve.append((k, score_of(made)))
    return [{"steps": k, **Amount(score.mean, *score.ends).to_dict()} for k, score in curve]


def _write(folder: str | os.PathLike, name: str, plain: Mapping[str, Any]) -> None:
    """Write a file of the run, as the first rank only."""
    if ranks.first():
        files.write_json(Path(folder) / name, plain)


def _write_scores(
    folder: Path, trained: Trained, tasks: Any, steps: int | None, scores: list[Score], curve: list[dict[str, Any]]
) -> None:
    plain = {
        "scores": [score.to_dict() for score in scores],
        "steps": curve,
        "timing": adaptation_timing(trained, tasks, steps),
        "normalisation": normalisation_of(trained.learner),
        "theta": files.fingerprint(trained.theta),
        "machine": machine(),
    }
    files.write_json(folder / "scores.json", plain)
    path = folder / "protocol.json"
    known = files.read_json(path) if path.exists() else {}
    files.write_json(path, known | {"evaluation": [score.protocol.to_dict() for score in scores]})


def evaluate_instances(
    folder: str | os.PathLike,
    trained: Trained,
    tasks: Any,
    instances: Sequence[int] | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> InstanceAccuracy | None:
    """Accuracy at the n-th instance of a class, for each n in `instances`; writes the run's instances.json.

    Without `instances` it uses the default ones, and returns None and writes nothing where they cannot be measured:
    where the learner reads no streams, or where classes have too few examples. `settings` are those of
    `instance_accuracy`. In a process group every rank calls this, and the first one writes.

    Raises ConfigError or DataError where given `instances` cannot be measured.
    """
    if instances is None:
        if not has_instances(trained.learner, tasks):
            return None
        instances = INSTANCES
        try:
            with_instances(tasks, max(instances))
        except DataError:
            return None
    with counting_bar("streams", settings["episodes"], progress and ranks.first()) as count:
        accuracies = instance_accuracy(trained, tasks, instances=instances, progress=count, **settings)
    _write(folder, "instances.json", accuracies.to_dict())
    return accuracies


def _look_at_tasks(
    folder: str | os.PathLike, trained: Trained, tasks: Any, settings: Settings, made: Predictions | None
) -> None:
    """Write embeddings.json and calibration.json, each where the learner has the method for it.

    `made`: what the learner predicted for the test episodes, if with the settings of training.
    """
    source, few = source_of(tasks), min(settings.episodes, EMBEDDED)
    common = {"seed": settings.seed, "engine": settings.engine}
    if offers(trained.learner, "embed") and few >= FEWEST:
        # A task within one group, such as an alphabet, has a known fact that its embedding can be compared with.
        grouped = source.replace(grouped=True) if source.groups else None
        made = made.first(few) if made and grouped is None else None
        embeddings = task_embeddings(
            trained, grouped or source, episodes=few, made=made, metric=settings.metric, **common
        )
        _write(folder, "embeddings.json", embeddings.to_dict())
    if offers(trained.learner, "distribution") and source.ways is None and settings.episodes > 1:
        measured = interval_coverage(trained, source, episodes=min(settings.episodes, CALIBRATED), **common)
        _write(folder, "calibration.json", measured.to_dict())


def adaptation_timing(trained: Trained, tasks: Any, steps: int | None = None) -> dict[str, float]:
    """Median seconds to adapt to one task (`adapt_seconds`) and to answer its queries (`predict_seconds`), one task at
    a time. The first two of 12 tasks are not counted, and computation on an accelerator is waited for.
    """
    learner, theta = for_test(trained.learner, tasks, steps), trained.theta
    device, source = device_of(theta), source_of(tasks)
    adapting, answering = [], []
    with torch.no_grad():
        for i in range(12):
            drawn = moved(source.draw(1, seeds.generator(0, "timing", i), learner, theta), device)
            one, (support, query) = fitted(learner, unstack(drawn)[0])
            phi, seconds = timed(functools.partial(one.adapt, theta, support), device)
            adapting.append(seconds)
            answering.append(timed(functools.partial(one.predict, theta, phi, query.x), device)[1])
    return {"adapt_seconds": sorted(adapting[2:])[5], "predict_seconds": sorted(answering[2:])[5]}
