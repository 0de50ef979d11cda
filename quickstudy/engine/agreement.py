"""Whether an engine and the plain loop agree on a meta-gradient, in float64."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from quickstudy.base.seeds import watching_generator
from quickstudy.engine.engines import Engine, find_engine
from quickstudy.engine.mapping import meta_gradient
from quickstudy.episodes import Episodes, first_tasks
from quickstudy.learner import Learner, Theta, networks
from quickstudy.nn.model import without_chance

T = TypeVar("T")


def check_engine(learner: Learner, theta: Theta, episodes: Episodes, engine: str | Engine) -> None:
    """Raise RuntimeError unless an engine and the loop agree on the meta-gradient of two tasks in float64.

    Some of torch's vmap rules give wrong second derivatives without an error (fused normalisation with scale and shift
    is one). The error is too small to see among float32 rounding, but far larger than float64 rounding. The check also
    confirms that a program recorded on one task holds for another. Dropout is off here.
    """
    how = find_engine(engine).uncompiled  # the compiler gets the same program
    if how.own_operations:
        return
    exact, theta, few = in_double(learner), to_double(theta), to_double(first_tasks(episodes, 2))
    one, drew = watching_generator(lambda: meta_gradient(exact, theta, few))
    if drew:  # a learner with its own random draws gets other numbers under vmap, so results are not comparable
        return
    if how.recorded:
        meta_gradient(exact, elsewhere(theta), few, how)
    apart = relative_difference(meta_gradient(exact, theta, few, how), one)
    if not apart <= 1e-7:
        raise RuntimeError(f"its meta-gradient is wrong (by {apart:.0e} in float64)")


def elsewhere(theta: Theta) -> Theta:
    """A different theta. If a program recorded there is right at theta, it has no value of theta as a constant."""
    return {name: 1.01 * value + 0.001 if value.is_floating_point() else value for name, value in theta.items()}


def in_double(learner: Learner) -> Learner:
    """The learner with float64 copies of its networks, without dropout."""
    exact = {name: without_chance(copy.deepcopy(model).double()) for name, model in networks(learner).items()}
    return dataclasses.replace(learner, **exact)  # type: ignore[type-var]


def to_double(tree: T) -> T:
    """The same nested value with its floating-point tensors in float64. Whole numbers stay as they are."""
    return pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, tree)


def relative_difference(a: Any, b: Any) -> float:
    """|a - b| / |b| in the Euclidean norm over all tensors of two nested values."""
    flat = [torch.cat([t.detach().reshape(-1).double() for t in pytree.tree_leaves(tree)]) for tree in (a, b)]
    difference, size = torch.linalg.vector_norm(flat[0] - flat[1]), torch.linalg.vector_norm(flat[1])
    return float(difference / size.clamp(min=1e-12))
