"""Matching networks: a query takes the labels of the support examples that it attends to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Encoder, Episode, Learner, Theta, Ways, Width
from quickstudy.learners.metric.context import in_context, init_context, reading
from quickstudy.learners.parts.distance import class_means, cosines, to_nearest
from quickstudy.learners.parts.encoding import embedding, known_statistics, one_hot
from quickstudy.nn.parameters import beside, parameters, part

PREFIX = "matchingnet."  # prefix in theta of everything but the encoder's parameters


class Memory(NamedTuple):
    embeddings: Tensor  # [n, d], of the support examples
    labels: Tensor  # [n]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class MatchingNet(Learner):
    """Classify by attention over the support examples, by cosine similarity in a learned embedding.

        a(x, x_i) = softmax over i of s cos(f(x), g(x_i)),   p_k(x) = sum of a(x, x_i) over the examples of class k
        logits_k(x) = log p_k(x)

    f = g is the encoder. With `context` both also depend on the whole support set (full-context embeddings): g by a
    bidirectional LSTM that reads it as a sequence, f by an LSTM that reads g by attention `readings` times; see
    `context.py`. **A bidirectional LSTM makes the answer depend on the order of the support set**; without `context`
    it does not. `ways` may differ between training and test, because theta does not depend on it.

    Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, NeurIPS 2016,
    https://arxiv.org/abs/1606.04080

    >>> import quickstudy as qs
    >>> learner = qs.MatchingNet(qs.nn.conv4(channels=1, downsample="pool"), ways=5)

    Deviations from the paper: its cosines have no factor s, so that p cannot come near 1 (`scale=1.0,
    learn_scale=False` is the paper's form); support and query share one encoder. As in the paper, attention is summed,
    so that a larger class has more of it.
    """

    encoder: Encoder  # maps x [n, ...] to embeddings [n, d]
    ways: Ways = 5  # classes in a task
    width: Width | None = None  # of the encoder's embeddings; needed with context
    scale: float = 10.0  # factor of the cosines, or its initial value if learned
    learn_scale: bool = True  # learn that factor
    context: bool = False  # embeddings that depend on the whole support set, in its order
    readings: int = 5  # with context: how often a query reads the support set

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ConfigError(f"scale must be above 0, got {self.scale}.")
        if self.readings < 0:
            raise ConfigError(f"readings must be 0 or more, got {self.readings}.")
        if self.context and not self.width:
            raise ConfigError("context needs the width of the encoder's embeddings, as in MatchingNet(..., width=64).")

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether the order of the support set matters."""
        return self.context

    def init(self) -> Theta:
        more = {"log_scale": torch.tensor(math.log(self.scale))} if self.learn_scale else {}
        if self.context and self.width:
            more |= init_context(self.width, seeds.generator(0, "matchingnet"))
        return beside(parameters(self.encoder), PREFIX, more)

    def adapt(self, theta: Theta, support: Batch) -> Memory:
        z = embedding(self.encoder, theta, support.x)
        z = in_context(part(theta, PREFIX), z) if self.context else z
        return Memory(z, support.y, known_statistics(self.encoder, theta, support.x))

    def _cosines(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        """The cosines of f(x) and the support examples: [m, n]."""
        z = embedding(self.encoder, theta, x, phi.statistics)
        z = reading(part(theta, PREFIX), z, phi.embeddings, self.readings) if self.context else z
        return cosines(z, phi.embeddings)

    def predict(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        scale = part(theta, PREFIX)["log_scale"].exp() if self.learn_scale else self.scale
        return log_attention(scale * self._cosines(theta, phi, x), phi.labels, self.ways)

    def distance(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        """min_i 1 - cos(f(x), g(x_i)) [m], from 0 to 2. Attention would not do: it sums to 1 however far x is."""
        return to_nearest(1 - self._cosines(theta, phi, x))

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the class means of g [d]; with context it depends on the order of the support set."""
        phi = self.adapt(theta, support)
        return class_means(phi.embeddings, phi.labels, self.ways).mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return F.cross_entropy(self.predict(theta, phi, episode.query.x), episode.query.y)


def log_attention(scores: Tensor, y: Tensor, ways: int) -> Tensor:
    """Log of the attention on each class: scores [m, n] of examples with classes y [n] -> [m, ways].

    Each class's sum is taken relative to its own largest score, so that the logarithm stays finite for a class with
    very low scores. Every class must have an example.
    """
    with torch.no_grad():
        lowest = scores.amin(1, keepdim=True).expand(-1, ways)
        largest = lowest.scatter_reduce(1, y.expand(len(scores), -1), scores, "amax")  # [m, ways]
    mass = (scores - largest[:, y]).exp() @ one_hot(y, ways, scores)
    return mass.log() + largest - scores.logsumexp(1, keepdim=True)
