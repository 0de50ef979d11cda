"""Ensembles of checkpoints: several thetas of one training each learn the task, and their answers are averaged.

    classes    p(y | x) = 1/n sum_i softmax(f_i(x)),    f_i(x) = predict(theta_i, adapt(theta_i, support), x)
    values     y(x)     = 1/n sum_i f_i(x)

Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, https://arxiv.org/abs/1810.09502: the five best on
validation. Probabilities are averaged, not logits: logits have no common scale, so the largest would dominate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.learner import Episode, Learner, Theta


def best_thetas(trained: Any, count: int) -> tuple[Theta, ...]:
    """The `count` best thetas that training kept, best first. Raises ConfigError where it kept fewer."""
    if count < 1:
        raise ConfigError(f"ensemble must be at least 1, got {count}.")
    kept = getattr(trained, "best", ()) or (trained.theta,)
    if len(kept) < count:
        raise ConfigError(
            f"an ensemble of {count} needs as many checkpoints, but training kept {len(kept)}. Ask for at most "
            f"{len(kept)}, or train with keep={count} (--keep {count}), validation tasks and at least {count} "
            "validations (val_every)."
        )
    return kept[:count]


def mean_answer(learner: Learner, thetas: Sequence[Theta], episode: Episode) -> Tensor:
    """The mean answer to the query set: class probabilities [m, ways] in float64, or values [m, d].

    With a single theta the learner's output is returned unchanged, as logits if the learner gives logits.
    """
    outputs = [learner.predict(t, learner.adapt(t, episode.support), episode.query.x) for t in thetas]
    if len(outputs) == 1:
        return outputs[0]
    stacked = torch.stack(outputs)
    if not episode.query.y.is_floating_point():
        # In float32 the probability of a confident answer is exactly 1, so two contradicting ones would always tie.
        stacked = stacked.softmax(-1, dtype=torch.float64)
    return stacked.mean(0)
