"""Baseline++: pretrain with a cosine classifier, then fit another one to the new task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from quickstudy.episodes import joined
from quickstudy.errors import ConfigError
from quickstudy.inner.descent import check_steps, descend
from quickstudy.learner import Batch, Episode, Learner, Network, Theta, Ways
from quickstudy.learners.parts.distance import class_means, cosines
from quickstudy.learners.transfer.pretrained import features
from quickstudy.nn.parameters import last_linear, parameters
from quickstudy.nn.statistics import statistics


class Directions(NamedTuple):
    weight: Tensor  # [ways, d], one for each class; their lengths do not matter
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class BaselinePP(Learner):
    """A class is a direction in feature space, in pretraining and in the new task.

        logits_k(x) = s cos(w_k, f(x))
        pretraining   f and the w_k of all training classes, by cross entropy
        adaptation    w_k starts as the mean of f(x) / |f(x)| over class k, and descends on the support set's loss

    The model ends in a linear layer with a row per *training class* (its bias is neither used nor in theta); f is the
    input of that layer. Pretraining uses labels of the whole pool (`tasks.pooled()`, which `qs.train` asks for).

    Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification, ICLR 2019,
    https://arxiv.org/abs/1904.04232

    >>> import quickstudy as qs
    >>> learner = qs.BaselinePP(qs.nn.conv4(channels=1, classes=1028), ways=5)

    Deviations from the paper: new directions start from class means (Qi, Brown, Lowe 2018), whereas the paper draws
    them at random; `steps` steps of plain gradient descent at 0.1 on the whole support set, instead of 100 passes in
    minibatches of 4 at 0.01 with momentum 0.9 and weight decay 0.001. s is fixed and 10 in both stages; the authors'
    code (https://github.com/wyharveychen/CloserLookFewShot) has 2 for up to 200 classes, so in every new task, and 10
    beyond, and learns the length of each w_k besides.
    """

    model: Network  # ends in a linear layer, the head
    ways: Ways = 5  # classes in a new task
    scale: float = 10.0  # factor of the cosines
    lr: float = 0.1  # learning rate on the support set
    steps: int = 100  # gradient steps on the support set

    episodic: ClassVar[bool] = False  # trains on pooled examples, not on episodes

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not self.scale > 0:
            raise ConfigError(f"scale must be above 0, got {self.scale}.")
        last_linear(self.model)

    def init(self) -> Theta:
        unused = f"{last_linear(self.model)}bias"
        return {name: value for name, value in parameters(self.model).items() if name != unused}

    def adapt(self, theta: Theta, support: Batch) -> Directions:
        z = features(self.model, theta, support.x)
        start = class_means(F.normalize(z, dim=1), support.y, self.ways)
        phi = descend(
            lambda p, z, y: F.cross_entropy(self.scale * cosines(z, p["weight"]), y),
            {"weight": start},
            given=(z, support.y),
            lr=self.lr,
            steps=self.steps,
            adjoint="first_order",
        )
        return Directions(phi["weight"], statistics(self.model, theta, support.x))

    def predict(self, theta: Theta, phi: Directions, x: Tensor) -> Tensor:
        return self.scale * cosines(features(self.model, {**theta, **phi.statistics}, x), phi.weight)

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means of f(x) / |f(x)| [d]."""
        z = features(self.model, theta, support.x)
        return class_means(F.normalize(z, dim=1), support.y, self.ways).mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        x, y = joined(episode)
        weight = theta[f"{last_linear(self.model)}weight"]
        return F.cross_entropy(self.scale * cosines(features(self.model, theta, x), weight), y)
