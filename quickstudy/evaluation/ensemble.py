"""Ensembles of checkpoints: several thetas of one training each learn the task, and their answers are averaged.

    classes    p(y | x) = 1/n sum_i softmax(f_i(x)),    f_i(x) = predict(theta_i, adapt(theta_i, support), x)
    labels     p(y | x) = 1/n sum_i sigmoid(f_i(x)),    each there or not, where the loss reads f as logits
    values     y(x)     = 1/n sum_i f_i(x)

Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, https://arxiv.org/abs/1810.09502: the five best on
validation. Probabilities are averaged, not logits: logits have no common scale, so the largest would dominate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.engine.labels import class_axis, labelled, takes_classes
from quickstudy.errors import ConfigError
from quickstudy.learner import Episode, Learner, Theta, setting


def best_thetas(trained: Any, count: int) -> tuple[Theta, ...]:
    """The `count` best thetas that training kept, best first. Raises ConfigError where it kept fewer."""
    if count < 1:
        raise ConfigError(f"ensemble must be at least 1, got {count}.")
    kept = getattr(trained, "best", ()) or (trained.theta,)  # any object with learner and theta will do
    if len(kept) < count:
        raise ConfigError(
            f"an ensemble of {count} needs as many checkpoints, but training kept {len(kept)}. Ask for at most "
            f"{len(kept)}, or train with keep={count} (--keep {count}), validation tasks and at least {count} "
            "validations (val_every)."
        )
    return kept[:count]


def mean_answer(learner: Learner, thetas: Sequence[Theta], episode: Episode) -> Any:
    """The mean answer to the query set: for classes the log of the mean probabilities [m, ways, ...], in float64.

    The classes stand where `class_axis` finds them. Of labels that are each there or not it is the logit of the mean
    probability. Values [m, d] are averaged as they are. Where the tasks have several targets, each part of the output
    is averaged as the target at its place. With a single theta the learner's output is returned unchanged.

    Raises ConfigError where the output is not nested as the targets are.
    """
    outputs = [learner.predict(t, learner.adapt(t, episode.support), episode.query.x) for t in thetas]
    if len(outputs) == 1:
        return outputs[0]
    (*flat,), structures = zip(*map(pytree.tree_flatten, outputs), strict=True)
    targets, structure = pytree.tree_flatten(episode.query.y)
    if structures[0] != structure:
        raise ConfigError(
            f"an ensemble averages outputs that are nested as the targets are. The targets are {structure}, the output "
            f"of {type(learner).__name__} is {structures[0]}. Evaluate it without `ensemble`."
        )
    loss = setting(learner, "loss")
    mean = [_mean(torch.stack(parts), y, loss) for parts, y in zip(zip(*flat, strict=True), targets, strict=True)]
    return pytree.tree_unflatten(mean, structure)


def _mean(outputs: Tensor, y: Tensor, loss: Any) -> Tensor:
    """The mean of outputs [n, m, ...] to queries with targets y [m, ...]."""
    # In float32 the probability of a confident answer is exactly 1, so two contradicting ones would always tie.
    if y.is_floating_point() and (labels := labelled(loss)) and labels.logits:
        yes, no = (F.logsigmoid(sign * outputs.double()).logsumexp(0) for sign in (1, -1))
        return yes - no
    soft = y.is_floating_point() and takes_classes(loss)  # class probabilities, of the output's shape
    axis = 1 if soft else None if y.is_floating_point() else class_axis(outputs[0], y, loss)
    if axis is None:
        return outputs.mean(0)
    log_p = outputs.movedim(0, -1).log_softmax(axis if axis > 0 else -2, dtype=torch.float64)
    return log_p.logsumexp(-1) - math.log(len(outputs))
