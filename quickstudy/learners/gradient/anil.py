"""ANIL: almost no inner loop. Only the head adapts, on features shared by all tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from quickstudy.inner.adjoints import Adjoint, adjoint_of, with_exact_adjoint
from quickstudy.inner.descent import check_inner_loop, descend
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta
from quickstudy.learners.parts.losses import loss_above
from quickstudy.nn.model import call
from quickstudy.nn.parameters import last_linear, matching, parameters
from quickstudy.nn.statistics import statistics


@dataclass(frozen=True, eq=False)
class ANIL(Learner):
    """MAML in which only some parameters, by default the head, take inner steps; the body is shared by all tasks.

        theta = (body, head),   head_0 = head,   head_{k+1} = head_k - lr * grad_head L_S(body, head_k)
        meta-loss               L_Q(body, head_K), differentiated through every step

    When only the head adapts, the features of the support set are computed once, whatever the number of steps.

    Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse?, ICLR 2020, https://arxiv.org/abs/1909.09157

    >>> import quickstudy as qs
    >>> learner = qs.ANIL(qs.nn.conv4(channels=1, classes=5), lr=0.1, steps=5)
    >>> lower = qs.ANIL(qs.nn.conv4(channels=1, classes=5), adapts="head.*,block4.*")

    Deviations from the paper: none.
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.1  # inner learning rate
    steps: int = 5  # inner gradient steps
    adapts: str = ""  # parameters that adapt, such as 'head.*,block4.*'; empty: the last linear layer
    first_order: bool = False  # drop the second-order term; the same as adjoint "first_order"
    adjoint: str | Adjoint = "unroll"  # how to differentiate inner steps: unroll, remat, mixed, implicit or first_order
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    def __post_init__(self) -> None:
        check_inner_loop(self)
        self._moving()

    def _moving(self) -> list[str]:
        return matching(self.model, self.adapts or f"{last_linear(self.model)}*")

    def exact(self) -> Learner:
        return with_exact_adjoint(self)

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        """Only the adapted parameters; the others are taken from theta."""
        start = {name: theta[name] for name in self._moving()}
        head = last_linear(self.model) if self.adapts == "" else None
        loss_at, given = loss_above(self.model, self.loss, theta, support, head)
        phi = descend(
            loss_at, start, given=given, lr=self.lr, steps=self.steps, adjoint=adjoint_of(self), rule=self.rule
        )
        return phi | statistics(self.model, theta | phi, support.x)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, theta | phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)
