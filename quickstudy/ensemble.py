"""Ensembles of checkpoints: several thetas of one training learn the task, each on its own; their answers are averaged.

    classes    p(y | x) = 1/n sum_i softmax(f_i(x)),    f_i(x) = predict(theta_i, adapt(theta_i, support), x)
    values     y(x)     = 1/n sum_i f_i(x)

Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, https://arxiv.org/abs/1810.09502: the five best on
validation. The mean is that of probabilities: logits have no common scale, and the largest would outvote the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.learner import Episode, Learner, Theta


def best_thetas(trained: Any, count: int) -> tuple[Theta, ...]:
    """The `count` best thetas that training kept, best first. Raises ConfigError when it kept fewer."""
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

    One theta alone answers as it is, with logits where the learner gives them.
    """
    outputs = [learner.predict(t, learner.adapt(t, episode.support), episode.query.x) for t in thetas]
    if len(outputs) == 1:
        return outputs[0]
    stacked = torch.stack(outputs)
    if not episode.query.y.is_floating_point():
        # In float32 a sure answer is 1 exactly: two that contradict each other would tie, however sure each of them is.
        stacked = stacked.softmax(-1, dtype=torch.float64)
    return stacked.mean(0)
