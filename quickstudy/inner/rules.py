"""Update rules of an inner loop: an optimizer as two pure, differentiable functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Theta

# --- update rules ----------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """An optimizer as two pure, differentiable functions: its initial state, and its next direction and state."""

    start: Callable[[Theta], Any]  # phi_0 -> state
    direction: Callable[[Theta, Any], tuple[Theta, Any]]  # gradient, state -> direction, state


def sgd() -> Rule:
    """Plain gradient descent: the direction is the gradient."""
    return Rule(lambda phi: None, lambda slope, state: (slope, state))


def momentum(decay: float = 0.9) -> Rule:
    """v <- decay * v + g, as `torch.optim.SGD(momentum=decay)`."""

    def direction(slope: Theta, velocity: Theta) -> tuple[Theta, Theta]:
        velocity = {name: decay * velocity[name] + g for name, g in slope.items()}
        return velocity, velocity

    return Rule(_zeros, direction)


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  m' / (sqrt(v') + eps) with bias-corrected m' and v'.

    The same as `torch.optim.Adam`, but also differentiable where a gradient is exactly zero (a dead ReLU). The square
    root has no derivative there. Zero is used, because it keeps v / sqrt(v) right.
    """

    def start(phi: Theta) -> tuple[int, Theta, Theta]:
        return 0, _zeros(phi), _zeros(phi)

    def direction(slope: Theta, state: tuple[int, Theta, Theta]) -> tuple[Theta, tuple[int, Theta, Theta]]:
        k, m, v = state[0] + 1, state[1], state[2]
        m = {name: b1 * m[name] + (1 - b1) * g for name, g in slope.items()}
        v = {name: b2 * v[name] + (1 - b2) * g**2 for name, g in slope.items()}
        way = {name: (m[name] / (1 - b1**k)) / (_root(v[name] / (1 - b2**k)) + eps) for name in slope}
        return way, (k, m, v)

    return Rule(start, direction)


def _zeros(phi: Theta) -> Theta:
    return {name: torch.zeros_like(value) for name, value in phi.items()}


def _root(v: Tensor) -> Tensor:
    """sqrt(v) for v >= 0, with derivative 0 at 0 instead of infinity."""
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


RULES = {"sgd": sgd(), "momentum": momentum(), "adam": adam(), "adam_no_momentum": adam(b1=0.0)}


def find_rule(name: str) -> Rule:
    """The update rule of this name. Raises ConfigError for a name that is not in RULES."""
    if name not in RULES:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}; got {name!r}.{suggest(str(name), RULES)}")
    return RULES[name]
