"""MAML++: how to train your MAML. Six changes to MAML, each of which can be switched on or off separately."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.inner.adjoints import ALONG_THE_PATH, FIRST_ORDER, Adjoint, with_exact_adjoint
from quickstudy.inner.descent import check_inner_loop, trajectory
from quickstudy.inner.rules import Rule
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, NotAnOption, Outer, Theta, with_gradient
from quickstudy.nn.model import call
from quickstudy.nn.norm import affine_of_norms
from quickstudy.nn.parameters import beside, own, parameters, part
from quickstudy.nn.statistics import moments, no_moments, normalisation, statistics


@dataclass(frozen=True, eq=False)
class MAMLPlusPlus(Learner):
    """MAML with learned rates and normalisation for each step, and a loss that changes over training.

        phi_0 = theta,   phi_{k+1} = phi_k - alpha_k * grad L_S(phi_k)   one alpha_k per step and tensor
        meta-loss        sum_k w_k L_Q(phi_k),   k = 1..K

    - multi_step_loss: the weights w_k start at 1/K each; in the first part `anneal` of training they shift to the last.
    - derivative_order: the second-order term is dropped in this first part of training.
    - per_step_rates: the rates alpha_k are in theta ("rate."); without it, all are `lr`.
    - per_step_norm: scale and shift of the normalising layers get an offset for each phi_k, in theta ("offset.").
    - per_step_statistics: theta keeps the mean and log-variance that batch norm sees at each phi_k, averaged over tasks
      ("seen."). Training normalises queries with their own statistics; a test that is not transductive uses those
      averages in place of the support set's statistics. `train` ends by taking them over 200 training tasks. Off by
      default, because it was measured to be worse.
    - cosine: the outer learning rate falls to zero along a cosine.

    The sixth, averaging the best checkpoints, is an option of evaluation (`ensemble`).

    Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, https://arxiv.org/abs/1810.09502

    >>> import quickstudy as qs
    >>> learner = qs.MAMLPlusPlus(qs.nn.conv4(channels=1, classes=5), lr=0.1, steps=5, per_step_norm=False)

    Deviations from the paper: scale and shift at a step are the layer's own plus the step's offset (initially zero);
    the layer's own adapt as in MAML. There is one offset per phi_k; steps at test beyond those of training use the
    last. Where averages over tasks are kept, the outer optimizer moves them towards the observed values in training,
    and a pass over training tasks sets them at its end, instead of a running average with momentum. The authors' code
    keeps averages too, but normalises by the batch at test as well. There the weights of earlier steps stay at
    0.03 / K at least (here 0), the cosine ends at 1e-5 on Omniglot (here 0), and its settings have the second-order
    term from the start (`derivative_order=0` here).
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.1  # inner learning rate, or initial value of the learned ones
    steps: int = 5  # inner gradient steps
    multi_step_loss: bool = True  # the query loss counts after every step, not only the last
    anneal: float = 0.15  # first part of training, in which the multi-step weights shift to the last step
    derivative_order: float = 0.5  # first part of training, without the second-order term
    per_step_rates: bool = True  # learn an inner rate for each step and parameter tensor
    per_step_norm: bool = True  # learn scale and shift of normalising layers for each step
    per_step_statistics: bool = False  # keep averages over tasks of what batch norm sees at each step
    cosine: bool = True  # outer learning rate falls to zero along a cosine
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum
    adjoint: str | Adjoint = "unroll"  # how to differentiate the inner loop: unroll, remat, mixed or first_order
    progress: NotAnOption[float] = 1.0  # where in training this learner is, from 0 to 1: set by the training loop

    handed_in: ClassVar[tuple[str, ...]] = ("seen.",)

    def __post_init__(self) -> None:
        check_inner_loop(self, ALONG_THE_PATH)
        for name in ("anneal", "derivative_order"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a part of training, from 0 to 1; got {getattr(self, name)}.")

    def outer(self) -> Outer:
        return Outer(schedule="cosine" if self.cosine else "constant")

    def at(self, progress: float) -> MAMLPlusPlus:
        return dataclasses.replace(self, progress=progress)

    def exact(self) -> Learner:
        second = dataclasses.replace(self, derivative_order=0.0) if self._without_second_order() else self
        return with_exact_adjoint(second)

    def _without_second_order(self) -> bool:
        return self.progress < self.derivative_order

    # --- theta -------------------------------------------------------------------------------------------------------

    def init(self) -> Theta:
        theta = params = parameters(self.model)
        if self.per_step_rates and self.steps:
            rates = {name: value.new_full((self.steps,), self.lr) for name, value in params.items()}
            theta = beside(theta, "rate.", rates)
        if self.per_step_norm:
            still = {name: torch.zeros_like(params[name]) for name in affine_of_norms(self.model)}
            theta = beside(theta, "offset.", self._for_each_step(still))
        if self.per_step_statistics:
            theta = beside(theta, "seen.", self._for_each_step(no_moments(self.model)))
        return theta

    def _for_each_step(self, values: Theta) -> Theta:
        """[steps + 1, ...]: one for each of phi_0 ... phi_K."""
        return {name: value.expand(self.steps + 1, *value.shape).clone() for name, value in values.items()}

    # --- the inner loop ----------------------------------------------------------------------------------------------

    def _path(self, theta: Theta, support: Batch) -> list[Theta]:
        """phi_0 ... phi_K, without offsets."""
        start, rates = own(self.model, theta), part(theta, "rate.")
        each = range(max(self.steps, 1))
        lr = [{name: _step(value, k) for name, value in rates.items()} for k in each] if rates else self.lr
        losses = [functools.partial(self._support_loss, k) for k in each]
        given = ({name: value for name, value in theta.items() if name.startswith("offset.")}, support)
        adjoint = FIRST_ORDER if self._without_second_order() else self.adjoint
        path = trajectory(losses, start, given=given, lr=lr, steps=self.steps, adjoint=adjoint, rule=self.rule)
        return [start, *path]

    def _support_loss(self, k: int, phi: Theta, offsets: Theta, support: Batch) -> Tensor:
        return self.loss(self._output(offsets, phi, k, support.x), support.y)

    def _output(self, theta: Theta, phi: Theta, k: int, x: Tensor) -> Tensor:
        return call(self.model, self._at_step(theta, phi, k), x)

    def _at_step(self, theta: Theta, phi: Theta, k: int) -> Theta:
        """phi_k with the offsets of step k."""
        return phi | {name: phi[name] + _step(value, k) for name, value in part(theta, "offset.").items()}

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        phi = self._at_step(theta, self._path(theta, support)[-1], self.steps)
        if not self.per_step_statistics or normalisation(self.model) != "support":
            return phi | statistics(self.model, phi, support.x)
        seen = {name: _step(value, self.steps) for name, value in part(theta, "seen.").items()}
        return phi | {name: value.exp() if name.endswith("variance") else value for name, value in seen.items()}

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    # --- the loss ----------------------------------------------------------------------------------------------------

    def weights(self) -> list[float]:
        """w_1 ... w_K at this point of training; none without inner steps."""
        moved = 1.0 if not self.multi_step_loss or self.progress >= self.anneal else self.progress / self.anneal
        early = [(1 - moved) / self.steps] * (self.steps - 1) if self.steps else []
        return [*early, 1 - sum(early)][: self.steps]

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        path = self._path(theta, episode.support)
        counted = [(w, k) for k, w in enumerate(self.weights(), 1) if w > 0] if self.steps else [(1.0, 0)]
        loss = torch.stack([w * self._query_loss(theta, path[k], k, episode) for w, k in counted]).sum()
        return loss + self._pull(theta, path, loss, episode.support) if self.per_step_statistics else loss

    def _query_loss(self, theta: Theta, phi: Theta, k: int, episode: Episode) -> Tensor:
        phi = self._at_step(theta, phi, k)
        if not self.per_step_statistics:
            phi = phi | statistics(self.model, phi, episode.support.x)
        return self.loss(call(self.model, phi, episode.query.x), episode.query.y)

    def _pull(self, theta: Theta, path: list[Theta], like: Tensor, support: Batch) -> Tensor:
        """Zero, whose gradient in each kept average is (average - observed): the fixed point is the mean over tasks."""
        apart = {name: theta[name] - value for name, value in self._observed(theta, path, support).items()}
        return with_gradient(torch.zeros_like(like), theta, apart)

    @torch.no_grad()
    def _observed(self, theta: Theta, path: list[Theta], support: Batch) -> Theta:
        """What batch norm sees of a support set at phi_0 ... phi_K, under the names of the averages."""
        seen: dict[str, list[Tensor]] = {}
        for k, phi in enumerate(path):
            for name, value in moments(self.model, self._at_step(theta, phi, k), support.x).items():
                seen.setdefault(f"seen.{name}", []).append(value.log() if name.endswith("variance") else value)
        return {name: torch.stack(values) for name, values in seen.items()}

    def finish(self, theta: Theta, examples: Iterable[Batch]) -> Theta:
        """theta whose averages are the means over these support sets."""
        if not self.per_step_statistics:
            return theta
        observed = [self._observed(theta, self._path(theta, support), support) for support in examples]
        return theta | {name: torch.stack([one[name] for one in observed]).mean(0) for name in observed[0]}


def _step(values: Tensor, k: int) -> Tensor:
    """The entry of step k; steps beyond those of training use the last."""
    return values[min(k, len(values) - 1)]
