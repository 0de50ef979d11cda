"""BOIL: body only in the inner loop. The features adapt, the head stays fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from quickstudy.inner.adjoints import Adjoint, adjoint_of, with_exact_adjoint
from quickstudy.inner.descent import check_inner_loop, descend
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta
from quickstudy.learners.parts.losses import loss_beside
from quickstudy.nn.model import call
from quickstudy.nn.parameters import last_linear, matching, parameters
from quickstudy.nn.statistics import statistics


@dataclass(frozen=True, eq=False)
class BOIL(Learner):
    """MAML in which some parameters, by default the head, take no inner steps; all others do.

        theta = (body, head),   body_0 = body,   body_{k+1} = body_k - lr * grad_body L_S(body_k, head)
        meta-loss               L_Q(body_K, head), differentiated through every step

    The opposite of ANIL: a task is learned by changing the representation.

    Oh, Yoo, Kim, Yun: BOIL: Towards Representation Change for Few-shot Learning, ICLR 2021,
    https://arxiv.org/abs/2008.08882

    >>> import quickstudy as qs
    >>> learner = qs.BOIL(qs.nn.conv4(channels=1, classes=5), lr=0.5)

    Deviations from the paper: one inner learning rate for the whole body, as in its main experiments.
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.5  # inner learning rate
    steps: int = 1  # inner gradient steps
    stays: str = ""  # parameters that do not adapt, such as 'head.*'; empty: the last linear layer
    first_order: bool = False  # drop the second-order term; the same as adjoint "first_order"
    adjoint: str | Adjoint = "unroll"  # how to differentiate inner steps: unroll, remat, mixed, implicit or first_order
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    def __post_init__(self) -> None:
        check_inner_loop(self)
        self._still()

    def _still(self) -> list[str]:
        return matching(self.model, self.stays or f"{last_linear(self.model)}*")

    def exact(self) -> Learner:
        return with_exact_adjoint(self)

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        """Only the adapted parameters; the others are taken from theta."""
        still = self._still()
        start = {name: value for name, value in theta.items() if name not in still}
        phi = descend(
            loss_beside(self.model, self.loss),
            start,
            given=({name: theta[name] for name in still}, support),
            lr=self.lr,
            steps=self.steps,
            adjoint=adjoint_of(self),
            rule=self.rule,
        )
        return phi | statistics(self.model, theta | phi, support.x)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, theta | phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)
