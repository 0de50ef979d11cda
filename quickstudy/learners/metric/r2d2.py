"""R2-D2: the head is ridge regression on learned features, solved in closed form for each task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Encoder, Episode, Learner, Loss, Theta, Ways
from quickstudy.learners.metric.ridge import ridge
from quickstudy.learners.parts.distance import class_means
from quickstudy.learners.parts.encoding import embedding, known_statistics, one_hot
from quickstudy.nn.parameters import beside, parameters, part

PREFIX = "r2d2."  # prefix in theta of everything but the encoder's parameters


class Head(NamedTuple):
    weight: Tensor  # [d, ways], or [d, values] for regression
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class R2D2(Learner):
    """Meta-learn features f with which ridge regression learns new tasks well.

        W = argmin |Z W - Y|^2 + lambda |W|^2 = Z^T (Z Z^T + lambda I)^-1 Y     Z = f(support), Y one-hot
        output(x) = alpha f(x) W + beta

    The solution is differentiated exactly. lambda, alpha and beta are learned; theta keeps the logarithms of the first
    two, so that they are positive. Regression works too (`ways=None`): Y then holds the values. No part of theta
    belongs to a class, so `ways` may differ between training and test.

    Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable Closed-form Solvers, ICLR 2019,
    https://arxiv.org/abs/1805.08136

    >>> import quickstudy as qs
    >>> learner = qs.R2D2(qs.nn.conv4(channels=1, downsample="pool"), ways=5)
    >>> regression = qs.R2D2(qs.nn.mlp(1), qs.mse_loss, ways=None, lam=0.1, scale=1.0)

    Deviations from the paper: beta is used for regression only, because one number added to all logits changes no class
    probability; features come from the last layer only, whereas the paper joins those of the last two. lambda starts at
    1 and alpha at 10; the settings of the authors' code (https://github.com/bertinetto/r2d2) keep lambda at 50 and
    start alpha at 10 on Omniglot and CIFAR-FS, at 1e-4 on mini-ImageNet. The outer optimizer is Adam at 1e-3, theirs at
    5e-3, halved every 2,000 episodes.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, d]
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    ways: Ways | None = 5  # classes in a task; None for regression
    lam: float = 1.0  # initial value of the learned weight of |W|^2
    scale: float = 10.0  # initial value of the learned factor of the output

    def __post_init__(self) -> None:
        if not (self.lam > 0 and self.scale > 0):
            raise ConfigError(f"lam and scale must be above 0, got lam={self.lam} and scale={self.scale}.")

    def init(self) -> Theta:
        start = {"log_lam": torch.tensor(math.log(self.lam)), "log_scale": torch.tensor(math.log(self.scale))}
        if self.ways is None:
            start["shift"] = torch.tensor(0.0)
        return beside(parameters(self.encoder), PREFIX, start)

    def adapt(self, theta: Theta, support: Batch) -> Head:
        z = embedding(self.encoder, theta, support.x)
        y = support.y if self.ways is None else one_hot(support.y, self.ways, z)
        weight = ridge(z, y, theta[f"{PREFIX}log_lam"].exp())
        return Head(weight, known_statistics(self.encoder, theta, support.x))

    def predict(self, theta: Theta, phi: Head, x: Tensor) -> Tensor:
        learned = part(theta, PREFIX)
        output = learned["log_scale"].exp() * (embedding(self.encoder, theta, x, phi.statistics) @ phi.weight)
        return output + learned["shift"] if "shift" in learned else output

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means of the features [d]; for regression the solution W [d * values]."""
        if self.ways is None:
            return self.adapt(theta, support).weight.flatten()
        return class_means(embedding(self.encoder, theta, support.x), support.y, self.ways).mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)
