"""How good is a learner? Its score on unseen tasks, with interval, protocol and controls."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from quickstudy.errors import NonFiniteError
from quickstudy.evaluation.controls import CONTROLS, chosen, control
from quickstudy.evaluation.ensemble import mean_answer
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.metric_of_loss import as_read, metric_by_kind
from quickstudy.evaluation.passes import BLOCK, protocol_of, sample_block, sample_blocks, tasks_of
from quickstudy.evaluation.predictions import Predictions, Settings, predicted, predictions, score_of
from quickstudy.evaluation.score import Score
from quickstudy.learner import Episode, Learner, Theta, setting

DIVERGED = "it diverged, so some of its answers are not finite"

__all__ = [
    "BLOCK",
    "control_predictions",
    "episode_score",
    "evaluate",
    "protocol_of",
    "sample_block",
    "sample_blocks",
    "tasks_of",
]


def evaluate(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 600,
    seed: int = 1,
    steps: int | None = None,
    transductive: bool | None = None,
    ensemble: int = 1,
    controls: Sequence[str] | None = (),
    metric: str | Metric | None = None,
    engine: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Score:
    """The score of a trained learner on test tasks.

    trained        has `.learner` and `.theta`
    episodes       how many. Test episode i depends only on (seed, i), so every learner gets the same episodes and
                   scores can be compared in pairs
    steps          inner steps at test, if other than in training
    transductive   None keeps the network's own setting; False asks for the learner's form that answers each query by
                   itself, and batch normalisation then takes the support set's statistics
    ensemble       this many thetas, those with the best validation scores, learn each task, and their answers (class
                   probabilities or values) are averaged. This needs training with `keep`
    controls       names from `controls.CONTROLS`; None for all that make sense, and `left_out` of the score then says
                   why others could not be run. They use the best theta only; a dear one answers the first episodes
                   only, see `Control.episodes`
    metric         what is counted: a name in `metric.METRICS`, or a `Metric`; None: what fits the learner's loss, see
                   `metric_of_loss`, or the loss itself. Errors are in the target's own unit
    engine         "auto" times the engines
    progress       is called with the number of episodes done since the last call

    In a process group every rank makes the same call: the ranks divide the episodes, and all get the score.

    Raises ConfigError where a setting does not fit the learner, where no metric is certain for the answers, and where
    training kept fewer thetas than the ensemble needs, DataError where the learner cannot use the tasks, NonFiniteError
    where an output is not finite, and RankError where other ranks cannot be reached.
    """
    names, hindered = chosen(trained.learner, tasks, controls)
    settings = Settings(episodes, seed, metric, engine, progress)
    own = predictions(trained, tasks, settings, steps=steps, transductive=transductive, ensemble=ensemble)
    score = score_of(own)
    made = {name: control_predictions(name, own, trained.theta, tasks, settings) for name in names}
    return with_controls(score, made, hindered)


def control_predictions(name: str, own: Predictions, theta: Theta, tasks: Any, settings: Settings) -> Predictions:
    """The answers of the control `name` of a learner to its test episodes; of a dear control to the first ones only.

    `own` are the learner's own predictions on `tasks` under these settings.
    """
    learner, theta, source = control(name, own.learner, theta, tasks)
    few = CONTROLS[name].episodes(settings.episodes)
    tried = own.engine if type(learner) is type(own.learner) else None
    asked = dataclasses.replace(settings, episodes=few, metric=own.metric, tried=tried)
    return predicted(learner, (theta,), source, asked).named(name)


def with_controls(score: Score, made: dict[str, Predictions], hindered: Mapping[str, str]) -> Score:
    """The score with those of its controls; `hindered`: why others could not be run.

    One that diverged is left out too, with a warning.
    """
    found, left_out = {}, dict(hindered)
    for name, one in made.items():
        try:
            found[name] = score_of(one)
        except NonFiniteError:
            left_out[name] = DIVERGED
            warnings.warn(f"the control {name!r} diverged on these tasks and is left out", stacklevel=3)
    return dataclasses.replace(score, controls=found, left_out=left_out)


def episode_score(learner: Learner, theta: Theta, episode: Episode) -> Tensor:
    """What fits the learner's loss, such as the accuracy on the query set: a scalar, also under `vmap`."""
    metric = as_read(metric_by_kind(learner, setting(learner, "ways"), episode.query.y), learner)
    return metric.of(mean_answer(learner, (theta,), episode), episode.query.y)
