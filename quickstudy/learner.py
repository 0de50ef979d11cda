"""The contract. Every method of the library is a value with four pure methods:

    init()                    -> theta      what is learned across tasks
    adapt(theta, support)     -> phi        what is learned from one task's support set
    predict(theta, phi, x)    -> output     the adapted model's output
    meta_loss(theta, episode) -> scalar     one episode's loss; its gradient in theta is the meta-gradient

`theta` is a flat `dict[str, Tensor]` with dotted keys; `phi` is any pytree of tensors. Nothing is written after
construction and no input is modified, so the same learner can be mapped over tasks by `vmap`, by threads or by a loop.

Two methods are optional. What needs them asks whether the learner has them:

    embed(theta, support)          -> [d]          the task as one vector, for plots and neighbours
    distribution(theta, phi, x)    -> (mean, std)  regression: two tensors [m, d], of which `predict` gives the first
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Theta = dict[str, Tensor]


class Batch(NamedTuple):
    """Inputs and their answers. x [n, ...]; y [n] class numbers (int64) or [n, d] values."""

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One sampled task. A batch of episodes is the same with a leading task axis on every tensor."""

    support: Batch
    query: Batch


class Outer(NamedTuple):
    """How the outer loop moves theta."""

    optimizer: str = "adam"  # adam or sgd
    lr: float = 1e-3
    schedule: str = "constant"  # constant; cosine or linear: down to 0 over all iterations


class Learner(abc.ABC):
    """What every learner is: a frozen dataclass of hyper-parameters with the four methods below.

    The class is abstract and learners are final: no learner inherits from another.
    """

    episodic: ClassVar[bool] = True  # trains on episodes; False: on the pooled examples of all training tasks
    approximate: ClassVar[bool] = False  # True: the meta-gradient is not the derivative of the meta-loss, by design
    handed_in: ClassVar[tuple[str, ...]] = ()  # the same of entries of theta whose names begin so
    from_nothing: ClassVar[bool] = False  # True: answers without a single support example too

    @abc.abstractmethod
    def init(self) -> Theta:
        """Meta-parameters to start from: name -> tensor."""

    @abc.abstractmethod
    def adapt(self, theta: Theta, support: Batch) -> Any:
        """Task parameters phi from one task's support set: x [n, ...], y [n] or [n, d]."""

    @abc.abstractmethod
    def predict(self, theta: Theta, phi: Any, x: Tensor) -> Tensor:
        """Output for x [m, ...]: logits [m, ways] or values [m, d]."""

    @abc.abstractmethod
    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        """Loss of one episode, a scalar. Its gradient in theta is the meta-gradient."""

    def outer(self) -> Outer:
        """The outer loop that suits this learner, where the caller names none."""
        return Outer()

    def at(self, progress: float) -> Learner:
        """The learner that trains at `progress` in [0, 1) of the run: itself, unless its loss changes on the way."""
        return self


def with_gradient(value: Tensor, theta: Theta, gradient: Mapping[str, Tensor]) -> Tensor:
    """A scalar whose value is `value` and whose gradient in theta is `gradient`.

    With it a learner that does not unroll (Reptile, implicit MAML, evolution strategies) hands in the gradient it
    computed, and the one training loop serves it like any other: sum_k <theta_k - stop(theta_k), g_k> is exactly zero
    and has the wanted derivative.
    """
    result = value.detach()
    for name, g in gradient.items():
        result = result + ((theta[name] - theta[name].detach()) * g.detach()).sum()
    return result


def as_module(learner: Learner) -> nn.Module:
    """An `nn.Module` whose parameters are theta and whose `forward(episode)` is the meta-loss.

    For people who bring their own loop, Lightning, Accelerate or DistributedDataParallel. Takes one episode, or a
    batch of episodes (a leading task axis) when `forward(episodes, batched=True)`, which gives their mean loss.
    """
    return _LearnerModule(learner)


class _LearnerModule(nn.Module):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        # Module attributes may not hold dots, theta's keys do: keep the names beside a plain list.
        theta = learner.init()
        self.names = tuple(theta)
        self.values = nn.ParameterList(nn.Parameter(value) for value in theta.values())

    def theta(self) -> Theta:
        return dict(zip(self.names, self.values, strict=True))

    def forward(self, episode: Episode, batched: bool = False) -> Tensor:
        if not batched:
            return self.learner.meta_loss(self.theta(), episode)
        from quickstudy.engine import unstack  # the engine imports this module

        return torch.stack([self.learner.meta_loss(self.theta(), one) for one in unstack(episode)]).mean()
