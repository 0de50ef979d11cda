"""MetaOptNet: the head is a support vector machine, or ridge regression, solved to convergence for each task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.errors import ConfigError, suggest
from quickstudy.inner.implicit import warn_above
from quickstudy.learner import Batch, Encoder, Episode, Learner, Theta, Ways
from quickstudy.learners.metric.crammer_singer import support_vectors
from quickstudy.learners.metric.ridge import ridge
from quickstudy.learners.parts.distance import class_means
from quickstudy.learners.parts.encoding import embedding, known_statistics, one_hot
from quickstudy.nn.parameters import beside, parameters

HEADS = ("svm", "ridge")
PREFIX = "metaoptnet."  # prefix in theta of everything but the encoder's parameters


class Head(NamedTuple):
    weight: Tensor  # [d, ways]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class MetaOptNet(Learner):
    """Meta-learn the features f for which a convex classifier generalises from few examples.

        head "svm"     W = argmin 1/2 |W|^2 + C sum_n max_k (1 - [k = y_n] + w_k . z_n - w_{y_n} . z_n)   z = f(x)
        head "ridge"   W = argmin |Z W - Y|^2 + lambda |W|^2,   Y one-hot
        logits_k(x) = gamma w_k . f(x),   gamma learned

    The support vector machine (Crammer and Singer's) is solved in its dual by an interior point method of
    `solver_steps` steps, and differentiated by the implicit function theorem at the solution: `crammer_singer.py`. When
    the duality gap is above `tolerance` times the objective of W = 0, an AccuracyWarning says so. `ways` may differ
    between training and test, because theta does not depend on it.

    Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization, CVPR 2019,
    https://arxiv.org/abs/1904.03758

    >>> import quickstudy as qs
    >>> learner = qs.MetaOptNet(qs.nn.conv4(channels=1, downsample="pool"), ways=5)

    Deviations from the paper: theta keeps the logarithm of gamma, so that gamma is positive; no label smoothing; our
    own interior point method, with matrices of the size of the support set, replaces OptNet's, and stops at `tolerance`
    or after 20 steps, theirs after 15. The outer optimizer is Adam at 1e-3, in the authors' code
    (https://github.com/kjunelee/MetaOptNet) SGD at 0.1 with Nesterov momentum 0.9, weight decay 5e-4 and falling rates.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, d]
    ways: Ways = 5  # classes in a task
    head: str = "svm"  # what is solved: svm or ridge
    c: float = 0.1  # svm: cost C of examples inside the margin
    lam: float = 50.0  # ridge: weight of |W|^2
    scale: float = 1.0  # initial value of the learned factor of the logits
    solver_steps: int = 20  # svm: interior point steps
    tolerance: float = 1e-9  # svm: duality gap that counts as solved, relative to the objective of W = 0

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ConfigError(f"head must be 'svm' or 'ridge', got {self.head!r}.{suggest(str(self.head), HEADS)}")
        for name in ("c", "lam", "scale", "tolerance"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.solver_steps < 1:
            raise ConfigError(f"solver_steps must be at least 1, got {self.solver_steps}.")

    def init(self) -> Theta:
        return beside(parameters(self.encoder), PREFIX, {"log_scale": torch.tensor(math.log(self.scale))})

    def adapt(self, theta: Theta, support: Batch) -> Head:
        z = embedding(self.encoder, theta, support.x)
        y = one_hot(support.y, self.ways, z)
        weight = ridge(z, y, self.lam) if self.head == "ridge" else self._support_vectors(z, y)
        return Head(weight, known_statistics(self.encoder, theta, support.x))

    def _support_vectors(self, z: Tensor, y: Tensor) -> Tensor:
        weight, gap = support_vectors(z, y, self.c, self.solver_steps, self.tolerance)
        warn_above(
            gap,
            1.5 * self.tolerance,  # the solver ends close to the tolerance, not below it
            f"the support vector machine is not solved to {self.tolerance:g} in solver_steps={self.solver_steps}: "
            "raise solver_steps, or lower c or the scale of the features.",
        )
        return weight

    def predict(self, theta: Theta, phi: Head, x: Tensor) -> Tensor:
        scale = theta[f"{PREFIX}log_scale"].exp()
        return scale * (embedding(self.encoder, theta, x, phi.statistics) @ phi.weight)

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means of the features [d]."""
        return class_means(embedding(self.encoder, theta, support.x), support.y, self.ways).mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return F.cross_entropy(self.predict(theta, phi, episode.query.x), episode.query.y)
