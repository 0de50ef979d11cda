"""Meta-SGD: learn the initialisation, and the direction and learning rate of the inner steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.inner.adjoints import ALONG_THE_PATH, Adjoint, adjoint_of, with_exact_adjoint
from quickstudy.inner.descent import check_inner_loop, descend
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta
from quickstudy.learners.parts.losses import loss_on
from quickstudy.nn.model import call
from quickstudy.nn.parameters import beside, own, parameters, part
from quickstudy.nn.statistics import statistics


@dataclass(frozen=True, eq=False)
class MetaSGD(Learner):
    """MAML with a learned inner learning rate for every single parameter.

        phi_{k+1} = phi_k - alpha * grad L_S(phi_k)   elementwise,   phi_0 = theta
        meta-loss   L_Q(phi_K), differentiated in theta and in alpha

    alpha starts at `lr` everywhere and may become zero (do not adapt) or negative. It is kept in theta under "rate.".

    Li, Zhou, Chen, Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017,
    https://arxiv.org/abs/1707.09835

    >>> import quickstudy as qs
    >>> learner = qs.MetaSGD(qs.nn.conv4(channels=1, classes=5), lr=0.1)

    Deviations from the paper: alpha starts at one value, whereas the paper draws it at random (from [0.005, 0.1]).
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.1  # initial value of every inner learning rate
    steps: int = 1  # inner gradient steps
    first_order: bool = False  # drop the second-order term; the same as adjoint "first_order"
    adjoint: str | Adjoint = "unroll"  # how to differentiate the inner loop: unroll, remat, mixed or first_order
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    def __post_init__(self) -> None:
        check_inner_loop(self, ALONG_THE_PATH)

    def exact(self) -> Learner:
        return with_exact_adjoint(self)

    def init(self) -> Theta:
        params = parameters(self.model)
        return beside(params, "rate.", {name: torch.full_like(value, self.lr) for name, value in params.items()})

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        phi = descend(
            loss_on(self.model, self.loss),
            own(self.model, theta),
            given=(support,),
            lr=part(theta, "rate."),
            steps=self.steps,
            adjoint=adjoint_of(self),
            rule=self.rule,
        )
        return phi | statistics(self.model, phi, support.x)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)
