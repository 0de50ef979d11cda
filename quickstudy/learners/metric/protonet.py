"""Prototypical networks: a class is the mean of its embedded support examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from quickstudy.learner import Batch, Encoder, Episode, Learner, Theta, Ways
from quickstudy.learners.parts.distance import class_means, squared_distances, to_nearest
from quickstudy.nn.model import call
from quickstudy.nn.parameters import parameters
from quickstudy.nn.statistics import statistics


class Prototypes(NamedTuple):
    means: Tensor  # [ways, d]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class ProtoNet(Learner):
    """Classify by the nearest class mean in a learned embedding f.

        c_k = mean of f(x) over the support examples of class k
        logits_k(x) = -|f(x) - c_k|^2

    The logits equal those of the linear classifier 2 c_k . f(x) - |c_k|^2, up to a term common to all classes.
    `ways` may differ between training and test, because theta does not depend on it.

    Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, NeurIPS 2017,
    https://arxiv.org/abs/1703.05175

    >>> import torch, quickstudy as qs
    >>> learner = qs.ProtoNet(qs.nn.conv4(channels=1, downsample="pool"), ways=20)

    Deviations from the paper: support and query are normalised as the encoder declares (norm="batch": each by its own
    batch), whereas the authors' code embeds both in one batch in training and uses running averages at test. The outer
    rate is constant unless a schedule is asked for; theirs is halved every 2,000 episodes.
    """

    encoder: Encoder  # maps x [n, ...] to embeddings [n, d]
    ways: Ways = 5  # classes in a task

    def init(self) -> Theta:
        return parameters(self.encoder)

    def adapt(self, theta: Theta, support: Batch) -> Prototypes:
        means = class_means(call(self.encoder, theta, support.x), support.y, self.ways)
        return Prototypes(means, statistics(self.encoder, theta, support.x))

    def predict(self, theta: Theta, phi: Prototypes, x: Tensor) -> Tensor:
        return -squared_distances(call(self.encoder, {**theta, **phi.statistics}, x), phi.means)

    def distance(self, theta: Theta, phi: Prototypes, x: Tensor) -> Tensor:
        """min_k |f(x) - c_k|^2 [m]."""
        return to_nearest(-self.predict(theta, phi, x))

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means [d]."""
        return self.adapt(theta, support).means.mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return F.cross_entropy(self.predict(theta, phi, episode.query.x), episode.query.y)
