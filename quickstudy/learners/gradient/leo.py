"""Latent embedding optimization: take the gradient steps in a small space that decodes to classifier weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.inner.adjoints import ALONG_THE_PATH, Adjoint, adjoint_of, with_exact_adjoint
from quickstudy.inner.descent import check_inner_loop, check_steps, descend
from quickstudy.learner import Batch, Encoder, Episode, Learner, Theta, Ways, Width
from quickstudy.learners.parts.distance import class_means
from quickstudy.learners.parts.encoding import features, known_statistics
from quickstudy.learners.parts.gaussian import Gaussian
from quickstudy.learners.parts.gaussian import divergence as divergence_of
from quickstudy.nn.parameters import beside, parameters, part

PREFIX = "leo."  # prefix in theta of everything but the encoder's parameters


class Classifier(NamedTuple):
    weights: Tensor  # [ways, width]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


class Noise(NamedTuple):
    """The random numbers of one episode; None: use the means."""

    latent: Tensor | None = None  # [ways, latent]
    weights: Tensor | None = None  # [ways, width]


class Path(NamedTuple):
    """The stages of the inner loops."""

    code: Gaussian  # distribution of the latent codes [ways, latent], given the support set
    start: Tensor  # codes before the steps
    end: Tensor  # codes after the steps
    weights: Tensor  # [ways, width], after fine-tuning


@dataclass(frozen=True, eq=False)
class LEO(Learner):
    """Each class has a latent code: inferred from the support set, improved by gradient steps, decoded to weights.

        z_n ~ N(mu_n, sigma_n)   (mu_n, sigma_n) = mean over i in class n and all j of relation(e(x_i), e(x_j))
        w_n ~ N(m_n, s_n)        (m_n, s_n) = decoder(z_n),   logits_n(x) = f(x) . w_n
        z <- z - rate_z * grad_z L_S(w(z))   `steps` times from z to z', then
        w <- w - rate_w * grad_w L_S(w)      `finetune_steps` times
        meta-loss   L_Q(w) + kl * KL(N(mu, sigma) || N(0, 1)) + encoder_penalty * |stop(z') - z|^2
                    + orthogonality * |C - I|^2,   C the correlations of the decoder's columns

    f(x) is the encoder's output scaled to length one, and e is a linear map of it. KL and squares are means over their
    entries. L_S is the cross entropy averaged within classes and summed over them, so that a code moves equally far
    whatever the ways and shots of the task. The rates are learned, with one entry per dimension. Everything but the
    encoder is kept in theta under "leo."; no part of it belongs to a class, so `ways` may differ between training and
    test. With `sample`, the meta-loss draws new z and w in each episode and keeps them for all inner steps; `adapt`
    takes the means.

    Rusu, Rao, Sygnowski, Vinyals, Pascanu, Osindero, Hadsell: Meta-Learning with Latent Embedding Optimization,
    ICLR 2019, https://arxiv.org/abs/1807.05960

    >>> import torch, quickstudy as qs
    >>> on_features = qs.LEO(torch.nn.Flatten(), width=640)
    >>> end_to_end = qs.LEO(qs.nn.conv4(channels=1, downsample="pool"), width=64)

    Deviations from the paper and its code (https://github.com/google-deepmind/leo): the encoder is trained too, unless
    it has no parameters; the paper uses frozen features. A standard deviation is softplus(u) / log 2 times its initial
    value: 1 for codes, s = sqrt(2 / (ways + width)) for weights. The code has exp(u) - 1 for codes, whose deviation
    thus begins at 0, and exp(u) - 1 + s for weights, both at least 1e-10; as a function of z, the exponential makes the
    inner steps diverge. The KL divergence is in closed form instead of estimated from one sample. There is one sample
    per class and episode; the code samples weights and dropout again in every step, and one latent code per example.
    The outer optimizer is Adam at 1e-3, in the code at 1e-4 with a weight decay of 1e-8, each number of a gradient
    clipped to 0.1 and then its norm to 0.1 (`clip` is of the norm alone, over all of theta). The weights of the
    penalties are the code's defaults; dropout is 0 instead of 0.5. The values that the authors found best for each data
    set are in docs/learners/leo.md.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, width]
    width: Width  # of the encoder's features
    ways: Ways = 5  # classes in a task
    latent: int = 64  # numbers in a latent code
    lr: float = 1.0  # initial value of the learned rate of the latent steps
    steps: int = 5  # gradient steps on the latent codes
    finetune_lr: float = 0.001  # initial value of the learned rate of the fine-tuning steps
    finetune_steps: int = 5  # gradient steps on the decoded weights
    dropout: float = 0.0  # fraction of the features set to zero in training
    kl: float = 0.001  # weight of the codes' KL divergence from a standard normal
    encoder_penalty: float = 1e-9  # weight of the squared distance that the latent steps cover
    orthogonality: float = 0.001  # weight of the penalty on correlated decoder columns
    first_order: bool = False  # drop the second-order term; the same as adjoint "first_order"
    adjoint: str | Adjoint = "unroll"  # how to differentiate the inner loops: unroll, remat, mixed or first_order
    sample: bool = True  # sample codes and weights in training; otherwise take their means

    def __post_init__(self) -> None:
        check_inner_loop(self, ALONG_THE_PATH)
        check_steps(self.finetune_steps)
        if self.width < 1 or self.latent < 1:
            raise ConfigError(f"width and latent must be at least 1; got width={self.width}, latent={self.latent}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a share from 0 to below 1; got {self.dropout}.")

    def exact(self) -> Learner:
        return with_exact_adjoint(self)

    def init(self) -> Theta:
        return beside(parameters(self.encoder), PREFIX, self._linear_maps() | self._rates())

    def _linear_maps(self) -> Theta:
        """Latent encoder, relation network and decoder: matrices [out, in] with Glorot initialisation, without bias."""
        both, generator = 2 * self.latent, seeds.generator(0, "leo")
        shapes = {"encoder.weight": (self.latent, self.width)}
        shapes |= {f"relation.{i}.weight": (both, both) for i in range(3)}
        shapes |= {"decoder.weight": (2 * self.width, self.latent)}
        return {n: nn.init.xavier_uniform_(torch.empty(s), generator=generator) for n, s in shapes.items()}

    def _rates(self) -> Theta:
        latent, finetune = torch.full((self.latent,), self.lr), torch.full((self.width,), self.finetune_lr)
        return {"rate.latent": latent, "rate.finetune": finetune}

    def adapt(self, theta: Theta, support: Batch) -> Classifier:
        path = self._descend(part(theta, PREFIX), self._features(theta, support.x), support.y, Noise())
        return Classifier(path.weights, known_statistics(self.encoder, theta, support.x))

    def predict(self, theta: Theta, phi: Classifier, x: Tensor) -> Tensor:
        return self._features(theta, x, phi.statistics) @ phi.weights.T

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        (x, y), (xq, yq) = episode
        parts = part(theta, PREFIX)
        z, zq = self._features(theta, x), self._features(theta, xq, known_statistics(self.encoder, theta, x))
        path = self._descend(parts, F.dropout(z, self.dropout), y, self._noise(z))
        penalties = (
            self.kl * divergence(path.code)
            + self.encoder_penalty * (path.end.detach() - path.start).square().mean()
            + self.orthogonality * correlation(parts["decoder.weight"])
        )
        return F.cross_entropy(F.dropout(zq, self.dropout) @ path.weights.T, yq) + penalties

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean over classes of their codes after the latent steps: [latent]."""
        z = self._features(theta, support.x)
        return self._descend(part(theta, PREFIX), z, support.y, Noise()).end.mean(0)

    def _features(self, theta: Theta, x: Tensor, known: Theta | None = None) -> Tensor:
        """Features [n, width], each scaled to length one. `known` are the support set's statistics."""
        return F.normalize(features(self.encoder, self.width, theta, x, known), dim=1)

    def _noise(self, like: Tensor) -> Noise:
        if not self.sample:
            return Noise()
        sizes = {"latent": (self.ways, self.latent), "weights": (self.ways, self.width)}
        return Noise(**{n: torch.randn(size, dtype=like.dtype, device=like.device) for n, size in sizes.items()})

    def _descend(self, parts: Theta, z: Tensor, y: Tensor, noise: Noise) -> Path:
        """Both inner loops, from the support set's features z [n, width]."""

        def weights_of(codes: Tensor, parts: Theta, *noise: Tensor) -> Tensor:
            return decoded(parts, codes, self.ways).at(*noise)

        def support_loss(weights: Tensor, z: Tensor, y: Tensor) -> Tensor:
            return self.ways * F.cross_entropy(z @ weights.T, y)

        code = inferred(parts, z, y, self.ways)
        start = code.at(noise.latent)
        decoder = ({"decoder.weight": parts["decoder.weight"]}, *([] if noise.weights is None else [noise.weights]))
        end = descend(
            lambda p, z, y, *decoder: support_loss(weights_of(p["z"], *decoder), z, y),
            {"z": start},
            given=(z, y, *decoder),
            lr=parts["rate.latent"],
            steps=self.steps,
            adjoint=adjoint_of(self),
        )["z"]
        weights = descend(
            lambda p, z, y: support_loss(p["w"], z, y),
            {"w": weights_of(end, *decoder)},
            given=(z, y),
            lr=parts["rate.finetune"],
            steps=self.finetune_steps,
            adjoint=adjoint_of(self),
        )["w"]
        return Path(code, start, end, weights)


def inferred(parts: Theta, z: Tensor, y: Tensor, ways: int) -> Gaussian:
    """The distribution of the classes' latent codes [ways, latent], from features z [n, width] and classes y [n].

    The relation network compares every example with every example.
    """
    e = F.linear(z, parts["encoder.weight"])
    n = len(e)
    pairs = torch.cat([e[:, None].expand(n, n, -1), e.expand(n, n, -1)], -1)  # [n, n, 2 * latent]
    for i in range(2):
        pairs = F.linear(pairs, parts[f"relation.{i}.weight"]).relu()
    # The third layer is linear, so it can be applied after the means.
    return gaussian(F.linear(class_means(pairs.mean(1), y, ways), parts["relation.2.weight"]), 1.0)


def decoded(parts: Theta, codes: Tensor, ways: int) -> Gaussian:
    """The distribution of the classifier weights [ways, width], given latent codes [ways, latent]."""
    numbers = F.linear(codes, parts["decoder.weight"])  # [ways, 2 * width]
    return gaussian(numbers, math.sqrt(2 / (ways + numbers.shape[-1] // 2)))  # the standard deviation of Glorot


def gaussian(numbers: Tensor, scale: float) -> Gaussian:
    """The first half of the numbers as means, the second half as raw standard deviations: a raw zero gives `scale`."""
    mean, u = numbers.chunk(2, -1)
    return Gaussian(mean, scale * F.softplus(u) / math.log(2))


def divergence(q: Gaussian) -> Tensor:
    """KL(q || N(0, 1)), the mean over all numbers."""
    standard = Gaussian(torch.zeros_like(q.mean), torch.ones_like(q.std))
    return divergence_of(q, standard) / q.mean.numel()


def correlation(weight: Tensor) -> Tensor:
    """mean (C - I)^2, where C_ij is the cosine of columns i and j of weight [out, in]: zero if they are orthogonal."""
    columns = F.normalize(weight, dim=0)
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    return (columns.T @ columns - identity).square().mean()
