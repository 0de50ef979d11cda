"""What a training measures of itself as it runs: the lines of metrics.jsonl."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from typing import Any

from torch import Tensor

from quickstudy.base import seeds
from quickstudy.engine import agreement, mapping, ranks
from quickstudy.engine.watch import Watch
from quickstudy.episodes import Episodes, first_tasks, unstack
from quickstudy.errors import ConfigError, EngineWarning, NonFiniteError
from quickstudy.evaluation.metric import ACCURACY, MEAN_SQUARED_ERROR, Metric, find_metric, metric_for
from quickstudy.evaluation.predictions import Settings, predictions, score_of
from quickstudy.learner import Episode, Learner
from quickstudy.training.finishing import FEW, finished
from quickstudy.training.loop import Step
from quickstudy.training.opening import Session

LOG_EVERY = 20  # iterations per line of metrics.jsonl
SHOWN_TASKS = 4  # tasks whose training score is computed for that line
# The name of a metric in a line, and that of all others, so that files of these two stay what they were.
COLUMNS = {ACCURACY.name: "accuracy", MEAN_SQUARED_ERROR.name: "error"}
OTHER = "score"


def check_scores(session: Session, first: Episodes | None) -> None:
    """Score some tasks before the training, so that what cannot be scored is found before it, and not after a part.

    `first`: the first meta-batch. Raises ConfigError where the metric does not suit the answers or none is certain for
    validation, DataError where the learner cannot use the validation tasks.
    """
    settings = session.settings
    if first is not None and settings.metric is not None:
        _training_score(session, first)
    if session.val is not None:
        with seeds.seeded(settings.seed, "validation"), contextlib.suppress(NonFiniteError):
            score_of(predictions(session.trained, session.val, Settings(1, settings.seed, settings.metric, "loop")))


def line_of(session: Session, step: Step) -> dict[str, Any]:
    """The line of metrics.jsonl for this iteration; empty for most iterations."""
    settings, state = session.settings, session.state
    line: dict[str, Any] = {}
    last = step.iteration == settings.iterations
    validates = session.val is not None and (step.iteration % settings.validation_interval == 0 or last)
    if step.iteration % LOG_EVERY == 0 or validates or last:
        line = {"iteration": step.iteration, "loss": sum(state.window) / len(state.window)}
        line |= _training_score(session, step.episodes) if ranks.first() else {}
        line["seconds"] = round(state.timing["total"], 3)
        state.window.clear()
    if validates:
        line |= _validation_score(session)
    return line


def _training_score(session: Session, episodes: Episodes) -> dict[str, float]:
    """The metric on some training tasks, in the unit of the answers; nothing where no metric is certain."""
    metric, few = _metric(session, episodes), first_tasks(episodes, SHOWN_TASKS)
    if metric is None:
        return {}

    def score(learner: Learner, episode: Episode) -> Tensor:
        phi = learner.adapt(session.trained.theta, episode.support)
        return metric.of(learner.predict(session.trained.theta, phi, episode.query.x), episode.query.y)

    with seeds.seeded(0, "shown"):
        values = mapping.map_learner(score, session.learner, few)
    return {COLUMNS.get(metric.name, OTHER): float(values.mean()) * session.source.unit**metric.power}


def _metric(session: Session, episodes: Episodes) -> Metric | None:
    """The metric that was named, else that of the tasks; None for a pretraining learner, and where none is certain."""
    if not session.learner.episodic:
        return None
    if session.settings.metric is not None:
        return find_metric(session.settings.metric)
    try:
        return metric_for(session.learner, session.source.ways, unstack(first_tasks(episodes, 1))[0])
    except ConfigError:  # the answers can be scored in several ways
        return None


def _validation_score(session: Session) -> dict[str, float]:
    """The score on validation tasks. The state remembers theta where it is among the best."""
    settings, state = session.settings, session.state
    seed = settings.seed + 1_000_003
    if state.watch is None:
        state.watch = Watch(mapping.without_program(state.engine), seed, agreement.answers)
    engine = "loop" if state.watch.failed else state.watch.engine.name
    asked = Settings(settings.val_episodes, seed, settings.metric, engine, watch=state.watch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EngineWarning)  # a learner that trains with replay may not support vmap
        now = dataclasses.replace(session.trained, theta=finished(session, session.trained.theta, FEW))
        score = score_of(predictions(now, session.val, asked))
    state.remember(score.metric.sign * score.mean)
    return {"val": score.mean, "val_interval": score.interval}
