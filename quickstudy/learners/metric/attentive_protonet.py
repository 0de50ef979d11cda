"""Attentive prototypes: class means that attend to each other before they classify."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Encoder, Episode, Learner, Theta, Ways, Width
from quickstudy.learners.metric.protonet import Prototypes
from quickstudy.learners.parts.distance import class_means, squared_distances, to_nearest
from quickstudy.learners.parts.encoding import embedding, known_statistics
from quickstudy.nn.parameters import beside, parameters, part

PREFIX = "attention."  # prefix in theta of the attention's matrices
MAPS = ("query", "key", "value", "output")


@dataclass(frozen=True, eq=False)
class AttentiveProtoNet(Learner):
    """Prototypes adapted to the task by self-attention among them; then the nearest one decides.

        c_k = mean of f(x) over the support examples of class k
        c'_k = c_k + W_o sum_j softmax_j(W_q n(c_k) . W_k n(c_j) / sqrt(d_head)) W_v n(c_j)   in each of `heads` heads
        logits_k(x) = -|f(x) - c'_k|^2 / temperature

    n is layer normalisation (without scale and shift, which the matrices include). With W_o = 0 this is exactly
    ProtoNet; W_o starts small. The loss adds `contrast` times a regulariser: the examples of each class, support and
    query, attend to each other, and the means of the results must classify all examples. No part of theta belongs to a
    class, so `ways` may differ between training and test.

    Ye, Hu, Zhan, Sha: Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions (FEAT), CVPR 2020,
    https://arxiv.org/abs/1812.03664

    >>> import quickstudy as qs
    >>> learner = qs.AttentiveProtoNet(qs.nn.conv4(channels=1, downsample="pool"), width=64)

    Deviations from the paper: normalisation comes before the attention and not after the sum, where it would change the
    prototypes even without attention; the attention has no dropout; matrices have no bias; the encoder is not
    pretrained, unless you bring one that is. The regulariser is that of the authors' code
    (https://github.com/Sha-Lab/FEAT), which compares the encoder's unadapted embeddings with the adapted means. There
    it has a temperature of its own; here it has that of the logits. Their commands set 64 and 16 (conv4, 1-shot), 32
    and 64 (5-shot), with `contrast` 1 and 0.1; here `temperature` is 1 by default. Matrices start from Glorot's uniform
    values, W_o from a tenth of them; theirs from Glorot's normal values. Their attention learns at ten times the
    encoder's rate.
    """

    encoder: Encoder  # maps x [n, ...] to embeddings [n, width]
    width: Width  # of the encoder's embeddings
    ways: Ways = 5  # classes in a task
    heads: int = 1  # attention heads; their number must divide the width
    contrast: float = 0.1  # weight of the contrastive regulariser
    temperature: float = 1.0  # what squared distances are divided by

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise ConfigError(f"heads must divide the width, got heads={self.heads} and width={self.width}.")
        if self.contrast < 0 or not self.temperature > 0:
            raise ConfigError(
                f"contrast must be 0 or more and temperature above 0, got {self.contrast} and {self.temperature}."
            )

    def init(self) -> Theta:
        generator, shape = seeds.generator(0, "attentiveprotonet"), (self.width, self.width)
        drawn = {f"{name}.weight": nn.init.xavier_uniform_(torch.empty(shape), generator=generator) for name in MAPS}
        drawn["output.weight"] *= 0.1  # starts close to a ProtoNet
        return beside(parameters(self.encoder), PREFIX, drawn)

    def adapt(self, theta: Theta, support: Batch) -> Prototypes:
        means = self._prototypes(theta, self._embedding(theta, support.x), support.y)
        return Prototypes(means, known_statistics(self.encoder, theta, support.x))

    def _embedding(self, theta: Theta, x: Tensor, known: Theta | None = None) -> Tensor:
        z = embedding(self.encoder, theta, x, known)
        if z.shape[1] != self.width:
            raise ConfigError(f"width={self.width} was given, but the encoder's embeddings have {z.shape[1]} numbers.")
        return z

    def _prototypes(self, theta: Theta, z: Tensor, y: Tensor) -> Tensor:
        return attended(part(theta, PREFIX), class_means(z, y, self.ways), self.heads)

    def _logits(self, z: Tensor, means: Tensor) -> Tensor:
        return -squared_distances(z, means) / self.temperature

    def predict(self, theta: Theta, phi: Prototypes, x: Tensor) -> Tensor:
        return self._logits(self._embedding(theta, x, phi.statistics), phi.means)

    def distance(self, theta: Theta, phi: Prototypes, x: Tensor) -> Tensor:
        """min_k |f(x) - c'_k|^2 [m]."""
        return to_nearest(squared_distances(self._embedding(theta, x, phi.statistics), phi.means))

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The mean of the adapted prototypes [d]."""
        return self.adapt(theta, support).means.mean(0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        (x, y), (xq, yq) = episode
        z, zq = self._embedding(theta, x), self._embedding(theta, xq, known_statistics(self.encoder, theta, x))
        loss = F.cross_entropy(self._logits(zq, self._prototypes(theta, z, y)), yq)
        if not self.contrast:
            return loss
        return loss + self.contrast * self._contrast(theta, torch.cat([z, zq]), torch.cat([y, yq]))

    def _contrast(self, theta: Theta, z: Tensor, y: Tensor) -> Tensor:
        """Cross entropy of all examples under the class means after attention within each class."""
        adapted = attended(part(theta, PREFIX), z, self.heads, y[:, None] == y)
        return F.cross_entropy(self._logits(z, class_means(adapted, y, self.ways)), y)


def attended(parts: Theta, z: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """z [n, d] plus what each row gathers by attention; `allowed` [n, n]: whether row i may attend to row j."""
    h = F.layer_norm(z, z.shape[1:])
    q, k, v = ((h @ parts[f"{name}.weight"].T).unflatten(1, (heads, -1)).transpose(0, 1) for name in MAPS[:3])
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # [heads, n, n]
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return z + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ parts["output.weight"].T
