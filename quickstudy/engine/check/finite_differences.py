"""Compares a learner's meta-gradient g with central differences of its meta-loss L, one entry of theta at a time.

    [L(theta + h v) - L(theta - h v)] / 2h  ~  <f, v>        f the derivative of L, v a direction of length 1

Along v = g / |g| the difference must be |g|; across (v drawn at random, orthogonal to g) it must be 0. A few directions
across stand for all n - 1 of them:

    |f|^2 ~ along^2 + (n - 1) mean(across^2),    |f - g|^2 ~ (along - |g|)^2 + (n - 1) mean(across^2)

The comparison is made at theta and at generic points nearby. A wrong derivative is wrong at all of them, whereas a kink
of the loss at theta is not. Errors that the ones and zeros of a fresh network hide show up nearby.
"""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Episode, Learner, Theta

STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-3)  # h, in the order tried; kinks need small steps, rounding needs large ones
ROUNDING = 1e-11  # rounding error of a difference quotient, relative to the size of L
TRIES = 2  # points nearby where an entry is compared again; more than one, because kinks may be dense


class Problem(NamedTuple):
    """One learner's meta-loss on one episode, and how closely to look at its derivative."""

    learner: Learner
    episode: Episode
    directions: int  # the number of random directions across g
    tolerance: float  # on |f - g| / max(|f|, |g|)
    seed: int


class Point(NamedTuple):
    """A theta, the meta-loss there and its gradient, which is None for entries that the loss does not depend on."""

    theta: Theta
    loss: float
    gradient: dict[str, Tensor | None]


class Comparison(NamedTuple):
    """g and f in one entry of theta, in coordinates along and across g, which give |f|, |g| and |f - g| as lengths."""

    gradient: Tensor  # g: (|g|, 0, ...)
    quotients: Tensor  # f
    difference: float  # |f - g| relative to the larger of |f| and |g|
    settled: bool = True  # whether the differences converge as h shrinks; they do not at a jump or a kink


Judgement = tuple[str, Comparison | None]  # a verdict, and the comparison behind it


def differentiate(problem: Problem, theta: Theta) -> Point:
    """The meta-loss at theta and its gradient, computed as in training."""
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    loss = _meta_loss(problem, leaves)
    gradients = (None,) * len(leaves)
    if leaves and loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return Point(theta, float(loss.detach()), dict(zip(leaves, gradients, strict=True)))


def loss_at(problem: Problem, theta: Theta) -> float:
    """The meta-loss at theta, without its gradient."""
    return float(_meta_loss(problem, {name: v.detach().requires_grad_() for name, v in theta.items()}).detach())


def _meta_loss(problem: Problem, theta: Theta) -> Tensor:
    # Draw the same random numbers each time, so that the differences are those of one function.
    with seeds.seeded(problem.seed, "check"), torch.enable_grad():
        return problem.learner.meta_loss(theta, problem.episode)


def judge(problem: Problem, here: Point, approximate: bool) -> dict[str, Judgement]:
    """The verdict on each entry of theta: entry name -> (verdict, comparison).

    `approximate`: g is not meant to equal f, so the verdict only says how far apart they are.
    """
    reference = _exact(problem.learner) if approximate else problem.learner
    if reference is None:
        return {name: _estimated(problem, here, name) for name in here.theta}
    exact, drawn = problem._replace(learner=reference), seeds.generator(problem.seed, "nearby")
    there = differentiate(exact, here.theta) if approximate else here
    near = [differentiate(exact, _nearby(here.theta, drawn)) for _ in range(TRIES)]
    judged = {name: _judge(exact, there, near, name) for name in here.theta}
    return {name: _held_against(there, here, name, judged[name]) for name in judged} if approximate else judged


def together(comparisons: list[Comparison]) -> tuple[float, float]:
    """|f - g| / |f| and the cosine between f and g, over all these comparisons together."""
    if not comparisons:
        return 0.0, 1.0
    g, f = torch.cat([c.gradient for c in comparisons]), torch.cat([c.quotients for c in comparisons])
    sizes = length(f) * length(g)
    return length(f - g) / length(f) if length(f) else 0.0, float(f @ g) / sizes if sizes else 1.0


def length(x: Tensor) -> float:
    """The Euclidean length of a tensor."""
    return float(torch.linalg.vector_norm(x))


def is_finite(gradient: Tensor | None) -> bool:
    """Whether a gradient has no NaN or infinity; None, no gradient, counts as finite."""
    return gradient is None or bool(torch.isfinite(gradient).all())


# --- one entry -------------------------------------------------------------------------------------------------------


def _judge(problem: Problem, here: Point, near: list[Point], name: str) -> Judgement:
    if not (is_finite(here.gradient[name]) and math.isfinite(here.loss)):
        return "not finite", None
    first = there = _compare(problem, here, name)
    for point in near:
        there = _compare(problem, point, name)
        if there.difference <= problem.tolerance:
            return (_harmless(here, name) if first.difference <= problem.tolerance else "kink"), first
    if not there.settled:
        return "unsettled", there
    cut = near[-1].gradient[name] is None or not near[-1].gradient[name].any()  # type: ignore[union-attr]
    return "cut off" if cut else "wrong", there if first.difference <= problem.tolerance else first


def _harmless(here: Point, name: str) -> str:
    gradient = here.gradient[name]
    if gradient is None:
        return "unused"
    return "right" if length(gradient) > 1e-13 * max(1.0, abs(here.loss)) else "zero"


def _estimated(problem: Problem, here: Point, name: str) -> Judgement:
    """Estimate f for an approximate g by the median over the steps h.

    No exact gradient is known, and g need not agree with f, so the step cannot be chosen by agreement.
    """
    if not (is_finite(here.gradient[name]) and math.isfinite(here.loss)):
        return "not finite", None
    along, weights, wanted = _directions(problem, here, name)
    rows = [weights * _quotients(problem, here.theta, name, along, h) for h in STEPS[:3]]
    compared = _compared(wanted, torch.stack(rows).median(0).values)
    return "unused" if here.gradient[name] is None and not compared.quotients.any() else "approximate", compared


def _held_against(exact: Point, here: Point, name: str, judgement: Judgement) -> Judgement:
    """Compare an approximate g with the exact gradient f, unless f itself is wrong."""
    gradient, reference = here.gradient[name], exact.gradient[name]
    if not is_finite(gradient):
        return "not finite", None
    if gradient is None or reference is None or judgement[0] not in ("right", "zero", "kink"):
        return judgement
    norm = length(gradient)
    along = float((gradient * reference).sum()) / norm if norm else 0.0
    across = max(length(reference) ** 2 - along**2, 0.0) ** 0.5
    return "approximate", _compared(gradient.new_tensor([norm, 0.0]), gradient.new_tensor([along, across]))


def _exact(learner: Learner) -> Learner | None:
    """`Learner.exact`; None too where a learner's settings do not go with it."""
    with suppress(ConfigError):
        return learner.exact()
    return None


# --- differences -----------------------------------------------------------------------------------------------------


def _compare(problem: Problem, point: Point, name: str) -> Comparison:
    """Compare g with differences, using in each direction the step h that agrees best: kinks spoil some steps."""
    along, weights, wanted = _directions(problem, point, name)
    # A gradient below this size cannot be distinguished from rounding.
    floor = ROUNDING / problem.tolerance * max(1.0, abs(point.loss)) * length(weights)
    rows: list[Tensor] = []
    for h in STEPS:
        rows.append(weights * _quotients(problem, point.theta, name, along, h))
        compared = _compared(wanted, _closest(torch.stack(rows), wanted), floor)
        if compared.difference <= problem.tolerance:
            return compared
    return compared._replace(settled=_settled(rows, wanted))


def _compared(g: Tensor, f: Tensor, floor: float = 1e-300) -> Comparison:
    return Comparison(g, f, length(f - g) / max(length(f), length(g), floor))


def _directions(problem: Problem, point: Point, name: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Directions along and across g, the weight of each, and the coordinates of g in them."""
    value, gradient = point.theta[name], point.gradient[name]
    gradient = torch.zeros_like(value) if gradient is None else gradient
    drawn, norm = seeds.generator(problem.seed, name), length(gradient)
    count = max(0, min(problem.directions, value.numel() - 1))
    along = gradient / norm if norm else _unit(_like(value, drawn))
    across = [_unit(v - (v * along).sum() * along) for v in (_like(value, drawn) for _ in range(count))]
    weights = [1.0] + [((value.numel() - 1) / max(count, 1)) ** 0.5] * count
    return [along, *across], value.new_tensor(weights), value.new_tensor([norm] + [0.0] * count)


def _like(value: Tensor, drawn: torch.Generator) -> Tensor:
    return torch.randn(value.shape, generator=drawn).to(value)


def _unit(v: Tensor) -> Tensor:
    return v / length(v) if v.numel() else v


def _quotients(problem: Problem, theta: Theta, name: str, directions: list[Tensor], h: float) -> Tensor:
    """Central differences of the meta-loss along each direction."""
    value = theta[name]
    reach = h * max(1.0, length(value))

    def at(shift: Tensor) -> float:
        return loss_at(problem, {**theta, name: value + shift})

    return value.new_tensor([(at(reach * v) - at(-reach * v)) / (2 * reach) for v in directions])


def _closest(rows: Tensor, wanted: Tensor) -> Tensor:
    best = (rows - wanted).abs().nan_to_num(torch.inf, torch.inf).argmin(0, keepdim=True)
    return rows.gather(0, best)[0]


def _settled(rows: list[Tensor], wanted: Tensor) -> bool:
    """Whether two neighbouring steps agree with each other ten times better than with the gradient."""
    shrinking = [row for _, row in sorted(zip(STEPS, rows, strict=True), key=lambda pair: -pair[0])]
    return any(length(a - b) < 0.1 * min(length(a - wanted), length(b - wanted)) for a, b in pairwise(shrinking))


def _nearby(theta: Theta, drawn: torch.Generator) -> Theta:
    """A random point near theta, where no entry is exactly 0 or 1 and no two are equal."""
    sizes = {name: value.square().mean().sqrt().clamp(min=0.1) for name, value in theta.items()}
    return {name: value + 0.01 * sizes[name] * _like(value, drawn) for name, value in theta.items()}
