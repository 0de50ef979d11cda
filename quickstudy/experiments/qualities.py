"""What a comparison tells of a learner besides its score: answers before any label, and whether it is calibrated."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from quickstudy.base import trees
from quickstudy.base.seeds import generator
from quickstudy.engine import fitting
from quickstudy.engine.fitting import device_of, fitted, for_test
from quickstudy.episodes import moved, unstack
from quickstudy.errors import ConfigError
from quickstudy.evaluation.measures.intervals import interval_coverage
from quickstudy.evaluation.measures.probabilities import classification_calibration
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.score import Score
from quickstudy.evaluation.scoring import evaluate
from quickstudy.learner import Learner, offers, takes
from quickstudy.tasks.changed import ChangedSupport, without_support
from quickstudy.tasks.source import source_of
from quickstudy.tasks.tabular.groups import GroupTasks
from quickstudy.trained.trained import Trained

CALIBRATED = 100  # test episodes for the calibration of probabilities and intervals


def inductive(trained: Trained) -> Trained:
    """The same learner in the form that answers each query by itself. Raises ConfigError where it has none."""
    return dataclasses.replace(trained, learner=fitting.inductive(trained.learner))


def check_inductive(learner: Learner, tasks: Any) -> None:
    """Refuse a learner that cannot answer each query by itself.

    Raises ConfigError where it declares so, and where it is seen in a task.
    """
    learner = for_test(fitting.inductive(learner), tasks)
    theta = learner.init()
    drawn = source_of(tasks).draw(1, generator(0, "inductive"), learner, theta)
    fitting.check_episodes(learner, theta, drawn)
    if fitting.shares_queries(learner, theta, drawn):
        raise ConfigError(
            f"the answer of {type(learner).__name__} to a query changes with the other queries, but a comparison is of "
            "answers to one query at a time. If its network mixes the rows of a batch, let it normalise by qs.nn.norm."
        )


def unlabelled(trained: Trained, tasks: Any, episodes: int, metric: str | Metric | None = None) -> Score | None:
    """The score of answers without a support set; None where it does not exist. `metric` is as in `evaluate`.

    It exists for regression and for classes that are the same in all tasks, where the learner can answer without
    support examples or its inner steps alone use the support answers.
    """
    trained = inductive(trained)
    learner = trained.learner
    if source_of(tasks).ways and not isinstance(tasks, GroupTasks):
        return None  # only the support set defines the classes of such a task
    if learner.from_nothing:
        return evaluate(trained, ChangedSupport(tasks, without_support), episodes=episodes, metric=metric)
    if takes(learner, "steps") and _ignores_answers(for_test(learner, tasks, steps=0), trained, tasks):
        return evaluate(trained, tasks, episodes=episodes, steps=0, metric=metric)
    return None


def _ignores_answers(learner: Learner, trained: Trained, tasks: Any) -> bool:
    """Whether predictions ignore the support answers. They do not where the start is made from them, as in LEO."""
    drawn = source_of(tasks).draw(1, generator(0, "answers"), learner, trained.theta)
    one, (support, query) = fitted(learner, unstack(moved(drawn, device_of(trained.theta)))[0])
    with torch.no_grad():
        outputs = [
            one.predict(trained.theta, one.adapt(trained.theta, support._replace(y=y)), query.x)
            for y in (support.y, trees.mapped(lambda t: t.flip(0), support.y))
        ]
    return all(torch.equal(a, b) for a, b in zip(*map(trees.tensors, outputs), strict=True))


def calibration_error(trained: Trained, tasks: Any, episodes: int) -> float | None:
    """Expected calibration error for classes, debiased; for values, how far 90 % intervals are from 90 % coverage.

    None for a single task of classes, and for values without a predicted distribution.
    """
    trained, few = inductive(trained), min(episodes, CALIBRATED)
    if source_of(tasks).ways:
        debiased = classification_calibration(trained, tasks, episodes=few).debiased_ece
        return None if debiased is None else max(0.0, debiased)  # chance may take that of a calibrated one below 0
    if not offers(trained.learner, "distribution"):
        return None
    measured = interval_coverage(trained, tasks, episodes=few, levels=(0.9,)).sizes[-1]
    return abs(measured.coverage[0].mean - 0.9)
