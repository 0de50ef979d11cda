"""LSTM meta-learner: the inner update is an LSTM cell, whose gates learn the rate and the forgetting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.inner.derivatives import value_and_gradient
from quickstudy.inner.descent import check_steps
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta
from quickstudy.learners.parts.losses import loss_on
from quickstudy.nn.model import call
from quickstudy.nn.parameters import beside, own, parameters, part
from quickstudy.nn.statistics import statistics

P = 10.0  # numbers below exp(-P) are represented by their value instead of their logarithm
KEEP = 5.0  # bias of the forget gate at the start: sigmoid(5) = 0.993
GATES = ("forget", "input")


@dataclass(frozen=True, eq=False)
class LSTMMetaLearner(Learner):
    """Task parameters are the cell state of an LSTM whose input is the gradient; its gates are learned.

        phi_t = f_t * phi_{t-1} - i_t * g_t,   g_t = grad L_S(phi_{t-1}),   phi_0 in theta
        i_t = sigmoid(w_i . [p(g_t), p(L_t), phi_{t-1}, i_{t-1}] + b_i),   f_t likewise,   i_0 = f_0 = 0
        p(x) = (log|x| / 10, sign(x)) where |x| >= exp(-10), otherwise (-1, exp(10) x)

    Every coordinate of phi has its own gates. All are computed with the same seven numbers per gate ("gate." in theta),
    so that the update rule does not depend on the network. With f = 1 and a fixed i it is gradient descent, and this
    learner is MAML. With `first_order`, gradients and losses are treated as constants, and derivatives pass only
    through the gates and phi.

    Ravi, Larochelle: Optimization as a Model for Few-Shot Learning, ICLR 2017,
    https://openreview.net/forum?id=rJY0-Kcll

    >>> import quickstudy as qs
    >>> learner = qs.LSTMMetaLearner(qs.nn.conv4(channels=1, classes=5), steps=5)

    Deviations from the paper: the gates read p(g) and p(L) directly, whereas its experiments put another LSTM of 20
    units in between; every step reads the whole support set; batch normalisation is as the network declares. Biases of
    the gates start at fixed values, in the authors' code (https://github.com/twitter/meta-learning-lstm) at random ones
    from 4 to 5 (forget) and -5 to -4 (input); there gradients are clipped to a norm of 0.25.
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.01  # initial value of the input gate, between 0 and 1
    steps: int = 5  # inner steps
    first_order: bool = True  # treat gradients and losses in the update as constants

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr is what a gate starts from, between 0 and 1; got {self.lr}.")

    def init(self) -> Theta:
        generator = seeds.generator(0, "gates")
        weights = {f"{gate}.weight": 0.02 * torch.rand(6, generator=generator) - 0.01 for gate in GATES}
        biases = {"forget.bias": torch.tensor(KEEP), "input.bias": torch.tensor(math.log(self.lr / (1 - self.lr)))}
        return beside(parameters(self.model), "gate.", weights | biases)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        phi, gates = own(self.model, theta), part(theta, "gate.")
        adjoint = "first_order" if self.first_order else "unroll"
        before = {gate: {name: torch.zeros_like(value) for name, value in phi.items()} for gate in GATES}
        for _ in range(self.steps):
            loss, gradient = value_and_gradient(loss_on(self.model, self.loss), phi, (support,), adjoint)
            seen = {n: (*preprocessed(g), *preprocessed(loss), phi[n]) for n, g in gradient.items()}
            before = {k: {n: opened(gates, k, (*seen[n], before[k][n])) for n in phi} for k in GATES}
            phi = {n: before["forget"][n] * phi[n] - before["input"][n] * gradient[n] for n in phi}
        return phi | statistics(self.model, phi, support.x)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)


def preprocessed(x: Tensor) -> tuple[Tensor, Tensor]:
    """p(x): log-size and sign of numbers of any magnitude, both of order 1; continuous, and differentiable at zero."""
    large = x.abs() >= math.exp(-P)
    safe = torch.where(large, x.abs(), 1.0)  # keeps the derivative of the unused logarithm finite
    return torch.where(large, safe.log() / P, -1.0), torch.where(large, x.sign(), math.exp(P) * x)


def opened(gates: Theta, gate: str, seen: Sequence[Tensor]) -> Tensor:
    """The value of a gate, between 0 and 1, for every coordinate, given the gate's six inputs."""
    terms = (weight * t for weight, t in zip(gates[f"{gate}.weight"], seen, strict=True))
    return sum(terms, start=gates[f"{gate}.bias"]).sigmoid()
