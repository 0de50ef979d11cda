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
from quickstudy.evaluation.metric import ACCURACY, MEAN_SQUARED_ERROR, Metric
from quickstudy.evaluation.metric_of_loss import chosen_metric
from quickstudy.evaluation.predictions import Settings, predictions, score_of
from quickstudy.learner import Episode, Learner
from quickstudy.training.budget import OWN
from quickstudy.training.finishing import finished
from quickstudy.training.loop import Step
from quickstudy.training.opening import Session

LOG_EVERY = 20  # iterations per line of metrics.jsonl
SHOWN_TASKS = 4  # tasks whose training score is computed for that line
# The name of a metric in a line, and that of all others, so that files of these two stay what they were.
COLUMNS = {ACCURACY.name: "accuracy", MEAN_SQUARED_ERROR.name: "error"}
OTHER = "score"


def with_metric(session: Session, first: Episodes | None) -> Session:
    """The session with the one metric of its curve and its validation, by which some tasks have been scored.

    So what cannot be scored is found before the training, and not after a part of it. `first`: the first meta-batch.
    Raises ConfigError where the metric does not suit the answers or none is certain for validation, DataError where
    the learner cannot use the validation tasks.
    """
    settings = session.settings
    if first is not None:
        session = dataclasses.replace(session, metric=_metric(session, first))
        if settings.metric is not None:
            _training_score(session, first)
    if session.val is None:
        return session
    asked = Settings(1, settings.seed, session.metric or settings.metric, "loop")
    with seeds.seeded(settings.seed, "validation"):
        made = predictions(session.trained, session.val, asked)
        with contextlib.suppress(NonFiniteError):
            score_of(made)
    return dataclasses.replace(session, metric=made.metric)


def line_of(session: Session, step: Step, validates: bool) -> dict[str, Any]:
    """The line of metrics.jsonl for this iteration, after which a validation is due or not; empty for most."""
    state = session.state
    line: dict[str, Any] = {}
    if step.iteration % LOG_EVERY == 0 or validates or session.share == 1:
        line = {"iteration": step.iteration, "loss": sum(state.window) / len(state.window)}
        line |= _training_score(session, step.episodes) if ranks.first() else {}
        line["seconds"] = round(state.timing["total"], 3)
        line |= {OWN: round(state.timing[OWN], 3)} if session.budget else {}
        state.window.clear()
    if validates:
        line |= _validation_score(session)
    return line


def _training_score(session: Session, episodes: Episodes) -> dict[str, float]:
    """The metric on some training tasks, in the unit of the answers; nothing where no metric is certain."""
    metric, few = session.metric, first_tasks(episodes, SHOWN_TASKS)
    if metric is None or not session.learner.episodic:
        return {}

    def score(learner: Learner, episode: Episode) -> Tensor:
        phi = learner.adapt(session.trained.theta, episode.support)
        return metric.of(learner.predict(session.trained.theta, phi, episode.query.x), episode.query.y)

    with seeds.seeded(0, "shown"):
        values = mapping.map_learner(score, session.learner, few)
    return {COLUMNS.get(metric.name, OTHER): float(values.mean()) * session.source.unit**metric.power}


def _metric(session: Session, episodes: Episodes) -> Metric | None:
    """The metric that was named, else what fits; None for a pretraining learner, and where none is certain."""
    if not session.learner.episodic:
        return None
    one, asked = unstack(first_tasks(episodes, 1))[0], session.settings.metric
    try:
        return chosen_metric(asked, session.learner, session.source.ways, one)
    except ConfigError:
        if asked is not None or session.val is not None:
            raise
        return None  # the curve shows the loss


def _validation_score(session: Session) -> dict[str, float]:
    """The score on validation tasks. The state remembers theta where it is among the best."""
    settings, state = session.settings, session.state
    seed = settings.seed + 1_000_003
    if state.watch is None:
        state.watch = Watch(mapping.without_program(state.engine), seed, agreement.answers)
    engine = "loop" if state.watch.failed else state.watch.engine.name
    asked = Settings(settings.val_episodes, seed, session.metric, engine, watch=state.watch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EngineWarning)  # a learner that trains with replay may not support vmap
        now = dataclasses.replace(session.trained, theta=finished(session, session.trained.theta, few=True))
        score = score_of(predictions(now, session.val, asked))
    state.remember(score.metric.sign * score.mean)
    ends = {"val_interval": score.interval, "val_low": score.low, "val_high": score.high}
    return {"val": score.mean} | ends
