"""The inner loop: gradient descent, its update rules, and how an outer derivative passes through it.

Everything works on flat dicts of tensors, under `vmap` and under an outer derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.inner.adjoints import (
    ADJOINTS,
    ALONG_THE_PATH,
    FIRST_ORDER,
    UNROLL,
    Adjoint,
    Given,
    LossAt,
    find_adjoint,
)
from quickstudy.inner.derivatives import gradient
from quickstudy.inner.implicit import implicit_derivative
from quickstudy.inner.rules import RULES, Rule, find_rule
from quickstudy.learner import Learner, Theta, setting

T = TypeVar("T")

Rate = float | Tensor | Theta
PerStep = T | Sequence[T]  # one value for all steps, or a sequence with one per step
Transform = Callable[[Theta], Theta]


def descend(
    loss_at: PerStep[LossAt],
    start: Theta,
    *,
    lr: PerStep[Rate],
    steps: int,
    given: Given = (),
    adjoint: str | Adjoint = UNROLL,
    rule: str | Rule = RULES["sgd"],
    transform: Transform | None = None,
) -> Theta:
    """phi_K, where `trajectory` ends. The settings are the same, with one more adjoint.

    "implicit" takes the steps without a graph and differentiates only the end point, as if it were the minimum of
    L(phi) + |phi - phi_0|^2 / (2 lr K). Its derivative in phi_0 is (I + lr K H)^{-1}, which equals
    prod_k (I - lr H_k) to first order in lr. It needs rule="sgd", a single number as `lr`, one loss for all steps and
    no transform.

    Raises ConfigError for an unknown adjoint or rule, and where "implicit" meets what its formula leaves out.
    """
    how, rule = find_adjoint(adjoint), find_rule(rule)
    if not how.along_the_path:
        _check_implicit(loss_at, lr, rule, transform)
    along = how if how.along_the_path else FIRST_ORDER
    phi = start
    for step in trajectory(
        loss_at, start, lr=lr, steps=steps, given=given, adjoint=along, rule=rule, transform=transform
    ):
        phi = step
    if how.along_the_path or not steps:
        return phi
    return implicit_derivative(_of_step(loss_at, 0), start, phi, given, lr * steps)  # type: ignore[arg-type]


def trajectory(
    loss_at: PerStep[LossAt],
    start: Theta,
    *,
    lr: PerStep[Rate],
    steps: int,
    given: Given = (),
    adjoint: str | Adjoint = UNROLL,
    rule: str | Rule = RULES["sgd"],
    transform: Transform | None = None,
) -> Iterator[Theta]:
    """Yield phi_1 ... phi_K: phi_{k+1} = phi_k - lr * direction(transform(grad loss_at(phi_k, *given))), phi_0 = start.

    loss_at          maps (phi, *given) to the loss, a scalar
    lr               one learning rate, or a dict with one per parameter name
    given            everything the loss depends on besides phi: tensors, or dicts and tuples of them
    adjoint          "unroll" keeps every step differentiable, so that an outer gradient has the exact second-order
                     term, prod_k (I - lr * H_k) for plain descent; "remat" and "mixed" give the same but store only
                     phi_k (see `quickstudy.inner.adjoints`); "first_order" treats the inner gradients as constants
    rule             turns gradients into the direction of a step: a name in RULES or a Rule, such as sgd(momentum=0.9)
    transform        changes the gradients before the rule sees them; None: it does not

    A list as `lr` or `loss_at` has one entry per step; steps beyond its end use the last one. Raises ConfigError for
    an unknown adjoint or rule.
    """
    how, update = find_adjoint(adjoint, ALONG_THE_PATH), find_rule(rule)
    phi, state = start, update.start(start)
    for k in range(steps):
        derivative = gradient(_of_step(loss_at, k), phi, given, how)
        derivative = derivative if transform is None else transform(derivative)
        direction, state = update.direction(update.decayed(derivative, phi), state)
        rate = _of_step(lr, k)
        rates = rate if isinstance(rate, Mapping) else dict.fromkeys(phi, rate)
        phi = {name: _moved(value, rates[name], direction[name]) for name, value in phi.items()}
        yield phi


def _moved(value: Tensor, rate: float | Tensor, direction: Tensor) -> Tensor:
    """value - rate * direction. Where the rate is a number, this and its derivative take one pass over memory each."""
    if isinstance(rate, Tensor):
        return torch.addcmul(value, rate, direction, value=-1)
    return torch.add(value, direction, alpha=-rate)


def _of_step(each: PerStep[T], k: int) -> T:
    return each[min(k, len(each) - 1)] if isinstance(each, (list, tuple)) else each  # type: ignore[return-value]


# --- checks ----------------------------------------------------------------------------------------------------------


def check_inner_loop(learner: Learner, able: Collection[str] = ADJOINTS) -> None:
    """Raise ConfigError where the learner's `steps`, `adjoint` or `rule` cannot be.

    `able`: the adjoints that the learner supports.
    """
    check_steps(setting(learner, "steps"))
    find_rule(setting(learner, "rule", "sgd"))
    find_adjoint(setting(learner, "adjoint", UNROLL), able)


def check_steps(steps: int) -> None:
    """Raise ConfigError unless `steps` is a whole number, zero or more."""
    if not isinstance(steps, int) or steps < 0:
        raise ConfigError(f"steps must be a whole number of inner steps, 0 or more; got {steps!r}.")


def _check_implicit(loss_at: Any, lr: Any, rule: Rule, transform: Transform | None) -> None:
    """Raise ConfigError where the implicit derivative of an end point would leave something out in silence."""
    if not rule.plain or not isinstance(lr, (int, float)):
        raise ConfigError(
            'adjoint="implicit" is for plain descent, rule="sgd", with one inner learning rate, a number. Use "remat" '
            "for other rules and for learned rates."
        )
    if transform is not None:
        raise ConfigError(
            'adjoint="implicit" is for plain descent: its derivative knows nothing of a `transform` of the gradients. '
            'Use "remat", which differentiates every step with it.'
        )
    if isinstance(loss_at, (list, tuple)) and len(loss_at) > 1:
        raise ConfigError(
            f'adjoint="implicit" is for one loss in all steps; got {len(loss_at)} losses. Use "remat", which '
            "differentiates every step with its own loss."
        )
