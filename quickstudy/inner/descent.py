"""The inner loop: gradient descent, its update rules, and how an outer derivative passes through it.

Everything works on flat dicts of tensors, under `vmap` and under an outer derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from quickstudy.errors import ConfigError, suggest
from quickstudy.inner.derivatives import Given, LossAt, gradient
from quickstudy.inner.implicit import implicit_derivative
from quickstudy.inner.rules import find_rule
from quickstudy.learner import Theta

T = TypeVar("T")

Rate = float | Tensor | Theta
PerStep = T | Sequence[T]  # one value for all steps, or a sequence with one per step
ALONG_THE_PATH = ("unroll", "remat", "mixed", "first_order")  # these differentiate every step
ADJOINTS = (*ALONG_THE_PATH, "implicit")


def descend(
    loss_at: PerStep[LossAt],
    start: Theta,
    *,
    lr: PerStep[Rate],
    steps: int,
    given: Given = (),
    adjoint: str = "unroll",
    **rest: Any,
) -> Theta:
    """phi_K, where `trajectory` ends. The settings are the same, with one more adjoint.

    "implicit" takes the steps without a graph and differentiates only the end point, as if it were the minimum of
    L(phi) + |phi - phi_0|^2 / (2 lr K). Its derivative in phi_0 is (I + lr K H)^{-1}, which equals
    prod_k (I - lr H_k) to first order in lr. It needs rule="sgd" and a single number as `lr`.

    Raises ConfigError for an unknown adjoint or rule, and where "implicit" meets another rule or another kind of `lr`.
    """
    if adjoint == "implicit" and (rest.get("rule", "sgd") != "sgd" or not isinstance(lr, (int, float))):
        raise ConfigError(
            'adjoint="implicit" is for plain descent, rule="sgd", with one inner learning rate, a number. Use "remat" '
            "for other rules and for learned rates."
        )
    along = "first_order" if adjoint == "implicit" else adjoint
    phi = start
    for step in trajectory(loss_at, start, lr=lr, steps=steps, given=given, adjoint=along, **rest):
        phi = step
    if adjoint != "implicit" or not steps:
        return phi
    return implicit_derivative(_of_step(loss_at, steps - 1), start, phi, given, lr * steps)  # type: ignore[arg-type]


def trajectory(
    loss_at: PerStep[LossAt],
    start: Theta,
    *,
    lr: PerStep[Rate],
    steps: int,
    given: Given = (),
    adjoint: str = "unroll",
    rule: str = "sgd",
    transform: Callable[[Theta], Theta] = lambda slope: slope,
) -> Iterator[Theta]:
    """Yield phi_1 ... phi_K: phi_{k+1} = phi_k - lr * direction(transform(grad loss_at(phi_k, *given))), phi_0 = start.

    loss_at          maps (phi, *given) to the loss, a scalar
    lr               one learning rate, or a dict with one per parameter name
    given            everything the loss depends on besides phi: tensors, or dicts and tuples of them
    adjoint          "unroll" keeps every step differentiable, so that an outer gradient has the exact second-order
                     term, prod_k (I - lr * H_k) for plain descent; "remat" and "mixed" give the same but store only
                     phi_k (see `quickstudy.inner.derivatives`); "first_order" treats the inner gradients as constants
    rule             a name in RULES; it turns gradients into the direction of a step
    transform        changes the gradients before the rule sees them

    A list as `lr` or `loss_at` has one entry per step; steps beyond its end use the last one. Raises ConfigError for
    an unknown adjoint or rule.
    """
    check_adjoint(adjoint, ALONG_THE_PATH)
    update = find_rule(rule)
    phi, state = start, update.start(start)
    for k in range(steps):
        slope = transform(gradient(_of_step(loss_at, k), phi, given, adjoint))
        direction, state = update.direction(slope, state)
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


def check_steps(steps: int) -> None:
    """Raise ConfigError unless `steps` is a whole number, zero or more."""
    if not isinstance(steps, int) or steps < 0:
        raise ConfigError(f"steps must be a whole number of inner steps, 0 or more; got {steps!r}.")


def check_adjoint(adjoint: str, able: Sequence[str] = ADJOINTS) -> None:
    """Raise ConfigError unless `adjoint` is one of those in `able`, which the learner supports."""
    if adjoint not in able:
        raise ConfigError(f"adjoint must be one of {', '.join(able)}; got {adjoint!r}.{suggest(adjoint, able)}")


def adjoint_of(learner: Any) -> str:
    """The adjoint of a learner with the fields `first_order` and `adjoint`; `first_order` takes precedence."""
    return "first_order" if learner.first_order else learner.adjoint
