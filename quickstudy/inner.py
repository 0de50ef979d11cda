"""The inner loop and its parts: descent, update rules, gradients, Hessian-vector products, conjugate gradient.

Everything works on flat dicts of tensors and composes with `vmap` and with an outer derivative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from quickstudy.errors import AccuracyWarning, ConfigError, suggest
from quickstudy.learner import Theta
from quickstudy.tracing import inside_transform

T = TypeVar("T")
LossAt = Callable[[Theta], Tensor]
Rate = float | Tensor | Theta
PerStep = T | Sequence[T]  # the same for every step, or one for each
ADJOINTS = ("unroll", "first_order")


def descend(loss_at: PerStep[LossAt], start: Theta, *, lr: PerStep[Rate], steps: int, **settings: Any) -> Theta:
    """Where `trajectory` ends: phi_K. Settings as there."""
    phi = start
    for step in trajectory(loss_at, start, lr=lr, steps=steps, **settings):
        phi = step
    return phi


def trajectory(
    loss_at: PerStep[LossAt],
    start: Theta,
    *,
    lr: PerStep[Rate],
    steps: int,
    adjoint: str = "unroll",
    rule: str = "sgd",
    transform: Callable[[Theta], Theta] = lambda slope: slope,
) -> Iterator[Theta]:
    """phi_1 ... phi_K of phi_{k+1} = phi_k - lr * direction(transform(grad loss_at(phi_k))), phi_0 = start.

    adjoint "unroll" keeps every step differentiable, so an outer gradient carries the exact second-order term, for
    plain descent prod_k (I - lr * H_k). "first_order" holds the inner gradients constant. `rule` out of RULES makes
    the direction of a step; `transform` comes before it. `lr` is one rate, or a dict with one per name. A list in
    place of `lr` or `loss_at` holds one for each step; steps beyond its end take the last.
    """
    check_adjoint(adjoint)
    update = find_rule(rule)
    phi, state = start, update.start(start)
    for k in range(steps):
        slope = transform(gradient(_of_step(loss_at, k), phi, differentiable=adjoint == "unroll"))
        direction, state = update.direction(slope, state)
        rate = _of_step(lr, k)
        rates = rate if isinstance(rate, Mapping) else dict.fromkeys(phi, rate)
        phi = {name: value - rates[name] * direction[name] for name, value in phi.items()}
        yield phi


def _of_step(each: PerStep[T], k: int) -> T:
    return each[min(k, len(each) - 1)] if isinstance(each, (list, tuple)) else each  # type: ignore[return-value]


# --- update rules ----------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """An optimizer as two pure, differentiable functions: what it remembers, and where it goes next."""

    start: Callable[[Theta], Any]  # phi_0 -> state
    direction: Callable[[Theta, Any], tuple[Theta, Any]]  # gradient, state -> direction, state


def sgd() -> Rule:
    """The gradient itself."""
    return Rule(lambda phi: None, lambda slope, state: (slope, state))


def momentum(decay: float = 0.9) -> Rule:
    """v <- decay * v + g, as `torch.optim.SGD(momentum=decay)`."""

    def direction(slope: Theta, velocity: Theta) -> tuple[Theta, Theta]:
        velocity = {name: decay * velocity[name] + g for name, g in slope.items()}
        return velocity, velocity

    return Rule(_zeros, direction)


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  m' / (sqrt(v') + eps) with the start-up bias divided out.

    As `torch.optim.Adam`, and differentiable where a gradient is exactly zero (a dead ReLU): there the square root
    has no derivative, and zero is the one that keeps v / sqrt(v) right.
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
    """sqrt(v) for v >= 0 whose derivative at 0 is 0, not infinite."""
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


RULES = {"sgd": sgd(), "momentum": momentum(), "adam": adam(), "adam_no_momentum": adam(b1=0.0)}


def find_rule(name: str) -> Rule:
    """Raise ConfigError for a name that is none of RULES."""
    if name not in RULES:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}; got {name!r}.{suggest(str(name), RULES)}")
    return RULES[name]


# --- derivatives -----------------------------------------------------------------------------------------------------


def gradient(function: LossAt, point: Theta, differentiable: bool = True) -> Theta:
    """grad function(point), zero where the function does not depend on an entry.

    With `differentiable` an outer derivative passes through the result (second order).
    """
    return value_and_gradient(function, point, differentiable)[1]


def value_and_gradient(function: LossAt, point: Theta, differentiable: bool = True) -> tuple[Tensor, Theta]:
    """function(point) and its gradient as in `gradient`; not `differentiable`, the value is held constant too."""
    if not differentiable:
        point = {name: value.detach() for name, value in point.items()}
    if inside_transform():
        slope, value = torch.func.grad_and_value(function)(point)
        return (value, slope) if differentiable else (value.detach(), {n: g.detach() for n, g in slope.items()})
    # Outside of vmap the tape is about a third cheaper than torch.func.grad (docs/performance.md).
    record = differentiable and torch.is_grad_enabled() and _is_watched(function, point)
    with torch.enable_grad():
        leaves = {name: v if v.requires_grad else v.detach().requires_grad_() for name, v in point.items()}
        value = function(leaves)
        if not (leaves and value.requires_grad):
            return value, {name: torch.zeros_like(v) for name, v in point.items()}
        slopes = torch.autograd.grad(
            value, list(leaves.values()), create_graph=record, materialize_grads=True, allow_unused=True
        )
    return value if record else value.detach(), dict(zip(leaves, slopes, strict=True))


def _is_watched(function: LossAt, point: Theta) -> bool:
    """Whether anybody asks for a derivative of the result; if not, no graph is kept alive with it."""
    if any(value.requires_grad for value in point.values()):
        return True
    return function({name: value.detach() for name, value in point.items()}).requires_grad


def hessian_vector_product(function: LossAt, point: Theta, vector: Mapping[str, Tensor]) -> Theta:
    """H v with H the Hessian of a scalar function at `point`, at the cost of about two gradients."""
    return hessian(function, point)(vector)


def hessian(function: LossAt, point: Theta) -> Callable[[Mapping[str, Tensor]], Theta]:
    """v -> H v with H the Hessian of a scalar function at `point`: one gradient now, about one more per product.

    Reverse over reverse: the derivative of <grad f, v>. (Forward over reverse is cheaper but fails in torch on models
    with a constant gradient, such as a linear model under squared error.)
    """
    if inside_transform():
        slope, pull = torch.func.vjp(torch.func.grad(function), dict(point))[:2]
        return lambda vector: pull({name: vector[name] for name in slope})[0]
    # The tape has our own, cheaper second derivatives of convolution and batch norm.
    leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
    with torch.enable_grad():
        slope = gradient(function, leaves)
    curved = [name for name, value in slope.items() if value.requires_grad]

    def product(vector: Mapping[str, Tensor]) -> Theta:
        if not curved:
            return _zeros(leaves)
        found = torch.autograd.grad(
            [slope[name] for name in curved],
            list(leaves.values()),
            [vector[name] for name in curved],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        return dict(zip(leaves, found, strict=True))

    return product


# --- conjugate gradient ----------------------------------------------------------------------------------------------


class Solution(NamedTuple):
    """x with A x close to b, and |A x - b| / |b|."""

    x: Theta
    residual: Tensor


def conjugate_gradient(product: Callable[[Theta], Theta], b: Theta, *, steps: int, tolerance: float = 0.0) -> Solution:
    """Solve A x = b for a symmetric positive definite A, given as v -> A v, from x = 0 (Hestenes, Stiefel 1952).

    Stops after `steps` products, or once |A x - b| <= tolerance * |b|. (Under `vmap`, where no task can stop before
    the others, what is solved holds still.)
    """
    x, r = _zeros(b), b
    p, size = r, _dot(r, r)
    goal = size * tolerance**2
    for _ in range(steps):
        going = size > goal
        if not (inside_transform() or bool(going)):
            break
        ap = product(p)
        # A finished task divides nothing by nothing: hold it still instead.
        alpha = torch.where(going, size / torch.where(going, _dot(p, ap), 1.0), 0.0)
        x, r = _axpy(alpha, p, x), _axpy(-alpha, ap, r)
        new = _dot(r, r)
        beta = torch.where(going, new / torch.where(going, size, 1.0), 0.0)
        p, size = _axpy(beta, p, r), new
    whole = _dot(b, b)
    return Solution(x, (size / torch.where(whole > 0, whole, 1.0)).sqrt())


def _dot(a: Theta, b: Theta) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _axpy(scale: Tensor, x: Theta, y: Theta) -> Theta:
    return {name: scale * x[name] + y[name] for name in x}


def warn_above(value: Tensor, limit: float, text: str) -> None:
    """Warn when a value, or that of any task under `vmap`, exceeds a limit or is not a number."""
    _Warn.apply(value.detach(), limit, text)


class _Warn(torch.autograd.Function):
    """An operation because only operations meet plain numbers under `vmap`."""

    @staticmethod
    def forward(value: Tensor, limit: float, text: str) -> Tensor:
        if not bool((value <= limit).all()):
            warnings.warn(text, AccuracyWarning, stacklevel=2)
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, value: Tensor, limit: float, text: str) -> tuple[Tensor, Any]:  # type: ignore[override]
        return _Warn.apply(value, limit, text), in_dims[0]


# --- checks ----------------------------------------------------------------------------------------------------------


def check_steps(steps: int) -> None:
    """Raise ConfigError unless `steps` is a whole number, zero or more."""
    if not isinstance(steps, int) or steps < 0:
        raise ConfigError(f"steps must be a whole number of inner steps, 0 or more; got {steps!r}.")


def check_adjoint(adjoint: str) -> None:
    if adjoint not in ADJOINTS:
        raise ConfigError(f"adjoint must be one of {', '.join(ADJOINTS)}; got {adjoint!r}.{suggest(adjoint, ADJOINTS)}")


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first name whose tensor holds NaN or infinity."""
    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)
