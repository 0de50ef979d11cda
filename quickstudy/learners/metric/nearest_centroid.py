"""Nearest class mean of the raw input: the baseline that learns nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from quickstudy.learner import Batch, Episode, Learner, Theta, Ways
from quickstudy.learners.parts.distance import class_means, squared_distances, to_nearest
from quickstudy.learners.parts.encoding import raw


@dataclass(frozen=True, eq=False)
class NearestCentroid(Learner):
    """Classify by the nearest class mean of the flattened input: a ProtoNet whose embedding is the identity.

        c_k = mean of x over the support examples of class k,   logits_k(x) = -|x - c_k|^2

    theta is empty: there is nothing to train. A meta-learner that does not beat it has learned nothing.

    >>> import quickstudy as qs
    >>> qs.NearestCentroid(ways=5).init()
    {}

    Deviations: none (a textbook classifier).
    """

    ways: Ways = 5  # classes in a task

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return class_means(raw(support.x), support.y, self.ways)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return -squared_distances(raw(x), phi)

    def distance(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """min_k |x - c_k|^2 [m]."""
        return to_nearest(-self.predict(theta, phi, x))

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means [d]."""
        return self.adapt(theta, support).mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return F.cross_entropy(self.predict(theta, phi, episode.query.x), episode.query.y)
