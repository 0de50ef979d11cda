"""Conditional neural processes: a task is the mean of its encoded support points; predictions are distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.learner import Batch, Encoder, Episode, Learner, NotAnOption, Outputs, Theta, Ways, Width
from quickstudy.learners.hypernet.process import (
    PREFIX,
    check_fields,
    check_regression,
    decoded,
    gaussian,
    kept,
    networks,
    std_factor,
)
from quickstudy.learners.parts.encoding import features, known_statistics
from quickstudy.learners.parts.gaussian import Gaussian, negative_log_likelihood
from quickstudy.learners.parts.sets import applied, joined, set_means
from quickstudy.nn.parameters import beside, parameters, part


class Representation(NamedTuple):
    sets: Tensor  # [1, representation], or one row per class
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"
    factor: Tensor  # [], factor of the standard deviations, see `qs.recalibrated`


@dataclass(frozen=True, eq=False)
class CNP(Learner):
    """Encode each support point, take the mean, decode it at every query: to a Gaussian for values, or to logits.

        r = mean_i h([e(x_i), y_i]),   zero for an empty support set (the prior)
        y | x ~ N(m, s^2),   [m, u] = g([e(x), r]),   s = min_std + softplus(u)
        meta-loss   mean over the query set of -log N(y; m, s^2)

    Classification (`ways` given) has a representation for each class, r_k = mean of h(e(x_i)) over class k, and the
    same network for all classes, so that their order does not matter and `ways` may differ between training and test:

        logits_k(x) = g([e(x), r_k, mean_j r_j]),   meta-loss cross entropy

    h and g are perceptrons of `depth` layers, kept in theta under "process."; y is divided by `y_scale` at the input
    and multiplied by it at the output. In training, each episode keeps the first k support points (of each class),
    with a new random k.

    Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende, Eslami: Conditional Neural Processes, ICML
    2018, https://arxiv.org/abs/1807.01613

    >>> import torch, quickstudy as qs
    >>> numbers = qs.CNP(torch.nn.Flatten(), width=1)
    >>> images = qs.CNP(qs.nn.conv4(channels=1, downsample="pool"), width=64, ways=5)

    Deviations from the paper: inputs pass through one encoder e, shared by h and g (nn.Flatten() leaves them unchanged,
    as in the paper's regression). The paper's Omniglot classifier concatenates the class representations, which ties it
    to their number and order; ours combines each class with the mean of all. The paper's s is 0.1 + 0.9 softplus(u).
    Its loss includes the support points, ours only the queries. h and g have 3 layers each; in the authors' code
    (https://github.com/google-deepmind/neural-processes) h has 4. The outer optimizer is Adam at 1e-3, theirs at 1e-4.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, width]
    width: Width  # of the encoder's features
    ways: Ways | None = None  # classes in a task; None for regression
    outputs: Outputs = 1  # predicted numbers per input (regression)
    representation: int = 128  # length of a task's representation, and width of every layer
    depth: int = 3  # layers of h and of g
    min_std: float = 0.01  # smallest standard deviation of a prediction, in units of y_scale
    fewest: int = 0  # fewest support points kept in training (at least 1 per class); the shots or more: keep all
    y_scale: float = 1.0  # typical size of y (regression)
    # of standard deviations after 0, 1, ... support points, see `qs.recalibrated`
    std_factors: NotAnOption[tuple[float, ...]] = ()

    from_nothing: ClassVar[bool] = True  # also predicts from an empty support set

    def __post_init__(self) -> None:
        check_fields(self, "CNP")

    def init(self) -> Theta:
        sizes = (self.width, self.ways, self.outputs, self.representation, self.depth)
        parts = networks(*sizes, latent=0, generator=seeds.generator(0, "process"))
        return beside(parameters(self.encoder), PREFIX, parts)

    def adapt(self, theta: Theta, support: Batch) -> Representation:
        return self._adapt(theta, support, fewest=len(support.y))

    def _adapt(self, theta: Theta, support: Batch, fewest: int) -> Representation:
        e = features(self.encoder, self.width, theta, support.x)
        found = kept(support.y, self.ways, fewest, e)
        pairs = e if self.ways else joined(e, support.y / self.y_scale)
        sets = set_means(applied(part(theta, PREFIX), "pairs", pairs), found)
        known = known_statistics(self.encoder, theta, support.x)
        return Representation(sets, known, std_factor(self.std_factors, support))

    def predict(self, theta: Theta, phi: Representation, x: Tensor) -> Tensor:
        return self._decoded(theta, phi, x) if self.ways else self.distribution(theta, phi, x).mean

    def distribution(self, theta: Theta, phi: Representation, x: Tensor) -> Gaussian:
        """Mean and standard deviation of the prediction for x [m, ...], [m, outputs] each.

        Raises ConfigError for classification.
        """
        check_regression(self.ways, "CNP")
        mean, std = gaussian(self._decoded(theta, phi, x), self.min_std)
        return Gaussian(mean * self.y_scale, std * self.y_scale * phi.factor)

    def _decoded(self, theta: Theta, phi: Representation, x: Tensor) -> Tensor:
        e = features(self.encoder, self.width, theta, x, phi.statistics)
        return decoded(part(theta, PREFIX), e, phi.sets[:, None], self.ways)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        support, query = episode
        phi = self._adapt(theta, support, self.fewest)
        output = self._decoded(theta, phi, query.x)
        if self.ways:
            return F.cross_entropy(output, query.y)
        return negative_log_likelihood(gaussian(output, self.min_std), query.y / self.y_scale).mean()

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """r [representation]; for classification the mean of the r_k."""
        return self.adapt(theta, support).sets.mean(0)
