"""Model-agnostic meta-learning: learn the initialisation from which a few gradient steps solve a new task."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from quickstudy.inner.adjoints import Adjoint, adjoint_of, with_exact_adjoint
from quickstudy.inner.descent import check_inner_loop, descend
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta
from quickstudy.nn.model import call
from quickstudy.nn.parameters import parameters
from quickstudy.nn.statistics import statistics


@dataclass(frozen=True, eq=False)
class MAML(Learner):
    """Learn an initialisation theta that is good after `steps` gradient steps on the support set.

        phi_0 = theta,   phi_{k+1} = phi_k - lr * grad L_S(phi_k)
        meta-loss        L_Q(phi_K)
        meta-gradient    prod_k (I - lr * H_k) grad L_Q(phi_K)

    With `first_order` the product is dropped (FOMAML), which leaves grad L_Q(phi_K).

    Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017,
    https://arxiv.org/abs/1703.03400

    >>> import torch, quickstudy as qs
    >>> learner = qs.MAML(torch.nn.Linear(1, 1), loss=torch.nn.functional.mse_loss, lr=0.01, steps=5)
    >>> theta = learner.init()
    >>> x = torch.linspace(-1, 1, 10)[:, None]
    >>> loss = learner.meta_loss(theta, qs.Episode(qs.Batch(x, 2 * x), qs.Batch(x, 2 * x)))

    Deviations from the paper: none. The authors' code clips each number of the meta-gradient to 10 on mini-ImageNet
    (`clip` here is of the norm). Its Omniglot numbers use batch statistics of the query set (transductive) and more
    inner steps at test (3) than in training (1). The protocol here records both.
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.4  # inner learning rate
    steps: int = 1  # inner gradient steps
    first_order: bool = False  # drop the second-order term (FOMAML); the same as adjoint "first_order"
    adjoint: str | Adjoint = "unroll"  # how to differentiate inner steps: unroll, remat, mixed, implicit or first_order
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    def __post_init__(self) -> None:
        check_inner_loop(self)

    def exact(self) -> Learner:
        return with_exact_adjoint(self)

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        def support_loss(phi: Theta, support: Batch) -> Tensor:
            return self.loss(call(self.model, phi, support.x), support.y)

        adjoint = adjoint_of(self)
        phi = descend(
            support_loss, theta, given=(support,), lr=self.lr, steps=self.steps, adjoint=adjoint, rule=self.rule
        )
        return phi | statistics(self.model, phi, support.x)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)
