"""The loss of a network on a support set, as a function of what adapts and of all else that it depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.inner.adjoints import Given, LossAt
from quickstudy.learner import Batch, Theta
from quickstudy.nn.hooks import below_head
from quickstudy.nn.model import call

Loss = Callable[[Any, Any], Tensor]  # (output, y) -> scalar


def loss_on(model: nn.Module, loss: Loss) -> LossAt:
    """(phi, support) -> the loss of the network with the parameters phi on these examples, a scalar."""
    return lambda phi, support: loss(call(model, phi, support.x), support.y)


def loss_beside(model: nn.Module, loss: Loss) -> LossAt:
    """(phi, theta, support) -> the same loss where phi holds some parameters, and theta the others."""
    return lambda phi, theta, support: loss(call(model, theta | phi, support.x), support.y)


def loss_above(model: nn.Module, loss: Loss, theta: Theta, support: Batch, head: str | None) -> tuple[LossAt, Given]:
    """The loss of what adapts, (phi, *given) -> scalar, and that `given`.

    `head`: the prefix of the linear layer, see `last_linear`, where it alone adapts. The features below it do not
    change then and are computed once. None: other parameters adapt.
    """
    z = None if head is None else below_head(model, theta, support.x, head)
    if z is None:
        return loss_beside(model, loss), (theta, support)
    weight, bias = f"{head}weight", f"{head}bias"
    return lambda phi, z, y: loss(F.linear(z, phi[weight], phi.get(bias)), y), (z, support.y)
