"""Attentive neural processes: each query asks the support points that are like it, and a latent code says the rest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.learners.hypernet.parts import (
    Gaussian,
    applied,
    attend,
    attention,
    divergence,
    features,
    joined,
    members,
    moments,
    perceptron,
    set_means,
    surprise,
)
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
from quickstudy.model import beside, own, parameters, part, statistics


class Memory(NamedTuple):
    """What a task leaves behind."""

    keys: Tensor  # [n, representation], one for each support point
    values: Tensor  # [n, representation]
    members: Tensor  # [1 or ways, n]: which point counts where
    codes: Tensor  # [samples, latent]: draws of the latent code
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"
    factor: Tensor  # [], of the standard deviations, see `qs.recalibrated`


@dataclass(frozen=True, eq=False)
class ANP(Learner):
    """The conditional neural process with attention in place of the mean, and, if asked for, a latent code z.

        v_i = h([e(x_i), y_i]),   a(x) = h_k(e(x))
        r(x) = multi-head attention from a(x) to the pairs (a(x_i), v_i)
        y | x, z ~ N(m, s^2),   [m, u] = g([e(x), r(x), z]),   s = min_std + softplus(u)
        z | S ~ q_S = N(mu, w^2),   (mu, w) read off mean_i h_z([e(x_i), y_i])
        meta-loss   E_z~q_(S+Q) [ mean over Q of -log N(y; m, s^2) ] + KL(q_(S+Q) || q_S) / |Q|

    The last is the negative evidence lower bound of log p(Q | S) per number that is asked for (|Q| of them, with
    several `outputs` that many for each point); without a latent code (`latent` 0) the first term alone. Training
    draws z once per episode; answers are the mean and standard deviation of the mixture over `samples` codes out of
    q_S, always the same ones, in pairs mu + w d, mu - w d: an answer is the same each time. `self_attention` layers
    let the support points see each other before: v <- v + attention(v), v <- v + perceptron(v). Classification
    (`ways` given) attends to each class apart, and is without latent code:

        logits_k(x) = g([e(x), r_k(x), mean_j r_j(x)])

    With attention that weighs all points alike it is the CNP, up to the matrices of values and output.

    Kim, Mnih, Schwarz, Garnelo, Eslami, Rosenbaum, Vinyals, Teh: Attentive Neural Processes, ICLR 2019,
    https://arxiv.org/abs/1901.05761

    >>> import torch, quickstudy as qs
    >>> learner = qs.ANP(torch.nn.Flatten(), width=1, latent=32)

    Deviations from the paper: as in `CNP` (one encoder, queries alone in the loss, s); likelihood and bound are of
    the query points, given the support points. Its latent path has self-attention too, ours the deterministic one
    alone. No layer normalisation.
    """

    encoder: nn.Module  # maps x [n, ...] to features [n, width]
    width: int  # of the encoder's features
    ways: int | None = None  # classes in a task; None for regression
    outputs: int = 1  # numbers in an answer (regression)
    representation: int = 128  # length of keys and values, and width of every layer
    depth: int = 3  # layers of h and of g
    heads: int = 8  # of the attention; they share the representation out among them
    self_attention: int = 0  # layers in which support points see each other
    latent: int = 0  # length of the latent code (regression); 0: none
    samples: int = 16  # codes over which an answer is averaged; 1: the mean code
    min_std: float = 0.01  # smallest standard deviation of an answer, in units of y_scale
    fewest: int = 0  # fewest support points that training keeps (at least 1 per class); the shots or more: always all
    y_scale: float = 1.0  # typical size of y (regression)
    std_factors: tuple[float, ...] = ()  # of the deviations after 0, 1, 2, ... support points, see `qs.recalibrated`

    from_nothing: ClassVar[bool] = True  # answers without a support example too

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
        known = statistics(self.encoder, own(self.encoder, theta), support.x)
        return Memory(applied(parts, "keys", e), values, found, codes, known, std_factor(self.std_factors, support))

    def predict(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        return self._decoded(theta, phi, x) if self.ways else self.distribution(theta, phi, x).mean

    def distribution(self, theta: Theta, phi: Memory, x: Tensor) -> Gaussian:
        """Mean and standard deviation of each answer, [m, outputs] each. Regression only."""
        mean, std = moments(self.draws(theta, phi, x))
        return Gaussian(mean, std * phi.factor)

    def draws(self, theta: Theta, phi: Memory, x: Tensor) -> Gaussian:
        """The answers under each of phi's codes: mean and standard deviation [samples, m, outputs]. Regression only.

        As trained: the factors of a recalibration are of the mixture.
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
            known = statistics(self.encoder, own(self.encoder, theta), x)
            more = self._pairs(features(self.encoder, self.width, theta, xq, known), yq)
            prior = latent(parts, pairs, found)
            posterior = latent(parts, torch.cat([pairs, more]), torch.cat([found, found.new_ones(1, len(xq))], 1))
            codes = posterior.mean + posterior.std * torch.randn_like(posterior.std)
            apart = divergence(posterior, prior) / yq.numel()
        output = self._decoded(theta, self._memory(theta, episode.support, e, pairs, found, codes), xq)
        if self.ways:
            return F.cross_entropy(output, yq)
        return surprise(gaussian(output[0], self.min_std), yq / self.y_scale).mean() + apart

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the latent code [latent]; without one that of the values [representation], by class first."""
        phi = self.adapt(theta, support)
        return phi.codes.mean(0) if self.latent else set_means(phi.values, phi.members).mean(0)


def latent(parts: Theta, pairs: Tensor, found: Tensor) -> Gaussian:
    """The latent code [1, latent], given the pairs [n, ...] that are members."""
    said = set_means(applied(parts, "latent.pairs", pairs), found)
    mean, u = applied(parts, "latent.code", said).chunk(2, -1)
    return Gaussian(mean, 0.1 + 0.9 * u.sigmoid())


@functools.cache
def _standard(samples: int, length: int) -> np.ndarray:
    half = np.random.default_rng(0).standard_normal((samples // 2, length))
    return np.concatenate([half, -half, np.zeros((samples % 2, length))])


def standard(samples: int, length: int) -> Tensor:
    """Standard normal draws [samples, length], always the same, each with its opposite; one alone is zero."""
    # numpy's, because torch's generator draws anew for every task under vmap.
    return torch.from_numpy(_standard(samples, length))
