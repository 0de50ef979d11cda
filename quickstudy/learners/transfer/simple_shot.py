"""SimpleShot: pretrain, then take the nearest class mean of normalised features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.episodes import joined
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Episode, Learner, Network, Theta, Ways
from quickstudy.learners.parts.distance import class_means, squared_distances, to_nearest
from quickstudy.learners.transfer.pretrained import features
from quickstudy.nn.parameters import beside, last_linear, parameters
from quickstudy.nn.statistics import statistics

FEATURES = ("UN", "L2N", "CL2N")
MEAN = "simpleshot.mean"  # name in theta of the mean of the training classes' features


class Means(NamedTuple):
    means: Tensor  # [ways, d]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class SimpleShot(Learner):
    """Pretrain on all training classes; a new class is the mean of its transformed features, and the nearest decides.

        pretraining   theta = argmin sum over tasks of L(model_theta(x), y)
        features      UN: f(x)     L2N: f(x) / |f(x)|     CL2N: (f(x) - m) / |f(x) - m|,   m = mean of f over training
        adaptation    c_k = mean of the features of class k,   logits_k(x) = -|features of x - c_k|^2

    The model ends in a linear layer with a row per *training class*; f is the input of that layer. m is in theta, zero
    while f is trained, and `finish` sets it in a pass over the training examples: `train` calls it at the end, a loop
    of your own has to. Nothing is fitted to a new task, and `ways` may be any number.

    Wang, Chao, Weinberger, van der Maaten: SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
    Learning, 2019, https://arxiv.org/abs/1911.04623

    >>> import quickstudy as qs
    >>> learner = qs.SimpleShot(qs.nn.conv4(channels=1, classes=1028), ways=5)

    Deviations from the paper: Adam at 1e-3 in pretraining instead of SGD at 0.1 with momentum 0.9. With `norm="batch"`
    or "support" features are normalised by the examples beside them, whereas the paper's batch norm has the averages of
    its training. Validation centres with the mean of a few batches; the authors' code
    (https://github.com/mileyan/simple_shot) validates without centring, by cosine similarity.
    """

    model: Network  # ends in a linear layer, the head
    ways: Ways = 5  # classes in a new task
    features: str = "CL2N"  # UN (unchanged), L2N (scaled to length one) or CL2N (centred, then scaled)

    episodic: ClassVar[bool] = False  # trains on pooled examples, not on episodes

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise ConfigError(f"features must be one of {', '.join(FEATURES)}; got {self.features!r}.")
        last_linear(self.model)

    def init(self) -> Theta:
        params = parameters(self.model)
        if self.features != "CL2N":
            return params
        weight = dict(self.model.named_parameters())[f"{last_linear(self.model)}weight"]
        return beside(params, MEAN, {"": torch.zeros_like(weight[0]).detach()})

    def adapt(self, theta: Theta, support: Batch) -> Means:
        z = self._transformed(theta, features(self.model, self._own(theta), support.x))
        return Means(class_means(z, support.y, self.ways), statistics(self.model, self._own(theta), support.x))

    def _own(self, theta: Theta) -> Theta:
        return {name: value for name, value in theta.items() if name != MEAN}

    def _transformed(self, theta: Theta, z: Tensor) -> Tensor:
        if self.features == "UN":
            return z
        return F.normalize(z - theta[MEAN] if self.features == "CL2N" else z, dim=1)

    def predict(self, theta: Theta, phi: Means, x: Tensor) -> Tensor:
        z = features(self.model, self._own(theta) | phi.statistics, x)
        return -squared_distances(self._transformed(theta, z), phi.means)

    def distance(self, theta: Theta, phi: Means, x: Tensor) -> Tensor:
        """min_k |features of x - c_k|^2 [m]."""
        return to_nearest(-self.predict(theta, phi, x))

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means of the transformed features [d]."""
        return self.adapt(theta, support).means.mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        x, y = joined(episode)
        head, params = last_linear(self.model), self._own(theta)
        z = features(self.model, params, x)
        return F.cross_entropy(F.linear(z, params[f"{head}weight"], params.get(f"{head}bias")), y)

    def finish(self, theta: Theta, examples: Iterable[Batch]) -> Theta:
        """theta with m, the mean of f over the examples."""
        if self.features != "CL2N":
            return theta
        total, n = theta[MEAN].new_zeros((), dtype=torch.float64), 0
        for batch in examples:
            z = features(self.model, self._own(theta), batch.x)
            total, n = total + z.double().sum(0), n + len(z)
        return theta | {MEAN: (total / n).to(theta[MEAN].dtype)}
