"""What each engine makes of a case: the meta-gradient of some tasks in float64 against the loop's, with equal draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quickstudy as qs
from benchmarks.layers.cases import EXAMPLES, Case
from quickstudy.engine import agreement
from quickstudy.engine.draws import InLogicalOrder
from quickstudy.engine.engines import BY_NAME, LOOP, Engine
from quickstudy.errors import first_line
from quickstudy.learner import Batch, Episode, Learner, Network, Theta
from quickstudy.nn.model import call, safe_layer
from quickstudy.nn.parameters import parameters

ENGINES = tuple(BY_NAME[name] for name in ("vmap", "replay", "replay-threads"))  # compile runs replay's operations
WAYS = 3
TASKS = 4  # every second one is awkward
CANNOT = (RuntimeError, ValueError, NotImplementedError, TypeError, IndexError)
RIGHT, CAUGHT, WRONG = "right", "wrong, refused", "wrong"


@dataclass(frozen=True, eq=False)
class ByTransform(Learner):
    """MAML as users write it, with torch's own transform for the inner gradient. Its rules under `vmap` show here."""

    model: Network
    lr: float = 0.1
    steps: int = 2

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        phi = theta
        for _ in range(self.steps):
            gradient = torch.func.grad(lambda p: F.cross_entropy(call(self.model, p, support.x), support.y))(phi)
            phi = {name: value - self.lr * gradient[name] for name, value in phi.items()}
        return phi

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return call(self.model, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        output = self.predict(theta, self.adapt(theta, episode.support), episode.query.x)
        return F.cross_entropy(output, episode.query.y)


class Order(NamedTuple):
    """How often the meta-gradient differentiates, and the learner that does."""

    name: str
    learner: Callable[[nn.Module], Learner]


FIRST = Order("first", lambda model: qs.MAML(model, lr=0.1, steps=2, first_order=True))
SECOND = Order("second", lambda model: qs.MAML(model, lr=0.1, steps=2))
TRANSFORM = Order("second, torch.func", lambda model: ByTransform(model))
ORDERS = (FIRST, SECOND, TRANSFORM)


class Headed(nn.Module):
    """A body and a linear head on its flat output."""

    def __init__(self, body: nn.Module, x: Any) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(self._features(x).shape[1], WAYS)

    def _features(self, x: Any) -> Tensor:
        out = self.body(x)
        return (torch.view_as_real(out) if out.is_complex() else out).flatten(1)

    def forward(self, x: Any) -> Tensor:
        return self.head(self._features(x))


class Subject(NamedTuple):
    """A meta-gradient to compute, in float64."""

    learner: Learner
    theta: Theta
    episodes: qs.Episode


def subject(body: nn.Module, case: Case, order: Order) -> Subject:
    """A learner on this body of the case's network, and tasks of which every second one is awkward."""
    draws = torch.Generator().manual_seed(0)
    parts = [torch.stack([_double(case.draw(draws, task)) for task in range(TASKS)]) for _ in range(2)]
    learner = order.learner(Headed(body.double(), parts[0][0]).double())
    y = (torch.arange(EXAMPLES) % WAYS).expand(TASKS, EXAMPLES)
    return Subject(learner, learner.init(), qs.Episode(*(qs.Batch(x, y) for x in parts)))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def verdicts(case: Case, order: Order, engines: Sequence[Engine] = ENGINES) -> dict[str, str]:
    """What each engine does, by its name: RIGHT, CAUGHT, WRONG, or why it cannot; under "loop" if even that cannot."""
    torch.manual_seed(0)
    return _verdicts(case.build(), case, order, engines)


def verdicts_of_torch(case: Case, order: Order) -> dict[str, str]:
    """The same with torch's own layers where the library puts its own in their place; empty where it does not."""
    torch.manual_seed(0)
    body = case.build()
    kept = [layer for layer in body.modules() if safe_layer(layer) is not layer]
    for layer in kept:
        # A class of the same name that is not torch's own is left alone.
        layer.__class__ = type(type(layer).__name__, (type(layer),), {})
    left = [layer for layer in kept if safe_layer(layer) is layer]
    return _verdicts(body, case, order, ENGINES) if left else {}


def _verdicts(body: nn.Module, case: Case, order: Order, engines: Sequence[Engine]) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            one = subject(body, case, order)
            wanted = _gradients(one, LOOP)
        except CANNOT as error:
            return {"loop": first_line(error)}
        return {engine.name: _verdict(one, engine, wanted) for engine in engines}


def _verdict(one: Subject, engine: Engine, wanted: Any) -> str:
    try:
        apart = agreement.relative_difference(_gradients(one, engine), wanted)
    except CANNOT as error:
        return first_line(error)
    if apart <= agreement.TOLERANCE:
        return RIGHT
    try:
        agreement.check_engine(*one, engine)
    except RuntimeError:
        return CAUGHT
    return WRONG


def _gradients(one: Subject, engine: Engine) -> Any:
    torch.manual_seed(1)
    with InLogicalOrder():
        return agreement.gradients(*one, engine)
