"""Which metric fits a loss: what is scored where the user names no metric, in one table.

    cross entropy, NLL, multi-margin                              accuracy
    binary cross entropy (of logits or not), soft margins         label accuracy: each label for itself
    squared error                                                 mean squared error
    absolute error, Huber, smooth L1                              mean absolute error
    any other                                                     the loss itself, on the queries of each task

Training is by the loss, so theta must not be chosen by a number that the loss does not care for: the squared error of
logits rises while their classes get better. Weights of classes or labels, label smoothing and reductions change the
loss, not the metric. Huber and smooth L1 are absolute errors where they matter, far from the truth, and in that form
they have the target's own unit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from quickstudy.engine.labels import OF_CLASSES, OF_LABELS, function_of
from quickstudy.episodes import Episode, are_classes
from quickstudy.errors import ConfigError
from quickstudy.evaluation.metric import (
    ACCURACY,
    LABEL_ACCURACY,
    MEAN_ABSOLUTE_ERROR,
    MEAN_SQUARED_ERROR,
    METRICS,
    PLAIN,
    Metric,
    accuracy,
    find_metric,
    in_shapes,
    label_accuracy,
)
from quickstudy.learner import Learner, setting

OF_VALUES = {
    F.mse_loss: MEAN_SQUARED_ERROR,
    F.l1_loss: MEAN_ABSOLUTE_ERROR,
    F.huber_loss: MEAN_ABSOLUTE_ERROR,
    F.smooth_l1_loss: MEAN_ABSOLUTE_ERROR,
}
FITTING: dict[Callable, Metric] = {
    **dict.fromkeys(OF_CLASSES, ACCURACY),
    **dict.fromkeys(OF_LABELS, LABEL_ACCURACY),
    **OF_VALUES,
}


def chosen_metric(asked: str | Metric | None, learner: Learner, ways: int | None, episode: Episode) -> Metric:
    """The metric that is asked for, by its name or as a value; None: the one that fits, see `metric_for`.

    The library's own metrics read outputs and labels as the learner's loss does. Raises ConfigError for a name that is
    none, and as `metric_for`.
    """
    return as_read(metric_for(learner, ways, episode) if asked is None else find_metric(asked), learner)


def as_read(metric: Metric, learner: Learner) -> Metric:
    """The metric, if it is the library's own, with outputs and labels read as the learner's loss does."""
    for reads in (accuracy, label_accuracy):
        if metric.of is reads:
            return dataclasses.replace(metric, of=functools.partial(reads, loss=setting(learner, "loss")))
    return metric


def metric_for(learner: Learner, ways: int | None, episode: Episode) -> Metric:
    """The metric that a learner and its tasks give where none is named. `episode` is one task.

    Class numbers [n] of tasks that declare `ways` give accuracy, whatever the loss. Else the metric is the one that
    fits the loss. A learner without a loss of its own, such as a neural process, gives accuracy for class numbers [n],
    and the mean squared error for values of one tensor.

    Raises ConfigError where these answers do not suit the loss, and where there is no loss that could tell.
    """
    metric = metric_by_kind(learner, ways, episode.query.y)
    if wrong := _wrong_values(function_of(setting(learner, "loss")), episode.query.y):
        raise _refusal(episode.query.y, wrong)
    return metric


def metric_by_kind(learner: Learner, ways: int | None, y: Any) -> Metric:
    """What `metric_for` gives for answers of this shape and type, without a look at the numbers: also under `vmap`."""
    loss = setting(learner, "loss")
    if are_classes(y) and (ways is not None or loss is None):
        return ACCURACY
    if loss is None:
        if isinstance(y, Tensor) and y.is_floating_point() and ways is None:
            return MEAN_SQUARED_ERROR
        raise _refusal(y, f"{type(learner).__name__} has no field `loss` that would say what they are")
    metric = FITTING.get(function_of(loss))
    if metric is not None and (wrong := _wrong_kind(function_of(loss), y)):
        raise _refusal(y, wrong)
    return metric or loss_itself(loss)


def loss_itself(loss: Callable) -> Metric:
    """A loss as a metric: its value on the queries of a task, in no unit; lower is better."""
    name = _name_of(loss)
    return Metric(f"{name} loss" if name in METRICS else name, False, PLAIN, loss)


def _name_of(loss: Any) -> str:
    inner = loss.func if isinstance(loss, functools.partial) else loss
    name = getattr(inner, "__name__", type(inner).__name__)
    return "loss" if name == "<lambda>" else name.strip("_").replace("_", " ")


def _wrong_kind(loss: Callable, y: Any) -> str | None:
    """Why answers of this type cannot be those of one of torch's losses; None where they can."""
    name = loss.__name__
    if not isinstance(y, Tensor):
        return f"{name} takes one tensor"
    if not y.is_floating_point():
        return None if loss in OF_CLASSES else f"{name} takes real numbers; give y as floats [n, d]"
    return f"{name} takes class numbers" if loss in OF_CLASSES and loss is not F.cross_entropy else None


def _wrong_values(loss: Any, y: Any) -> str | None:
    """Why real numbers cannot be probabilities of classes, or labels; None where they can, or need not be."""
    if not isinstance(y, Tensor) or not y.is_floating_point():
        return None
    if loss is F.cross_entropy and not _are_probabilities(y):
        return (
            "cross_entropy takes class numbers, or probabilities of two classes or more, which sum to 1; for values "
            "train with loss=qs.mse_loss"
        )
    labels = OF_LABELS.get(loss)
    if labels and not labels.low <= float(y.min()) <= float(y.max()) <= 1:
        return f"{loss.__name__} takes labels from {labels.low:g} to 1"
    return None


def _are_probabilities(y: Tensor) -> bool:
    return y.dim() > 1 and y.shape[1] > 1 and float(y.min()) >= 0 and bool(((y.sum(1) - 1).abs() < 1e-3).all())


def _refusal(y: Any, reason: str) -> ConfigError:
    names = " or ".join(f"metric={one.name!r}" for one in _suiting(y))
    return ConfigError(
        f"no metric is certain for these answers (y: {in_shapes(y)}): {reason}. Say what to score: "
        f"{names + ', or ' if names else ''}metric=qs.Metric(...), one of your own."
    )


def _suiting(y: Any) -> tuple[Metric, ...]:
    if not isinstance(y, Tensor):
        return ()
    return (MEAN_SQUARED_ERROR, MEAN_ABSOLUTE_ERROR) if y.is_floating_point() else (ACCURACY,)
