"""Is the meta-gradient right? A check for your own models and learners.

`finite_differences.py` holds the mathematics: it compares the learner's meta-gradient with finite differences of its
meta-loss. `verdict.py` holds the result. This file checks the inputs, runs the comparison, and finds out which engines
can run the learner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.base import seeds, trees
from quickstudy.engine import agreement, mapping
from quickstudy.engine.check.finite_differences import (
    Judgement,
    Point,
    Problem,
    differentiate,
    is_finite,
    judge,
    length,
    loss_at,
    together,
)
from quickstudy.engine.check.held_rows import PlainLookups, as_functions
from quickstudy.engine.check.verdict import BAD, EngineCheck, EntryCheck, GradientCheck
from quickstudy.engine.choice import race
from quickstudy.engine.engines import BY_NAME, LOOP, Engine
from quickstudy.episodes import joined
from quickstudy.errors import ConfigError, DataError, QuickstudyError, first_line
from quickstudy.learner import Batch, Episode, Learner, Theta, networks, setting
from quickstudy.nn.model import without_chance


def check_meta_gradient(
    learner: Learner,
    episode: Episode,
    theta: Theta | None = None,
    *,
    directions: int = 3,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> GradientCheck:
    """Compare the learner's meta-gradient with finite differences, and find out which engines can run it.

    episode: one task, without a task axis: support x [n, ...], y [n] or [n, d]; query likewise. x and y may be dicts or
    tuples of tensors with n rows each. theta: where to compare, `learner.init()` unless given. directions: the number
    of random directions for each entry of theta. tolerance: on the relative difference. A learner that is not `exact`,
    because it declares `approximate` or its adjoint leaves something out, is not called wrong: the result says how far
    it is from the exact derivative.

    Works on float64 copies with dropout off; every evaluation draws the same random numbers. Raises ConfigError where
    `learner` is not a learner or its meta-loss changes from call to call, DataError where the learner cannot use the
    episode.

    >>> import torch, quickstudy as qs
    >>> batch = qs.Batch(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
    >>> qs.check_meta_gradient(qs.MAML(qs.nn.mlp(4, 3)), qs.Episode(batch, batch)).ok
    True
    """
    _check_given(learner, episode, directions, tolerance)
    with _explained(learner, episode):
        given = _start(learner, seed) if theta is None else theta
        draws, problems = _as_given(learner, given, episode, seed)
    with _double_by_default(), _explained(learner, episode):
        exact, task = agreement.in_double(learner, _as_function), agreement.to_double(episode)
        problem = Problem(exact, task, directions, tolerance, seed)
        with PlainLookups():
            here = differentiate(problem, agreement.to_double(given))
            _check_repeats(problem, here)
            judged = judge(problem, here, is_approximate(learner))
            judged |= {name: ("handed in", None) for name in judged if name.startswith(learner.handed_in)}
            bad = [name for name, (verdict, _) in judged.items() if verdict in BAD]
            problems += _where_it_begins(problem, here, bad)
        able = _engines(problem._replace(learner=agreement.in_double(learner, without_chance)), here, draws)
    entries = tuple(_entry(here, name, judgement) for name, judgement in judged.items())
    compared = [one for verdict, one in judged.values() if one is not None and verdict != "kink"]
    words = tuple(problems)
    return GradientCheck(
        type(learner).__name__, here.loss, entries, able, is_approximate(learner), *together(compared), words
    )


def _as_function(model: nn.Module) -> nn.Module:
    return as_functions(without_chance(model))


def is_approximate(learner: Learner) -> bool:
    """Whether the learner declares that its meta-gradient is not the derivative of its meta-loss."""
    return learner.exact() is not learner


def _entry(here: Point, name: str, judgement: Judgement) -> EntryCheck:
    verdict, comparison = judgement
    gradient, difference = here.gradient[name], comparison.difference if comparison else float("nan")
    norm = 0.0 if gradient is None else length(gradient)
    return EntryCheck(name, tuple(here.theta[name].shape), norm, difference, verdict)


# --- inputs ----------------------------------------------------------------------------------------------------------


def _check_given(learner: Any, episode: Any, directions: int, tolerance: float) -> None:
    if not (isinstance(learner, Learner) and dataclasses.is_dataclass(learner)):
        raise ConfigError(
            f"expected a learner, a frozen dataclass such as qs.MAML(model), got {_kind(learner)}. Put a network into "
            "one: qs.check_meta_gradient(qs.MAML(network), episode)."
        )
    if not isinstance(episode, Episode):
        raise DataError(f"expected qs.Episode(qs.Batch(x, y), qs.Batch(x, y)) of tensors, got {_kind(episode)}.")
    if directions < 0 or not tolerance > 0:
        raise ConfigError(f"directions must be 0 or more and tolerance above 0, got {directions} and {tolerance}.")
    for part, batch in zip(Episode._fields, episode, strict=True):
        _check_batch(part, batch)


def _check_batch(part: str, batch: Any) -> None:
    if not (isinstance(batch, tuple) and len(batch) == 2 and _is_of_tensors(batch)):
        raise DataError(
            f"the {part} set must be qs.Batch(x, y), x and y tensors or dicts or tuples of tensors; got {_kind(batch)}."
        )
    x, y = map(trees.tensors, batch)
    if not (x and y and all(t.dim() and 0 < len(t) == len(y[0]) for t in (*x, *y))):
        shapes = f"x {trees.shapes(batch[0])} and y {trees.shapes(batch[1])}"
        raise DataError(f"the {part} set needs an answer per input, x [n, ...] and y [n] or [n, d]; got {shapes}.")
    if not all(torch.isfinite(t).all() for t in (*x, *y)):
        raise DataError(f"the {part} set holds NaN or infinity.")


def _is_of_tensors(tree: Any) -> bool:
    return all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(tree))


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


@contextmanager
def _explained(learner: Learner, episode: Episode) -> Iterator[None]:
    """Reports errors inside the user's model as a DataError with the shapes of the episode."""
    try:
        yield
    except QuickstudyError:
        raise
    except Exception as error:
        shapes = ", ".join(
            f"{name} x {trees.shapes(batch.x)} y {trees.shapes(batch.y)}"
            for name, batch in zip(Episode._fields, episode, strict=True)
        )
        raise DataError(
            f"{type(learner).__name__} cannot compute its meta-gradient on this episode ({shapes}): "
            f"{type(error).__name__}: {first_line(error)}\nAn episode is one task, without a task axis. Where "
            "a layer has no second derivative, first_order=True does without."
        ) from error


@contextmanager
def _double_by_default() -> Iterator[None]:
    """Make tensors that the model creates, such as `torch.zeros(n)`, float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _start(learner: Learner, seed: int) -> Theta:
    with seeds.seeded(seed, "theta"):
        return learner.init()


def _as_given(learner: Learner, theta: Theta, episode: Episode, seed: int) -> tuple[bool, list[str]]:
    """Whether the learner draws random numbers, and what goes wrong at its own precision with dropout on."""
    dtype = next((value.dtype for value in theta.values()), torch.get_default_dtype())
    tasks = pytree.tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, _two_tasks(episode))
    with seeds.seeded(seed, "check"):
        (loss, gradient), draws = seeds.watching_generator(lambda: mapping.meta_gradient(learner, theta, tasks))
    bad = [name for name, value in {"the meta-loss": loss, **gradient}.items() if not is_finite(value)]
    return draws, [f"in {str(dtype).removeprefix('torch.')} not finite: {', '.join(bad)}"] if bad else []


def _check_repeats(problem: Problem, here: Point) -> None:
    if abs(loss_at(problem, here.theta) - here.loss) > 1e-9 * max(1.0, abs(here.loss)):
        raise ConfigError(
            "the meta-loss changes from call to call, so it has no derivative to check. Draw random numbers from "
            "torch, not from numpy or random, and keep no state in the model."
        )


def _where_it_begins(problem: Problem, here: Point, bad: list[str]) -> list[str]:
    """Find where an error begins. Inner steps spread it to all parameters; the loss without them shows its source."""
    if not bad or not setting(problem.learner, "steps"):
        return []
    whole = Episode(problem.episode.support, joined(problem.episode))
    with suppress(*race.CANNOT):
        still = dataclasses.replace(problem.learner, steps=0)  # type: ignore[type-var]
        problem = problem._replace(learner=still, episode=whole)
        judged = judge(problem, differentiate(problem, here.theta), approximate=False)
        first = [name for name, (verdict, _) in judged.items() if verdict in BAD]
        if first:
            return [f"it begins at: {', '.join(first)} (without inner steps, the plain gradient fails there)"]
        return ["without inner steps, the plain gradient is right: look at second derivatives and the inner loop"]
    return []


# --- engines ---------------------------------------------------------------------------------------------------------

CHECKED = ("threads", "vmap", "replay")  # beside the loop; the others do the same work as one of these


def _two_tasks(episode: Episode) -> Episode:
    """The episode and a second one: the same inputs in reverse order, with the answers in the original order."""
    other = Episode(*(Batch(trees.mapped(lambda t: t.flip(0), batch.x), batch.y) for batch in episode))
    return pytree.tree_map(lambda a, b: torch.stack([a, b]), episode, other)


def _engines(problem: Problem, here: Point, draws: bool) -> tuple[EngineCheck, ...]:
    """Compare each engine with the loop on two tasks in float64."""
    tasks = _two_tasks(problem.episode)

    def run(engine: Engine, theta: Theta = here.theta) -> tuple[Any, bool]:
        with seeds.seeded(problem.seed, "check"):
            return seeds.watching_generator(lambda: mapping.meta_gradient(problem.learner, theta, tasks, engine))

    reference, random = run(LOOP)

    def able(engine: Engine) -> EngineCheck:
        if (draws or random) and not engine.repeats_draws:
            how = "recorded" if engine.recorded else "repeated on threads"
            return EngineCheck(engine.name, False, f"random draws (dropout) cannot be {how}")
        try:
            if engine.recorded:  # record it at another theta first
                run(engine, agreement.elsewhere(here.theta))
            apart = agreement.relative_difference(run(engine)[0], reference)
        except race.CANNOT as error:
            return EngineCheck(engine.name, False, _why(problem.learner, engine, error))
        if random:
            return EngineCheck(engine.name, True, "with other random draws, so not comparable")
        agrees = apart <= 1e-7 or not all(is_finite(t) for t in pytree.tree_leaves(reference))
        return EngineCheck(engine.name, agrees, "" if agrees else f"it is off by {apart:.0e} in float64")

    return EngineCheck(LOOP.name, True), *(able(BY_NAME[name]) for name in CHECKED)


def _why(learner: Learner, engine: Engine, error: Exception) -> str:
    """torch's message, with the cause for recurrent layers under vmap, where it only names internal shapes."""
    layers = (layer for network in networks(learner).values() for layer in network.modules())
    recurrent = sorted({type(layer).__name__ for layer in layers if isinstance(layer, nn.RNNBase)})
    unmapped = recurrent and engine.together and not engine.recorded
    cause = f"torch has no batching rule for nn.{', nn.'.join(recurrent)}: " if unmapped else ""
    return cause + first_line(error)
