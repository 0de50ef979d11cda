"""Implicit MAML: the meta-gradient comes from the end point of the inner loop alone, whatever path led there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.inner.derivatives import gradient, hessian
from quickstudy.inner.descent import check_inner_loop, descend
from quickstudy.inner.implicit import conjugate_gradient, warn_above
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta, with_gradient
from quickstudy.learners.parts.losses import loss_on
from quickstudy.nn.model import call
from quickstudy.nn.parameters import parameters
from quickstudy.nn.statistics import statistics

UNSOLVED = (
    "conjugate gradient stopped after cg_steps={} above its tolerance {:g} (relative residual): the meta-gradient is "
    "less exact than asked for. Raise cg_steps, lam or tolerance."
)


@dataclass(frozen=True, eq=False)
class IMAML(Learner):
    """MAML with a proximal inner problem, differentiated implicitly: memory does not grow with the steps.

        phi* = argmin_phi  G(phi) = L_S(phi) + lam / 2 |phi - theta|^2         (`steps` steps towards it)
        meta-gradient      (I + H / lam)^{-1} grad L_Q(phi*),   H the Hessian of L_S at phi*

    Conjugate gradient solves the system with Hessian-vector products. It stops after `cg_steps` of them, or at a
    residual of `tolerance` times the right-hand side; if that is not reached, an AccuracyWarning says so. The formula
    is the derivative of phi* only at the minimum: take enough steps, and a lam larger in size than any negative
    eigenvalue of H.

    Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, NeurIPS 2019,
    https://arxiv.org/abs/1909.04630

    >>> import quickstudy as qs
    >>> learner = qs.IMAML(qs.nn.conv4(channels=1, classes=5), lam=2.0, steps=16)

    Deviations from the paper: plain gradient steps by default, as in its Omniglot runs (its "Hessian-free" variant is
    not implemented); conjugate gradient may stop at a tolerance, whereas the paper always takes 5 steps. Both follow
    the paper's equations; the authors' code (https://github.com/aravindr93/imaml_dev) takes its inner steps on L_S
    alone and one step on the pull afterwards, and solves with 2 I + H / (lam + 10) in place of I + H / lam. Its Adam
    has eps 1e-3 (here 1e-8).
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.1  # inner learning rate
    steps: int = 16  # inner gradient steps
    lam: float = 2.0  # strength of the pull towards theta
    cg_steps: int = 5  # largest number of conjugate gradient steps
    tolerance: float = 0.1  # residual, relative to the right-hand side, at which the system counts as solved
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    approximate: ClassVar[bool] = True  # exact only where the inner problem and the linear system are solved

    def __post_init__(self) -> None:
        check_inner_loop(self)
        if not self.lam > 0:
            raise ConfigError(f"lam, the strength of the pull towards theta, must be above 0, got {self.lam}.")

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        support_loss = loss_on(self.model, self.loss)

        def proximal(phi: Theta, theta: Theta, support: Batch) -> Tensor:
            pull = sum(((phi[name] - theta[name]) ** 2).sum() for name in phi)
            return support_loss(phi, support) + self.lam / 2 * pull

        phi = descend(
            proximal,
            theta,
            given=(theta, support),
            lr=self.lr,
            steps=self.steps,
            adjoint="first_order",
            rule=self.rule,
        )
        return phi | statistics(self.model, phi, support.x)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        start = {name: value.detach() for name, value in theta.items()}
        adapted = self.adapt(start, episode.support)
        phi = {name: adapted[name] for name in theta}  # without statistics

        def query_loss(phi: Theta) -> Tensor:
            seen = statistics(self.model, phi, episode.support.x)  # they depend on phi
            return self.loss(self.predict(theta, phi | seen, episode.query.x), episode.query.y)

        query_gradient = gradient(query_loss, phi, adjoint="first_order")
        return with_gradient(query_loss(phi), theta, self._solve(query_gradient, phi, episode.support))

    def _solve(self, query_gradient: Theta, phi: Theta, support: Batch) -> Theta:
        """(I + H / lam)^{-1} grad L_Q."""
        support_loss = loss_on(self.model, self.loss)
        curvature = hessian(lambda phi: support_loss(phi, support), phi)

        def product(v: Theta) -> Theta:
            hv = curvature(v)
            return {name: v[name] + hv[name] / self.lam for name in v}

        x, residual = conjugate_gradient(product, query_gradient, steps=self.cg_steps, tolerance=self.tolerance)
        warn_above(residual, self.tolerance, UNSOLVED.format(self.cg_steps, self.tolerance))
        return x
