"""CNAPs: small networks read the support set and generate the feature extractor's modulation and the classifier."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Encoder, Episode, Learner, NotAnOption, Theta, Ways, Width
from quickstudy.learners.parts.encoding import checked_features
from quickstudy.learners.parts.sets import applied, members, perceptron, set_means
from quickstudy.nn.film import conditioned_layers, film, width_of
from quickstudy.nn.model import Change, call
from quickstudy.nn.parameters import beside, own, parameters, part
from quickstudy.nn.statistics import statistics

PREFIX = "cnaps."  # prefix in theta of the networks that generate parameters
SET = "set_encoder."  # prefix in theta of the set encoder


class Adapted(NamedTuple):
    films: Theta  # layer -> scale and shift [2, channels]
    weights: Tensor  # [ways, width]
    biases: Tensor  # [ways]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class CNAPs(Learner):
    """One pass over the support set generates the task's network: no inner steps, no gradients at test.

        z = mean_i a(s(x_i))                                                          the task embedding
        layer l's output h  ->  (1 + lambda_l * g_l(z)) * h + mu_l * b_l(z)           for every chosen layer
        c_k = mean of f_z(x_i) over class k,   w_k = c_k + u(c_k),   beta_k = v(c_k)
        logits_k(x) = f_z(x) . w_k / sqrt(width) + beta_k,   f_z the modulated extractor
        meta-loss   cross entropy of the query set + penalty * sum_l (|lambda_l|^2 + |mu_l|^2)

    a, g, b, u and v are perceptrons, kept in theta under "cnaps."; s is the set encoder. lambda and mu are learned,
    with one number per channel. They start near 0 (normal, standard deviation 0.001), so that the extractor starts
    almost unmodulated. All classes share u and v, so `ways` may differ between training and test.

    Requeima, Gordon, Bronskill, Nowozin, Turner: Fast and Flexible Multi-Task Classification Using Conditional Neural
    Adaptive Processes, NeurIPS 2019, https://arxiv.org/abs/1906.07697

    >>> import quickstudy as qs
    >>> learner = qs.CNAPs(qs.nn.conv4(channels=1, downsample="pool"), width=64, ways=5)

    Deviations from the paper: its second pathway, which gives each block the support set's features from the blocks
    below, is left out. The paper freezes an extractor trained on ImageNet and has a separate convolutional set encoder.
    Here both are options (`freeze`, `set_encoder`); by default the extractor is trained too and also encodes the set,
    unmodulated. Perceptrons have ReLU instead of ELU, and only u has a skip connection. Inner products are divided by
    sqrt(width), so that a wide extractor does not start with overconfident predictions. The outer optimizer is Adam at
    1e-3, in the authors' code (https://github.com/cambridge-mlg/cnaps) at 5e-4 over 16 tasks.
    """

    encoder: Encoder  # the feature extractor: maps x [n, ...] to features [n, width]
    width: Width  # of the encoder's features
    ways: Ways = 5  # classes in a task
    layers: str = ""  # modulated layers, patterns such as "block*.norm"; empty: every norm layer
    freeze: bool = False  # keep the extractor's weights fixed; theta then does not contain them
    # maps x to [n, width] for the task's embedding; None: the extractor itself
    set_encoder: NotAnOption[nn.Module | None] = None
    embedding: int = 64  # length of z
    penalty: float = 0.001  # weight of the penalty on squared lambda and mu

    def __post_init__(self) -> None:
        if self.width < 1 or self.embedding < 1:
            given = f"width={self.width}, embedding={self.embedding}"
            raise ConfigError(f"width and embedding must be at least 1; got {given}.")
        self._channels()
        if self.freeze and parameters(self.encoder):  # a copy, so that the caller's network stays unchanged
            object.__setattr__(self, "encoder", copy.deepcopy(self.encoder).requires_grad_(False))

    def _channels(self) -> dict[str, int]:
        return {name: width_of(self.encoder, name) for name in conditioned_layers(self.encoder, self.layers)}

    def init(self) -> Theta:
        theta = beside(parameters(self.encoder), PREFIX, self._writers())
        return theta if self.set_encoder is None else beside(theta, SET, parameters(self.set_encoder))

    def _writers(self) -> Theta:
        w, t, generator = self.width, self.embedding, seeds.generator(0, "cnaps")
        parts = perceptron("task", [w, t, t], generator)
        for name, channels in self._channels().items():
            parts |= perceptron(f"film.{name}", [t, t, 2 * channels], generator)
            drawn = torch.randn(2, channels, generator=generator, dtype=torch.get_default_dtype())
            parts[f"film.{name}.size"] = 0.001 * drawn  # lambda and mu
        parts |= perceptron("weights", [w, w, w], generator)
        return parts | perceptron("biases", [w, w, 1], generator, level=False)

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The task embedding z [embedding]. It does not depend on the labels."""
        encoder, inside = self.encoder, own(self.encoder, theta)
        if self.set_encoder is not None:
            encoder, inside = self.set_encoder, own(self.set_encoder, part(theta, SET))
        found = checked_features(call(encoder, inside, support.x), self.width)
        return applied(part(theta, PREFIX), "task", found).mean(0)

    def adapt(self, theta: Theta, support: Batch) -> Adapted:
        parts, z = part(theta, PREFIX), self.embed(theta, support)
        films = {name: film_of(parts, name, z) for name in self._channels()}
        known = statistics(self.encoder, own(self.encoder, theta), support.x, after=_after(films))
        f = self._features(theta, films, support.x)
        means = set_means(f, members(support.y, self.ways, f))
        biases = applied(parts, "biases", means).squeeze(-1)
        return Adapted(films, means + applied(parts, "weights", means), biases, known)

    def predict(self, theta: Theta, phi: Adapted, x: Tensor) -> Tensor:
        f = self._features(theta, phi.films, x, phi.statistics)
        return f @ phi.weights.T / math.sqrt(self.width) + phi.biases

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        sizes = [value for name, value in part(theta, PREFIX).items() if name.endswith(".size")]
        penalty = self.penalty * torch.cat([size.flatten() for size in sizes]).square().sum()
        return F.cross_entropy(self.predict(theta, phi, episode.query.x), episode.query.y) + penalty

    def _features(self, theta: Theta, films: Theta, x: Tensor, known: Theta | None = None) -> Tensor:
        """f_z [n, width]. `known` are the support set's statistics."""
        found = call(self.encoder, own(self.encoder, theta) | (known or {}), x, after=_after(films))
        return checked_features(found, self.width)


def film_of(parts: Theta, name: str, z: Tensor) -> Tensor:
    """Scale and shift [2, channels] of the named layer for the task embedding z."""
    return parts[f"film.{name}.size"] * applied(parts, f"film.{name}", z).unflatten(0, (2, -1))


def _after(films: Theta) -> dict[str, Change]:
    return {name: functools.partial(_modulated, change) for name, change in films.items()}


def _modulated(change: Tensor, h: Tensor) -> Tensor:
    return film(h, *change.unbind())
