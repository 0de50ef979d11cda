"""Meta-Curvature: learn a matrix for each side (dimension) of each layer's gradient."""

from __future__ import annotations

from collections.abc import Mapping
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
class MetaCurvature(Learner):
    """MAML whose inner gradients pass through learned Kronecker-factored matrices.

        phi_{k+1} = phi_k - lr * MC(grad L_S(phi_k)),   phi_0 = theta
        MC(G) = G x_1 M_out x_2 M_in x_3 M_filter,      vec MC(G) = (M_out kron M_in kron M_filter) vec G

    A convolution's gradient [out, in, k, k] is reshaped to [out, in, k * k]; a linear layer has M_out and M_in, and a
    vector only M_out. All start at the identity and are kept in theta under "curvature.".

    Park, Oliva: Meta-Curvature, NeurIPS 2019, https://arxiv.org/abs/1902.03356 (its MC2; with learned diagonal
    matrices it would be Meta-SGD with rank-one rates)

    >>> import quickstudy as qs
    >>> learner = qs.MetaCurvature(qs.nn.conv4(channels=1, classes=5), lr=0.1, steps=5)

    Deviations from the paper: sides longer than `largest` keep the identity, because their matrix would be larger than
    the model.
    """

    model: Network  # maps x to logits or values
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    lr: float = 0.1  # inner learning rate
    steps: int = 1  # inner gradient steps
    largest: int = 1024  # sides of a tensor longer than this keep the identity
    first_order: bool = False  # drop the second-order term; the same as adjoint "first_order"
    adjoint: str | Adjoint = "unroll"  # how to differentiate the inner loop: unroll, remat, mixed or first_order
    rule: str | Rule = "sgd"  # inner update rule: sgd, momentum, adam or adam_no_momentum

    def __post_init__(self) -> None:
        check_inner_loop(self, ALONG_THE_PATH)

    def exact(self) -> Learner:
        return with_exact_adjoint(self)

    def init(self) -> Theta:
        params = parameters(self.model)
        matrices = {
            f"{name}.{side}": torch.eye(n, dtype=value.dtype, device=value.device)
            for name, value in params.items()
            for side, n in enumerate(_sides(value).shape)
            if n <= self.largest
        }
        return beside(params, "curvature.", matrices)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        matrices = part(theta, "curvature.")
        phi = descend(
            loss_on(self.model, self.loss),
            own(self.model, theta),
            given=(support,),
            lr=self.lr,
            steps=self.steps,
            adjoint=adjoint_of(self),
            rule=self.rule,
            transform=lambda gradient: {name: transformed(g, matrices, name) for name, g in gradient.items()},
        )
        return phi | statistics(self.model, phi, support.x)

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.loss(self.predict(theta, phi, episode.query.x), episode.query.y)


def transformed(gradient: Tensor, matrices: Mapping[str, Tensor], name: str) -> Tensor:
    """MC(G): each side of G times its matrix `name.side`; sides without a matrix stay unchanged."""
    result = _sides(gradient)
    for side in range(result.dim()):
        matrix = matrices.get(f"{name}.{side}")
        if matrix is not None:
            result = (result.movedim(side, -1) @ matrix.T).movedim(-1, side)
    return result.reshape(gradient.shape)


def _sides(value: Tensor) -> Tensor:
    """The tensor in the shape whose sides have matrices: [out], [out, in] or [out, in, filter]."""
    return value.reshape(1) if value.dim() == 0 else value.flatten(2) if value.dim() > 3 else value
