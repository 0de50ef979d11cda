"""Shared by the learners that pretrain one network on all training classes and keep its features."""

from __future__ import annotations

from torch import Tensor, nn

from quickstudy.errors import ConfigError
from quickstudy.learner import Theta
from quickstudy.nn.hooks import below_head
from quickstudy.nn.parameters import last_linear


def features(model: nn.Module, theta: Theta, x: Tensor) -> Tensor:
    """The input [n, d] of the model's last linear layer for x [n, ...].

    Raises ConfigError when the output is not that of a linear layer on one row of features per example.
    """
    head = last_linear(model)
    z = below_head(model, theta, x, head)
    if z is None or z.dim() != 2:
        raise ConfigError(
            f"the model must end in the linear layer {head.rstrip('.')!r}, applied once to features [n, d]: its other "
            "layers make the features, its weight has a row per training class. Add an nn.Linear as its last layer."
        )
    return z
