"""LSTM meta-learner: the inner update is the cell of an LSTM, with a learned rate and a learned forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy import seeds
from quickstudy.errors import ConfigError
from quickstudy.inner import check_steps, value_and_gradient
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.model import beside, call, own, parameters, part, statistics

P = 10.0  # numbers below exp(-P) are told by their value, not by their logarithm
KEEP = 5.0  # bias of the forget gate at the start: sigmoid(5) = 0.993
GATES = ("forget", "input")


@dataclass(frozen=True, eq=False)
class LSTMMetaLearner(Learner):
    """Task parameters are the cell state of an LSTM whose input is the gradient; its gates are learned.

        phi_t = f_t * phi_{t-1} - i_t * g_t,   g_t = grad L_S(phi_{t-1}),   phi_0 in theta
        i_t = sigmoid(w_i . [p(g_t), p(L_t), phi_{t-1}, i_{t-1}] + b_i),   f_t likewise,   i_0 = f_0 = 0
        p(x) = (log|x| / 10, sign(x)) where |x| >= exp(-10), otherwise (-1, exp(10) x)

    Every coordinate of phi has gates of its own, all computed by the same seven numbers each ("gate." in theta), so
    they say how to learn, whatever the network. With f = 1 and a fixed i it is gradient descent, and this learner is
    MAML. `first_order`: gradients and losses enter as constants; the derivative passes through gates and phi alone.

    Ravi, Larochelle: Optimization as a Model for Few-Shot Learning, ICLR 2017,
    https://openreview.net/forum?id=rJY0-Kcll

    >>> import quickstudy as qs
    >>> learner = qs.LSTMMetaLearner(qs.nn.conv4(channels=1, classes=5), steps=5)

    Deviations from the paper: the gates read p(g) and p(L) themselves, where its experiments put a further LSTM of 20
    units between; every step reads the whole support set; batch normalisation as the network declares.
    """

    model: nn.Module  # maps x to logits or values
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.01  # what the input gate starts from, between 0 and 1
    steps: int = 5  # inner steps
    first_order: bool = True  # gradients and losses enter the update as constants

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
            loss, slope = value_and_gradient(self._support_loss, phi, (support,), adjoint)
            seen = {n: (*preprocessed(g), *preprocessed(loss), phi[n]) for n, g in slope.items()}
            before = {k: {n: opened(gates, k, (*seen[n], before[k][n])) for n in phi} for k in GATES}
            phi = {n: before["forget"][n] * phi[n] - before["input"][n] * slope[n] for n in phi}
        return phi | statistics(self.model, phi, support.x)

    def _support_loss(self, phi: Theta, support: Batch) -> Tensor:
        return self.loss(call(self.model, phi, support.x), support.y)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)


def preprocessed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Size and sign of numbers that may be of any order, both about 1; continuous, with a derivative at zero."""
    large = x.abs() >= math.exp(-P)
    safe = torch.where(large, x.abs(), 1.0)  # the logarithm that is not taken must not have a derivative either
    return torch.where(large, safe.log() / P, -1.0), torch.where(large, x.sign(), math.exp(P) * x)


def opened(gates: Theta, gate: str, seen: Sequence[Tensor]) -> Tensor:
    """How far a gate is open for every coordinate, given the six things it looks at."""
    terms = (weight * t for weight, t in zip(gates[f"{gate}.weight"], seen, strict=True))
    return sum(terms, start=gates[f"{gate}.bias"]).sigmoid()
