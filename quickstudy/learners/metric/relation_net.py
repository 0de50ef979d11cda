"""Relation networks: the comparison of a query with a class is learned too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from quickstudy.learner import Batch, Episode, Learner, MapEncoder, Relation, Theta, Ways
from quickstudy.learners.parts.distance import class_means
from quickstudy.learners.parts.encoding import known_statistics, one_hot
from quickstudy.nn.model import call
from quickstudy.nn.parameters import beside, own, parameters, part
from quickstudy.nn.statistics import statistics

PREFIX = "relation."  # prefix in theta of the relation module's parameters


class Classes(NamedTuple):
    features: Tensor  # [ways, ...], in the shape of the encoder's output
    statistics: Theta  # the support set's normalisation statistics in the encoder, empty unless norm="support"
    relation_statistics: Theta  # the same in the relation module, where the support set is compared with its classes


@dataclass(frozen=True, eq=False)
class RelationNet(Learner):
    """A relation module g scores how much a query belongs to each class, from the features f of both.

        c_k = mean of f(x) over the support examples of class k,   r_k(x) = sigmoid(g(c_k, f(x)))
        loss  mean over queries and classes of (r_k(x) - [k = y])^2

    `predict` returns g before the sigmoid. f returns feature maps (`conv4(maps=True)`) or vectors, and `qs.nn.relation`
    makes a module for their shape. A module of your own takes (classes [ways, ...], examples [m, ...]) and returns
    scores [m, ways]. `ways` may differ between training and test, because theta does not depend on it.

    Sung, Yang, Zhang, Xiang, Torr, Hospedales: Learning to Compare: Relation Network for Few-Shot Learning, CVPR 2018,
    https://arxiv.org/abs/1711.06025

    >>> import quickstudy as qs
    >>> learner = qs.RelationNet(qs.nn.conv4(downsample="pool", maps=True), qs.nn.relation((64, 7, 7)), ways=5)

    Deviations from the paper: a class is the mean of its feature maps, whereas the paper takes their sum. Both are the
    same for one shot, and the same up to a factor for any fixed number of shots, but the mean also allows classes of
    different sizes and other shots at test. 3x3 convolutions keep the size of their input (the paper's code trims one
    pixel in some), and poolings round up. The outer rate is constant, and nothing is clipped; in the authors' code
    (https://github.com/floodsung/LearningToCompare_FSL) it is halved every 100,000 episodes, and the gradient norms of
    both networks are clipped to 0.5.
    """

    encoder: MapEncoder  # maps x [n, ...] to feature maps [n, channels, height, width] or vectors [n, d]
    relation: Relation  # maps (features of classes [ways, ...], of examples [m, ...]) to scores [m, ways]
    ways: Ways = 5  # classes in a task

    def init(self) -> Theta:
        return beside(parameters(self.encoder), PREFIX, parameters(self.relation))

    def adapt(self, theta: Theta, support: Batch) -> Classes:
        z = self._features(theta, support.x)
        means = class_means(z.flatten(1), support.y, self.ways).unflatten(1, z.shape[1:])
        own_relation = part(theta, PREFIX)
        in_relation = statistics(self.relation, own_relation, (means, z))
        return Classes(means, known_statistics(self.encoder, theta, support.x), in_relation)

    def _features(self, theta: Theta, x: Tensor, known: Theta | None = None) -> Tensor:
        return call(self.encoder, own(self.encoder, theta) | (known or {}), x)

    def predict(self, theta: Theta, phi: Classes, x: Tensor) -> Tensor:
        z = self._features(theta, x, phi.statistics)
        return call(self.relation, part(theta, PREFIX) | phi.relation_statistics, (phi.features, z))

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means of the features, flattened [d]."""
        return class_means(self._features(theta, support.x).flatten(1), support.y, self.ways).mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        scores = self.predict(theta, self.adapt(theta, episode.support), episode.query.x)
        return F.mse_loss(scores.sigmoid(), one_hot(episode.query.y, self.ways, scores))
