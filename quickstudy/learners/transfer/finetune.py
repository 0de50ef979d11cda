"""Transfer learning: train one network on everything, then fit it to the new task. The baseline to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.episodes import joined
from quickstudy.errors import ConfigError, suggest
from quickstudy.inner.descent import check_steps, descend
from quickstudy.learner import Batch, Episode, Learner, Loss, Network, Theta, Ways
from quickstudy.learners.parts.losses import loss_above
from quickstudy.nn.model import call
from quickstudy.nn.parameters import last_linear, parameters
from quickstudy.nn.statistics import statistics

FITS = ("head", "all")


@dataclass(frozen=True, eq=False)
class FineTune(Learner):
    """Pretrain on the examples of all training tasks at once, then fine-tune on the support set.

        pretraining      theta = argmin sum over tasks of L(model_theta(x), y)
        adaptation       phi_0 = theta,  phi_{k+1} = phi_k - lr * grad L_S(phi_k)   on the head or on all

    Classification (`ways` given): the model's last linear layer has one output per *training class*, pretraining uses
    labels of the whole pool (`tasks.pooled()`, which `qs.train` asks for), and a new task gets a new head that starts
    from zero. Regression (`ways=None`): the pretrained head is fine-tuned further.

    Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification, ICLR 2019 (the "Baseline"),
    https://arxiv.org/abs/1904.04232

    >>> import quickstudy as qs
    >>> learner = qs.FineTune(qs.nn.conv4(channels=1, classes=1028), ways=5)

    Deviations from the paper: `steps` steps of plain gradient descent at 0.1 on the whole support set. The authors'
    code (https://github.com/wyharveychen/CloserLookFewShot) makes 100 passes in minibatches of 4, by SGD at 0.01 with
    momentum 0.9, dampening 0.9 and weight decay 0.001. A new head starts from zero, theirs at random values.
    """

    model: Network  # ends in a linear layer, the head
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    ways: Ways | None = 5  # classes in a new task; None for regression
    lr: float = 0.1  # learning rate on the support set
    steps: int = 100  # gradient steps on the support set
    fit: str = "head"  # what is fine-tuned: head or all

    episodic: ClassVar[bool] = False  # trains on pooled examples, not on episodes

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ConfigError(f"fit must be 'head' or 'all', got {self.fit!r}.{suggest(self.fit, FITS)}")
        check_steps(self.steps)
        last_linear(self.model)

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        head = last_linear(self.model)
        body = {name: value for name, value in theta.items() if not name.startswith(head)}
        start = self._new_head(theta, head)
        moving = body | start if self.fit == "all" else start
        loss_at, given = loss_above(self.model, self.loss, theta, support, None if self.fit == "all" else head)
        phi = body | descend(loss_at, moving, given=given, lr=self.lr, steps=self.steps, adjoint="first_order")
        return phi | statistics(self.model, phi, support.x)

    def _new_head(self, theta: Theta, head: str) -> Theta:
        old = {name: value for name, value in theta.items() if name.startswith(head)}
        if self.ways is None:
            return old
        return {
            name: torch.zeros_like(value[:1]).repeat(self.ways, *[1] * (value.dim() - 1)) for name, value in old.items()
        }

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        x, y = joined(episode)
        return self.loss(call(self.model, theta, x), y)
