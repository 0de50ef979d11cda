"""Attentive neural processes: each query attends to support points like it; a latent code can hold the rest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Encoder, Episode, Learner, NotAnOption, Outputs, Theta, Ways, Width
from quickstudy.learners.hypernet.process import (
    PREFIX,
    check,
    check_fields,
    check_regression,
    decoded,
    gaussian,
    kept,
    networks,
    std_factor,
)
from quickstudy.learners.parts.encoding import features, known_statistics
from quickstudy.learners.parts.gaussian import Gaussian, divergence, moments, negative_log_likelihood
from quickstudy.learners.parts.sets import applied, attend, attention, joined, members, perceptron, set_means
from quickstudy.nn.parameters import beside, parameters, part


class Memory(NamedTuple):
    """The task parameters phi."""

    keys: Tensor  # [n, representation], one for each support point
    values: Tensor  # [n, representation]
    members: Tensor  # [1 or ways, n]: 1 where a point belongs to the set, else 0
    codes: Tensor  # [samples, latent]: draws of the latent code
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"
    factor: Tensor  # [], factor of the standard deviations, see `qs.recalibrated`


@dataclass(frozen=True, eq=False)
class ANP(Learner):
    """The conditional neural process with attention in place of the mean, and, if asked for, a latent code z.

        v_i = h([e(x_i), y_i]),   a(x) = h_k(e(x))
        r(x) = multi-head attention from a(x) to the pairs (a(x_i), v_i)
        y | x, z ~ N(m, s^2),   [m, u] = g([e(x), r(x), z]),   s = min_std + softplus(u)
        z | S ~ q_S = N(mu, w^2),   (mu, w) a function of mean_i h_z([e(x_i), y_i])
        meta-loss   E_z~q_(S+Q) [ mean over Q of -log N(y; m, s^2) ] + KL(q_(S+Q) || q_S) / |Q|

    The meta-loss is the negative evidence lower bound of log p(Q | S), per predicted number: |Q| counts `outputs`
    numbers for each query point. Without a latent code (`latent` 0) it is the first term alone. Training draws z once
    per episode. Predictions are the mean and standard deviation of the mixture over `samples` codes from q_S. These
    are always the same, in pairs mu + w d, mu - w d, so that predictions are deterministic. With `self_attention`
    layers, the support points first attend to each other: v <- v + attention(v), v <- v + perceptron(v).
    Classification (`ways` given) attends to each class separately and has no latent code:

        logits_k(x) = g([e(x), r_k(x), mean_j r_j(x)])

    With uniform attention weights it is the CNP, up to the value and output matrices.

    Kim, Mnih, Schwarz, Garnelo, Eslami, Rosenbaum, Vinyals, Teh: Attentive Neural Processes, ICLR 2019,
    https://arxiv.org/abs/1901.05761

    >>> import torch, quickstudy as qs
    >>> learner = qs.ANP(torch.nn.Flatten(), width=1, latent=32)

    Deviations from the paper: those of `CNP` (one encoder, only queries in the loss, the formula for s, the layers, the
    outer rate). **The paper's model always has a latent code**, of 128 numbers in the authors' code
    (https://github.com/google-deepmind/neural-processes); here `latent` is 0 by default, so that training draws
    nothing. Predictions average `samples` codes, theirs draw one. Likelihood and bound are those of the query points,
    given the support points. In the paper the latent path has self-attention too; here only the deterministic path has
    it. There is no layer normalisation.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, width]
    width: Width  # of the encoder's features
    ways: Ways | None = None  # classes in a task; None for regression
    outputs: Outputs = 1  # predicted numbers per input (regression)
    representation: int = 128  # length of keys and values, and width of every layer
    depth: int = 3  # layers of h and of g
    heads: int = 8  # attention heads; their number must divide representation
    self_attention: int = 0  # layers in which support points attend to each other
    latent: int = 0  # length of the latent code (regression); 0: none
    samples: int = 16  # codes over which predictions are averaged; 1: the mean code
    min_std: float = 0.01  # smallest standard deviation of a prediction, in units of y_scale
    fewest: int = 0  # fewest support points kept in training (at least 1 per class); the shots or more: keep all
    y_scale: float = 1.0  # typical size of y (regression)
    # of standard deviations after 0, 1, ... support points, see `qs.recalibrated`
    std_factors: NotAnOption[tuple[float, ...]] = ()

    from_nothing: ClassVar[bool] = True  # also predicts from an empty support set

    def __post_init__(self) -> None:
        check_fields(self, "ANP")
        least = {"heads": 1, "self_attention": 0, "latent": 0, "samples": 1}
        check("ANP", {name: (getattr(self, name), bound) for name, bound in least.items()})
        if self.representation % self.heads:
            raise ConfigError(
                f"the heads share the representation out: {self.representation} is not a multiple of {self.heads}."
            )
        if self.ways and self.latent:
            raise ConfigError(f"the latent code is for regression; this ANP classifies ({self.ways} ways).")

    def init(self) -> Theta:
        r, generator = self.representation, seeds.generator(0, "process")
        sizes = (self.width, self.ways, self.outputs, r, self.depth)
        parts = networks(*sizes, latent=self.latent, generator=generator)
        parts |= perceptron("keys", [self.width, r, r], generator) | attention("attention", r, r, generator)
        for i in range(self.self_attention):
            parts |= attention(f"self.{i}", r, r, generator) | perceptron(f"self.{i}.mlp", [r, r, r], generator)
        if self.latent:
            pairs = [self.width + self.outputs, *[r] * self.depth]
            parts |= perceptron("latent.pairs", pairs, generator)
            parts |= perceptron("latent.code", [r, r, 2 * self.latent], generator)
        return beside(parameters(self.encoder), PREFIX, parts)

    def adapt(self, theta: Theta, support: Batch) -> Memory:
        parts, e = part(theta, PREFIX), features(self.encoder, self.width, theta, support.x)
        found = members(support.y, self.ways, e)
        pairs = self._pairs(e, support.y)
        codes = e.new_zeros(1, 0)
        if self.latent:
            prior = latent(parts, pairs, found)
            codes = prior.mean + prior.std * standard(self.samples, self.latent).to(prior.mean)
        return self._memory(theta, support, e, pairs, found, codes)

    def _pairs(self, e: Tensor, y: Tensor) -> Tensor:
        return e if self.ways else joined(e, y / self.y_scale)

    def _memory(self, theta: Theta, support: Batch, e: Tensor, pairs: Tensor, found: Tensor, codes: Tensor) -> Memory:
        parts = part(theta, PREFIX)
        values = applied(parts, "pairs", pairs)
        anywhere = found.sum(0, keepdim=True)
        for i in range(self.self_attention):
            values = values + attend(parts, f"self.{i}", values, values, values, anywhere, self.heads)[0]
            values = values + applied(parts, f"self.{i}.mlp", values)
        known = known_statistics(self.encoder, theta, support.x)
        return Memory(applied(parts, "keys", e), values, found, codes, known, std_factor(self.std_factors, support))

    def predict(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        return self._decoded(theta, phi, x) if self.ways else self.distribution(theta, phi, x).mean

    def distribution(self, theta: Theta, phi: Memory, x: Tensor) -> Gaussian:
        """Mean and standard deviation of the prediction for x [m, ...], [m, outputs] each.

        Raises ConfigError for classification.
        """
        mean, std = moments(self.draws(theta, phi, x))
        return Gaussian(mean, std * phi.factor)

    def draws(self, theta: Theta, phi: Memory, x: Tensor) -> Gaussian:
        """The predictions under each of phi's codes: mean and standard deviation, [samples, m, outputs] each.

        They come without the factors of a recalibration, which apply to the mixture. Raises ConfigError for
        classification.
        """
        check_regression(self.ways, "ANP")
        mean, std = gaussian(self._decoded(theta, phi, x), self.min_std)
        return Gaussian(mean * self.y_scale, std * self.y_scale)

    def _decoded(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        parts = part(theta, PREFIX)
        e = features(self.encoder, self.width, theta, x, phi.statistics)
        asked = applied(parts, "keys", e)
        sets = attend(parts, "attention", asked, phi.keys, phi.values, phi.members, self.heads)
        return decoded(parts, e, sets, self.ways, phi.codes[:, None])

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        (x, y), (xq, yq) = episode
        parts, e = part(theta, PREFIX), features(self.encoder, self.width, theta, x)
        found = kept(y, self.ways, self.fewest, e)
        pairs, apart, codes = self._pairs(e, y), e.new_zeros(()), e.new_zeros(1, 0)
        if self.latent:
            known = known_statistics(self.encoder, theta, x)
            more = self._pairs(features(self.encoder, self.width, theta, xq, known), yq)
            prior = latent(parts, pairs, found)
            posterior = latent(parts, torch.cat([pairs, more]), torch.cat([found, found.new_ones(1, len(yq))], 1))
            codes = posterior.mean + posterior.std * torch.randn_like(posterior.std)
            apart = divergence(posterior, prior) / yq.numel()
        output = self._decoded(theta, self._memory(theta, episode.support, e, pairs, found, codes), xq)
        if self.ways:
            return F.cross_entropy(output, yq)
        return negative_log_likelihood(gaussian(output[0], self.min_std), yq / self.y_scale).mean() + apart

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean latent code [latent]; without one, the mean over sets of the mean value in each [representation]."""
        phi = self.adapt(theta, support)
        return phi.codes.mean(0) if self.latent else set_means(phi.values, phi.members).mean(0)


def latent(parts: Theta, pairs: Tensor, found: Tensor) -> Gaussian:
    """The distribution of the latent code [1, latent], given the pairs [n, ...] that are members of `found` [1, n]."""
    said = set_means(applied(parts, "latent.pairs", pairs), found)
    mean, u = applied(parts, "latent.code", said).chunk(2, -1)
    return Gaussian(mean, 0.1 + 0.9 * u.sigmoid())


@functools.cache
def _standard(samples: int, length: int) -> np.ndarray:
    half = np.random.default_rng(0).standard_normal((samples // 2, length))
    return np.concatenate([half, -half, np.zeros((samples % 2, length))])


def standard(samples: int, length: int) -> Tensor:
    """Fixed standard normal draws [samples, length], in pairs of opposite sign; an odd last one is zero."""
    # numpy draws them, because torch's generator draws other numbers for every task under vmap.
    return torch.from_numpy(_standard(samples, length))
