"""The learners that controls use: what a meta-learner has to beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.base import trees
from quickstudy.inner.descent import descend
from quickstudy.learner import Batch, Episode, Learner, Network, NotAnOption, Theta, Ways
from quickstudy.learners.parts.distance import class_means
from quickstudy.learners.parts.encoding import raw
from quickstudy.nn.hooks import input_of
from quickstudy.nn.parameters import last_linear, parameters
from quickstudy.nn.statistics import statistics


@dataclass(frozen=True, eq=False)
class SupportMean(Learner):
    """y = link(mean of the support targets).

    `link` turns the mean into what the loss reads: the logit of a share where it reads logits.
    """

    link: Callable[[Tensor], Tensor] | None = None  # None: the mean as it is

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        mean = support.y.mean(0)
        return mean if self.link is None else self.link(mean)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return phi.expand(trees.size(x), *phi.shape)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return F.mse_loss(self.predict(theta, self.adapt(theta, episode.support), episode.query.x), episode.query.y)


class Line(NamedTuple):
    """x -> (x - centre) / scale @ weight + bias."""

    centre: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class LinearProbe(Learner):
    """Least squares for regression, softmax regression for classification, on inputs scaled to be free of units.

    z = (x - mean) / scale has mean squared length 1. Regression takes the minimum-norm solution pinv(Z) (Y - mean Y).
    Classification descends from zero on the cross entropy with learning rate 1, which is safe because the curvature in
    (weight, bias) is then at most 1. So is that of each of d labels under a binary cross entropy of logits, which the
    mean over labels divides by d: `loss`, where given, is descended on with learning rate d.
    """

    ways: Ways | None = None  # classes in a task; None for regression and for labels
    steps: int = 100  # gradient steps (classification)
    loss: NotAnOption[Callable[[Tensor, Tensor], Tensor] | None] = None  # of labels that are each there or not

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Line:
        x = raw(support.x)
        centre = x.mean(0)
        scale = ((x - centre) ** 2).sum(1).mean().sqrt().clamp(min=1e-12)
        z = (x - centre) / scale
        if self.ways is None and self.loss is None:
            level = support.y.mean(0)
            return Line(centre, scale, torch.linalg.pinv(z) @ (support.y - level), level)
        outputs, loss = self.ways or support.y.shape[1], self.loss or F.cross_entropy
        start = {"weight": z.new_zeros(z.shape[1], outputs), "bias": z.new_zeros(outputs)}
        phi = descend(
            lambda p, z, y: loss(z @ p["weight"] + p["bias"], y),
            start,
            given=(z, support.y),
            lr=1.0 if self.loss is None else float(outputs),
            steps=self.steps,
            adjoint="first_order",
        )
        return Line(centre, scale, phi["weight"], phi["bias"])

    def predict(self, theta: Theta, phi: Line, x: Tensor) -> Tensor:
        return (raw(x) - phi.centre) / phi.scale @ phi.weight + phi.bias

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        output = self.predict(theta, self.adapt(theta, episode.support), episode.query.x)
        return (self.loss or loss_for(self.ways))(output, episode.query.y)


class Headed(nn.Module):
    """A network with a linear layer on top of its flattened output; its inputs may have names."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.head(self.body(*inputs, **named).flatten(1))


class Likeness(NamedTuple):
    means: Tensor  # [ways, d]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class NIL(Learner):
    """Nothing adapts: the head is dropped, and a query is compared with the support examples by their features.

        logits_k(x) = mean over the support examples (x_i, k) of cos(f(x), f(x_i)),   f the body below the last linear

    What a learner scores beyond this is due to its inner loop, not to the features alone.

    Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse?, ICLR 2020, https://arxiv.org/abs/1909.09157
    """

    model: Network  # ends in a linear layer, the head
    ways: Ways  # classes in a task

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Likeness:
        means = class_means(self._directions(theta, support.x), support.y, self.ways)
        return Likeness(means, statistics(self.model, theta, support.x))

    def _directions(self, theta: Theta, x: Tensor) -> Tensor:
        """f(x) / |f(x)|. Inner products are cosines; a mean of cosines is the inner product with the mean direction."""
        return F.normalize(input_of(last_linear(self.model).rstrip("."), self.model, theta, x).flatten(1), dim=1)

    def predict(self, theta: Theta, phi: Likeness, x: Tensor) -> Tensor:
        return self._directions(theta | phi.statistics, x) @ phi.means.T

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        output = self.predict(theta, self.adapt(theta, episode.support), episode.query.x)
        return F.cross_entropy(output, episode.query.y)


def loss_for(ways: int | None) -> Callable:
    return F.cross_entropy if ways else F.mse_loss
