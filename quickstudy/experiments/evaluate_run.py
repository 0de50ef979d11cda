"""Run folders: load the learner that was trained there, evaluate it, and keep what a report needs.

Training writes config.json, protocol.json, metrics.jsonl, checkpoint.safetensors, timing.json and learner.qs, and with
`tensorboard` also events.out.tfevents.*. Evaluation adds scores.json and examples.safetensors. For learners that can
fill them it also adds answers.json (classes), movement.json (inner steps), embeddings.json (a vector for a task),
calibration.json (a distribution of values) and instances.json (streams). A report adds report.html.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import files, seeds
from quickstudy.base.machine import machine
from quickstudy.base.progress import counting_bar
from quickstudy.engine import ranks
from quickstudy.engine.fitting import fitted, for_test, is_transductive, normalisation_of
from quickstudy.episodes import unstack
from quickstudy.errors import DataError, RunError
from quickstudy.evaluation import controls
from quickstudy.evaluation.measures.confusion import told_of
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
from quickstudy.evaluation.measures.probabilities import classification_calibration
from quickstudy.evaluation.score import Score
from quickstudy.evaluation.scoring import evaluate
from quickstudy.learner import Episode, Learner, offers
from quickstudy.tasks.tabular.columns import described
from quickstudy.trained.load import load
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.reading import in_units
from quickstudy.trained.trained import Trained

CURVE = (0, 1, 2, 3, 5, 10)  # inner steps of the curve in the report
CURVE_EPISODES = 200
MOVEMENT_EPISODES = 100
EMBEDDED = 300  # test tasks in the plot of embeddings
CALIBRATED = 200
PICTURED = 3  # test episodes kept for the report


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
    engine: str = "auto",
    progress: bool = True,
) -> list[Score]:
    """Score a run on test tasks and write scores.json and examples.safetensors into its folder; returns the scores.

    `episodes` test episodes are drawn from `tasks` with `seed`; `steps` is the number of inner steps, None for that of
    training. The first score carries the controls `names`, by default all that make sense. A transductive learner gets
    a second score, for which queries are normalised with the support set's statistics.

    Episodic learners with inner steps get a curve over steps, and movement.json where the steps move the layers of a
    model. Learners with an `embed` method get embeddings.json, those with a distribution of values calibration.json.
    Calibration and confusion of answers to classes are in answers.json.

    With `ensemble` above 1, that many thetas answer together for the scores and answers.json; everything else uses the
    best theta alone. In a process group every rank calls this with the same arguments: the ranks share the work of the
    scores, and the first rank does and writes the rest.
    """
    learner = for_test(trained.learner, tasks, steps)
    names = controls.available(learner, tasks) if names is None else names
    both = is_transductive(learner)
    curve = _with_own(CURVE, learner) if learner.episodic else ()
    few = min(episodes, CURVE_EPISODES)
    moved = min(episodes, MOVEMENT_EPISODES) if moves_layers(trained, tasks, steps) else 0
    classes = getattr(tasks, "ways", None) is not None
    todo = episodes * (1 + len(names) + both + classes) + few * len(curve) + moved
    with counting_bar("evaluating", todo, progress and ranks.first()) as count:
        common = {"seed": seed, "engine": engine, "progress": count}
        full = {"episodes": episodes, "steps": steps, "ensemble": ensemble, **common}
        scores = [evaluate(trained, tasks, controls=names, **full)]
        if both:
            scores.append(evaluate(trained, tasks, transductive=False, **full))
        steps_curve = [(k, evaluate(trained, tasks, episodes=few, steps=k, **common)) for k in curve]
        if not ranks.first():  # the shared work is done; the first rank does the rest
            return scores
        if classes:
            answers = classification_calibration(trained, tasks, **full)
            files.write_json(Path(folder) / "answers.json", answers.to_dict())
        if moved:
            movement = layer_movement(trained, tasks, episodes=moved, seed=seed, steps=steps, progress=count)
            files.write_json(Path(folder) / "movement.json", movement.to_dict())
    plain = {
        "scores": [score.to_dict() for score in scores],
        "steps": [{"steps": k, "mean": s.mean, "interval": s.interval} for k, s in steps_curve],
        "timing": adaptation_timing(trained, tasks, steps),
        "normalisation": normalisation_of(learner),
        "theta": files.fingerprint(trained.theta),
        "machine": machine(),
    }
    files.write_json(Path(folder) / "scores.json", plain)
    _add_to_protocol(Path(folder) / "protocol.json", scores)
    _keep_examples(Path(folder), trained, tasks, seed, steps, episodes)
    _look_at_tasks(Path(folder), trained, tasks, seed, episodes)
    return scores


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
    `instance_accuracy`. Raises ConfigError or DataError where given `instances` cannot be measured.
    """
    if instances is None:
        if not has_instances(trained.learner, tasks):
            return None
        instances = INSTANCES
        try:
            with_instances(tasks, max(instances))
        except DataError:
            return None
    with counting_bar("streams", settings["episodes"], progress) as count:
        found = instance_accuracy(trained, tasks, instances=instances, progress=count, **settings)
    files.write_json(Path(folder) / "instances.json", found.to_dict())
    return found


def _look_at_tasks(folder: Path, trained: Trained, tasks: Any, seed: int, episodes: int) -> None:
    """Write embeddings.json and calibration.json, each where the learner has the method for it."""
    few = min(episodes, EMBEDDED)
    if offers(trained.learner, "embed") and few >= FEWEST:
        # A task within one group, such as an alphabet, has a known fact that its embedding can be compared with.
        source = tasks.replace(grouped=True) if getattr(tasks, "groups", None) else tasks
        found = task_embeddings(trained, source, episodes=few, seed=seed)
        files.write_json(folder / "embeddings.json", found.to_dict())
    if offers(trained.learner, "distribution") and getattr(tasks, "ways", None) is None and episodes > 1:
        measured = interval_coverage(trained, tasks, episodes=min(episodes, CALIBRATED), seed=seed)
        files.write_json(folder / "calibration.json", measured.to_dict())


def _add_to_protocol(path: Path, scores: list[Score]) -> None:
    known = files.read_json(path) if path.exists() else {}
    files.write_json(path, known | {"evaluation": [score.protocol.to_dict() for score in scores]})


def adaptation_timing(trained: Trained, tasks: Any, steps: int | None = None) -> dict[str, float]:
    """Median seconds to adapt to one task (`adapt_seconds`) and to answer its queries (`predict_seconds`), one task at
    a time. The first two of 12 tasks are not counted.
    """
    learner, theta = for_test(trained.learner, tasks, steps), trained.theta
    adapting, answering = [], []
    with torch.no_grad():
        for i in range(12):
            one, (support, query) = fitted(learner, unstack(tasks.sample(1, seeds.generator(0, "timing", i)))[0])
            began = time.perf_counter()
            phi = one.adapt(theta, support)
            adapted = time.perf_counter()
            one.predict(theta, phi, query.x)
            adapting.append(adapted - began)
            answering.append(time.perf_counter() - adapted)
    return {"adapt_seconds": sorted(adapting[2:])[5], "predict_seconds": sorted(answering[2:])[5]}


def _with_own(counts: tuple[int, ...], learner: Learner) -> list[int]:
    """The numbers of inner steps to show, including the learner's own; empty for learners without inner steps."""
    own = getattr(learner, "steps", None)
    return [] if own is None else sorted({*counts, own})


def _keep_examples(folder: Path, trained: Trained, tasks: Any, seed: int, steps: int | None, episodes: int) -> None:
    """Write a few test episodes with the learner's answers, so that a report does not need the data set."""
    whole = for_test(trained.learner, tasks, steps)
    tensors: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    for i in range(min(episodes, PICTURED)):
        drawn = unstack(tasks.sample(1, seeds.generator(seed, "test", i)))[0]
        learner, episode = fitted(whole, drawn)
        told.append(told_of(tasks, seeds.generator(seed, "test", i), whole, learner, drawn) | _rows(trained, drawn))
        with torch.no_grad():
            phi = learner.adapt(trained.theta, episode.support)
            output = learner.predict(trained.theta, phi, episode.query.x)
        parts = {"support.x": episode.support.x, "support.y": episode.support.y}
        parts |= {"query.x": episode.query.x, "query.y": episode.query.y, "output": output}
        if output.is_floating_point() and episode.query.y.is_floating_point() and episode.query.x.shape[1:] == (1,):
            parts |= _curves(trained, tasks, episode, _with_own((0, 1, 10), learner))
        if episode.query.y.is_floating_point():
            answers = ("support.y", "query.y", "output", *(name for name in parts if name.startswith("curve.")))
            parts |= {name: in_units(trained.preprocess, parts[name]) for name in answers}
        tensors |= {f"{i}.{name}": value for name, value in parts.items()}
    files.write_tensors(folder / "examples.safetensors", "examples", tensors, {"episodes": len(told), "told": told})


def _rows(trained: Trained, episode: Episode) -> dict[str, Any]:
    """The rows of an episode in words, where its examples are rows of a table."""
    known, (support, query) = trained.preprocess.get("columns"), episode
    if not known:
        return {}
    told = described(known, torch.cat([support.x, query.x]).cpu().numpy())
    return {"support": told[: len(support.x)], "query": told[len(support.x) :]}


def _curves(trained: Trained, tasks: Any, episode: Episode, counts: list[int]) -> dict[str, Tensor]:
    """The adapted function of one number on a grid over its range, after each number of inner steps in `counts`."""
    x = torch.cat([episode.support.x, episode.query.x])
    grid = torch.linspace(float(x.min()), float(x.max()), 200)[:, None]
    found = {"grid": grid}
    for k in counts or [None]:
        learner = for_test(trained.learner, tasks, k)
        with torch.no_grad():
            phi = learner.adapt(trained.theta, episode.support)
            found[f"curve.{'adapted' if k is None else k}"] = learner.predict(trained.theta, phi, grid)
    return found
