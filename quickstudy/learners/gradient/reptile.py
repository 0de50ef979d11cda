"""Reptile: move the initialisation towards where plain training on each task ends up."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import trees
from quickstudy.episodes import examples
from quickstudy.errors import ConfigError
from quickstudy.inner.descent import check_inner_loop, descend
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Outer, Theta, with_gradient
from quickstudy.nn.model import call
from quickstudy.nn.parameters import parameters
from quickstudy.nn.statistics import statistics


@dataclass(frozen=True, eq=False)
class Reptile(Learner):
    """Learn an initialisation theta close to the solutions of all tasks, without a derivative of the inner loop.

        phi_0 = theta,   phi_{k+1} = phi_k - lr * direction(grad L_{B_k}(phi_k)),   B_k a minibatch of the support set
        meta-gradient    theta - phi_K,   so that outer descent at rate e is  theta <- theta + e (phi_K - theta)

    Train it with more shots than it is tested with, because it learns from the support set alone (the queries only
    give the reported loss). Its outer loop is plain gradient descent, with a rate that falls linearly from 1 to 0.

    Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, https://arxiv.org/abs/1803.02999

    >>> import quickstudy as qs
    >>> learner = qs.Reptile(qs.nn.mlp(10, 2, hidden=(50,)), lr=0.01, steps=5)

    Deviations from the paper: the running averages of Adam start from zero in each task, whereas the paper's code
    carries them from task to task in training.
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 1e-3  # inner learning rate
    steps: int = 5  # inner steps
    batch: int = 10  # support examples per inner step; 0, or more than there are: all of them
    rule: str | Rule = "adam_no_momentum"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    approximate: ClassVar[bool] = True  # theta - phi_K is not the derivative of the query loss

    def __post_init__(self) -> None:
        check_inner_loop(self)
        if self.batch < 0:
            raise ConfigError(f"batch must be the number of examples in an inner step, or 0 for all; got {self.batch}.")

    def outer(self) -> Outer:
        return Outer("sgd", lr=1.0, schedule="linear")

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        batches = minibatches(support, self.batch, self.steps)
        losses = [functools.partial(self._support_loss, k) for k in range(len(batches))]
        phi = descend(losses, theta, given=batches, lr=self.lr, steps=self.steps, adjoint="first_order", rule=self.rule)
        return phi | statistics(self.model, phi, support.x)

    def _support_loss(self, k: int, phi: Theta, *batches: Batch) -> Tensor:
        return self.loss(call(self.model, phi, batches[k].x), batches[k].y)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        start = {name: value.detach() for name, value in theta.items()}
        phi = self.adapt(start, episode.support)
        loss = self.loss(self.predict(start, phi, episode.query.x), episode.query.y)
        return with_gradient(loss, theta, {name: start[name] - phi[name] for name in theta})


def minibatches(data: Batch, size: int, count: int) -> list[Batch]:
    """`count` batches of `size` examples: repeated passes through the data, each in a new random order.

    Every batch is all of the data where `size` is 0 or not below the number of examples.
    """
    n, device = trees.size(data.x), trees.first(data.x).device
    if size == 0 or size >= n or count == 0:
        return [data] * max(count, 1)
    passes = -(-count * size // n)
    order = torch.rand(passes, n, device=device).argsort(1).flatten()
    chosen = [order[k * size : (k + 1) * size] for k in range(count)]
    return [examples(data, one) for one in chosen]
