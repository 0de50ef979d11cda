"""Update rules of an inner loop: an optimizer as a value, two pure, differentiable functions with their settings.

sgd(momentum=0.9, nesterov=True)       adam(b1=0.9, b2=0.999)       "adam", a name in RULES
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Described, Theta


@dataclass(frozen=True, eq=False)
class Rule(Described):
    """An optimizer as two pure, differentiable functions: its initial state, and its next direction and state.

    A rule of your own needs `start` and `direction`. A file keeps a rule by its maker and settings; it cannot hold a
    rule of your own, which `qs.load` then asks for, as it asks for a loss of your own.

    >>> from quickstudy import inner
    >>> def signs(gradient, state):
    ...     return {name: g.sign() for name, g in gradient.items()}, state
    >>> rule = inner.Rule(start=lambda phi: None, direction=signs)
    """

    start: Callable[[Theta], Any]  # phi_0 -> state
    direction: Callable[[Theta, Any], tuple[Theta, Any]]  # gradient, state -> direction, state
    weight_decay: float = 0.0  # times phi, added to the gradient before `direction` sees it
    plain: bool = False  # whether the direction is the gradient itself, as the implicit adjoint takes for granted
    maker: str | None = None  # the name in MAKERS of the function that made it; None: a rule of your own
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the maker was given

    def describe(self) -> dict[str, Any]:
        if self.maker is None:
            return {"rule": None, "text": "an update rule"}
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return {"rule": {"maker": self.maker, "settings": dict(self.settings)}, "text": f"{self.maker}({settings})"}

    def decayed(self, gradient: Theta, phi: Theta) -> Theta:
        """gradient + weight_decay * phi."""
        if not self.weight_decay:
            return gradient
        return {name: torch.add(g, phi[name], alpha=self.weight_decay) for name, g in gradient.items()}


def sgd(momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Rule:
    """v <- momentum * v + g; the direction is v, or g + momentum * v with `nesterov`. As `torch.optim.SGD`.

    Without momentum the direction is the gradient g, to which weight_decay * phi is added. Raises ConfigError for
    settings that torch.optim.SGD refuses too.
    """
    _check_range(momentum=(momentum, 0.0, None), weight_decay=(weight_decay, 0.0, None))
    if nesterov and not momentum:
        raise ConfigError("nesterov=True looks ahead along the momentum, which is 0. Give momentum, such as 0.9.")

    def direction(gradient: Theta, velocity: Theta) -> tuple[Theta, Theta]:
        velocity = {name: momentum * velocity[name] + g for name, g in gradient.items()}
        if nesterov:
            return {name: g + momentum * velocity[name] for name, g in gradient.items()}, velocity
        return velocity, velocity

    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    if not momentum:
        plain = not weight_decay
        return Rule(lambda phi: None, lambda gradient, state: (gradient, state), weight_decay, plain, "sgd", settings)
    return Rule(_zeros, direction, weight_decay, False, "sgd", settings)


def momentum(decay: float = 0.9) -> Rule:
    """v <- decay * v + g: `sgd(momentum=decay)`."""
    return sgd(momentum=decay)


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0) -> Rule:
    """m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  m' / (sqrt(v') + eps) with bias-corrected m' and v'.

    The same as `torch.optim.Adam`, but also differentiable where a gradient is exactly zero (a dead ReLU). The square
    root has no derivative there. Zero is used, because it keeps v / sqrt(v) right. Raises ConfigError where b1 or b2
    is not in [0, 1), or eps or weight_decay is negative.
    """
    _check_range(b1=(b1, 0.0, 1.0), b2=(b2, 0.0, 1.0), eps=(eps, 0.0, None), weight_decay=(weight_decay, 0.0, None))

    def start(phi: Theta) -> tuple[int, Theta, Theta]:
        return 0, _zeros(phi), _zeros(phi)

    def direction(gradient: Theta, state: tuple[int, Theta, Theta]) -> tuple[Theta, tuple[int, Theta, Theta]]:
        k, m, v = state[0] + 1, state[1], state[2]
        m = {name: b1 * m[name] + (1 - b1) * g for name, g in gradient.items()}
        v = {name: b2 * v[name] + (1 - b2) * g**2 for name, g in gradient.items()}
        way = {name: (m[name] / (1 - b1**k)) / (_root(v[name] / (1 - b2**k)) + eps) for name in gradient}
        return way, (k, m, v)

    settings = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    return Rule(start, direction, weight_decay, False, "adam", settings)


def _zeros(phi: Theta) -> Theta:
    return {name: torch.zeros_like(value) for name, value in phi.items()}


def _root(v: Tensor) -> Tensor:
    """sqrt(v) for v >= 0, with derivative 0 at 0 instead of infinity."""
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


def _check_range(**settings: tuple[float, float, float | None]) -> None:
    for name, (value, least, below) in settings.items():
        if not (value >= least and (below is None or value < below)):
            limit = "" if below is None else f" and below {below:g}"
            raise ConfigError(f"{name} of an update rule must be at least {least:g}{limit}; got {value!r}.")


# --- by name ---------------------------------------------------------------------------------------------------------

RULES = {"sgd": sgd(), "momentum": momentum(), "adam": adam(), "adam_no_momentum": adam(b1=0.0)}
MAKERS: dict[str, Callable[..., Rule]] = {"sgd": sgd, "adam": adam}


def find_rule(rule: str | Rule) -> Rule:
    """The update rule of this name; a Rule as it is. Raises ConfigError for a name that is not in RULES."""
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise ConfigError(
            f"rule must be one of {', '.join(RULES)}, or a value such as qs.inner.sgd(momentum=0.9); got {rule!r}."
            f"{suggest(str(rule), RULES)}"
        )
    return RULES[rule]


def make_rule(maker: str, settings: Mapping[str, Any]) -> Rule:
    """The rule of a maker and its settings, as `Rule.describe` gives them. Raises ConfigError for unknown ones."""
    if maker not in MAKERS:
        raise ConfigError(f"update rules are made by {', '.join(MAKERS)}; got {maker!r}. Upgrade Quickstudy.")
    try:
        return MAKERS[maker](**settings)
    except TypeError as error:
        raise ConfigError(f"the update rule {maker} has no such settings ({error}). Upgrade Quickstudy.") from error
