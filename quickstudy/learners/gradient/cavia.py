"""CAVIA: one network for all tasks, and a small context vector for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.errors import ConfigError, suggest
from quickstudy.inner.adjoints import Adjoint, adjoint_of, with_exact_adjoint
from quickstudy.inner.descent import check_inner_loop, descend
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta
from quickstudy.nn.film import conditioned_layer, film, width_of
from quickstudy.nn.model import Change, call
from quickstudy.nn.parameters import beside, own, parameters, part
from quickstudy.nn.statistics import statistics

CONDITIONING = ("film", "shift")


@dataclass(frozen=True, eq=False)
class CAVIA(Learner):
    """Only a context vector adapts; it scales and shifts the output of one layer of the shared network.

        c_0 = 0,   c_{k+1} = c_k - lr * grad_c L_S(theta, c_k)
        layer's output h  ->  (1 + s) * h + b,   [s, b] = W c,   W in theta ("context.weight")
        meta-loss   L_Q(theta, c_K), differentiated through every step

    A task is described by `context` numbers, which can be stored, plotted and compared. With conditioning "shift" at
    the first linear layer, this is the same as appending the context to the input, [x, c], as the paper does for
    regression. "film" at the third convolution is the paper's form for images.

    Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson: Fast Context Adaptation via Meta-Learning, ICML 2019,
    https://arxiv.org/abs/1810.03642

    >>> import quickstudy as qs
    >>> learner = qs.CAVIA(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=1.0, context=4, conditioning="shift")

    Deviations from the paper: the scale is 1 + s, so that a context of zero leaves the network unchanged; in "film" the
    map from context to scale and shift has no bias, because the layer before has one. The outer rate is constant; in
    the authors' code (https://github.com/lmzintgraf/cavia) it falls by a tenth every 5,000 iterations, and each number
    of the meta-gradient is clipped to 10.
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 1.0  # inner learning rate
    steps: int = 2  # inner gradient steps
    context: int = 100  # length of the context vector
    conditioning: str = "film"  # what the context does to a layer's output: film (scale and shift) or shift
    layer: str = ""  # which layer's output; empty: the third convolution (normalised), or the first linear layer
    first_order: bool = False  # drop the second-order term; the same as adjoint "first_order"
    adjoint: str | Adjoint = "unroll"  # how to differentiate inner steps: unroll, remat, mixed, implicit or first_order
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    def __post_init__(self) -> None:
        check_inner_loop(self)
        if self.conditioning not in CONDITIONING:
            hint = suggest(self.conditioning, CONDITIONING)
            raise ConfigError(f"conditioning must be 'film' or 'shift', got {self.conditioning!r}.{hint}")
        if self.context < 0:
            raise ConfigError(f"context is the length of the context vector, 0 or more; got {self.context}.")
        self._width()

    def _layer(self) -> str:
        return self.layer or conditioned_layer(self.model)

    def _width(self) -> int:
        return width_of(self.model, self._layer())

    def exact(self) -> Learner:
        return with_exact_adjoint(self)

    def init(self) -> Theta:
        params = parameters(self.model)
        like = next(iter(params.values()))
        rows = self._width() * (2 if self.conditioning == "film" else 1)
        drawn = torch.rand(rows, self.context, generator=seeds.generator(0, "context"), dtype=like.dtype)
        bound = 1 / math.sqrt(max(self.context, 1))  # as torch initialises a linear layer
        return beside(params, "context.", {"weight": ((2 * drawn - 1) * bound).to(like.device)})

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        """{"context": c [context]}, and the support set's normalisation statistics if norm="support"."""
        weight = part(theta, "context.")["weight"]
        phi = descend(
            lambda phi, theta, support: self.loss(self._call(theta, phi, support.x), support.y),
            {"context": weight.new_zeros(self.context)},
            given=(theta, support),
            lr=self.lr,
            steps=self.steps,
            adjoint=adjoint_of(self),
            rule=self.rule,
        )
        return phi | statistics(self.model, own(self.model, theta), support.x, after=self._after(theta, phi))

    def _call(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        seen = {name: value for name, value in phi.items() if name != "context"}
        return call(self.model, own(self.model, theta) | seen, x, after=self._after(theta, phi))

    def _after(self, theta: Theta, phi: Theta) -> dict[str, Change]:
        changes = part(theta, "context.")["weight"] @ phi["context"]
        shift = changes[-self._width() :]
        scale = changes[: self._width()] if self.conditioning == "film" else None
        return {self._layer(): lambda h: film(h, scale, shift)}

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return self._call(theta, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The adapted context vector c [context]."""
        return self.adapt(theta, support)["context"]
