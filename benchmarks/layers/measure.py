"""What each engine does with a case: the meta-gradient of two tasks in float64 against the loop's, with equal draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import quickstudy as qs
from benchmarks.layers.cases import EXAMPLES, Case
from quickstudy.engine import agreement
from quickstudy.engine.engines import Engine
from quickstudy.errors import first_line

WAYS = 3
TASKS = 4  # an even number: every second one is awkward
CANNOT = (RuntimeError, ValueError, NotImplementedError, TypeError, IndexError)


class Order(NamedTuple):
    """How often the meta-gradient differentiates, and the learner that does."""

    name: str
    learner: Callable[[nn.Module], qs.Learner]


ORDERS = (
    Order("first", lambda model: qs.MAML(model, lr=0.1, steps=2, first_order=True)),
    Order("second", lambda model: qs.MAML(model, lr=0.1, steps=2)),
)


class Headed(nn.Module):
    """A body and a linear head on its flat output."""

    def __init__(self, body: nn.Module, x: Any) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(self._features(x).shape[1], WAYS)

    def _features(self, x: Any) -> Tensor:
        out = self.body(x)
        out = torch.view_as_real(out) if out.is_complex() else out
        return out.flatten(1)

    def forward(self, x: Any) -> Tensor:
        return self.head(self._features(x))


def subject(case: Case, order: Order, seed: int = 0) -> tuple[qs.Learner, qs.learner.Theta, qs.Episode]:
    """A learner on the case's layer in float64, its theta, and tasks of which every second one is awkward."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    parts = [torch.stack([_double(case.draw(draws, task)) for task in range(TASKS)]) for _ in range(2)]
    learner = order.learner(Headed(case.build().double(), parts[0][0]).double())
    y = (torch.arange(EXAMPLES) % WAYS).expand(TASKS, EXAMPLES)
    return learner, learner.init(), qs.Episode(*(qs.Batch(x, y) for x in parts))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def verdict(case: Case, order: Order, engine: Engine) -> str:
    """ "right"; "wrong, refused" or "wrong" by how much; or why it cannot. The loop itself: "right" or its error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            learner, theta, episodes = subject(case, order)
            reference = agreement.with_equal_draws(learner, theta, episodes, agreement.LOOP)
        except CANNOT as error:
            return f"the loop cannot: {first_line(error)}"
        try:
            found = agreement.with_equal_draws(learner, theta, episodes, engine)
        except CANNOT as error:
            return f"cannot: {first_line(error)}"
        apart = agreement.relative_difference(found, reference)
        if apart <= agreement.TOLERANCE:
            return "right"
        try:
            agreement.check_engine(learner, theta, episodes, engine)
        except RuntimeError:
            return f"wrong, refused ({apart:.0e})"
        return f"wrong ({apart:.0e})"
