"""Controls: the same test episodes with something taken away. What does not beat them has learned nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from quickstudy import seeds
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Episode, Learner, Theta
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.transfer.finetune import FineTune
from quickstudy.protocol import networks

Variant = tuple[Learner, Theta, Any]  # a learner, its theta and the tasks it is tested on


def control(name: str, learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The named control of a learner: what to evaluate in its place."""
    if name not in CONTROLS:
        raise ConfigError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}.{suggest(name, CONTROLS)}")
    return CONTROLS[name](learner, theta, tasks)


def available(learner: Learner, tasks: Any) -> list[str]:
    """The controls that make sense for this learner and these tasks."""
    classification = getattr(tasks, "ways", None) is not None
    names = ["shuffled_labels", "linear_probe"]
    names += ["zero_steps"] if hasattr(learner, "steps") else []
    names += ["nearest_centroid"] if classification else []
    names += ["from_scratch"] if networks(learner) else []
    return [name for name in CONTROLS if name in names]


def zero_steps(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """No adaptation: what theta answers by itself."""
    if not hasattr(learner, "steps"):
        raise ConfigError(f"{type(learner).__name__} takes no inner steps: there is no zero_steps control of it.")
    return dataclasses.replace(learner, steps=0), theta, tasks  # type: ignore[type-var]


def shuffled_labels(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """Support answers permuted at random: what is left when the support set says nothing."""
    return learner, theta, ShuffledSupport(tasks)


def nearest_centroid(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The nearest class mean of the raw input."""
    if getattr(tasks, "ways", None) is None:
        raise ConfigError("nearest_centroid is a control for classification; these tasks are regression.")
    return NearestCentroid(tasks.ways), {}, tasks


def linear_probe(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """A linear model of the raw input, fitted on the support set from zero."""
    example = tasks.sample(1, seeds.generator(0, "probe")).support
    ways = getattr(tasks, "ways", None)
    outputs = ways or example.y.shape[-1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(example.x[0, 0].numel(), outputs))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    # Rates as plain descent needs them: the steepest safe rate of inputs in [0, 1] and of x in [-5, 5].
    probe = FineTune(model, _loss(ways), ways, lr=0.1 if ways else 0.02, steps=100)
    return probe, probe.init(), tasks


def from_scratch(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The same network from random weights, trained on the support set alone."""
    found = networks(learner)
    if not found:
        raise ConfigError(f"{type(learner).__name__} has no network to train from scratch.")
    ways = getattr(tasks, "ways", None)
    model = _with_head(next(iter(found.values())), tasks, ways)
    scratch = FineTune(model, _loss(ways), ways, lr=0.01, steps=100, fit="all")
    return scratch, scratch.init(), tasks


def _with_head(model: nn.Module, tasks: Any, ways: int | None) -> nn.Module:
    """A randomly initialised copy of the network that ends in a linear layer; an encoder gets one on top."""
    fresh = rerandomised(model)
    example = tasks.sample(1, seeds.generator(0, "probe")).support
    with torch.no_grad():
        width = fresh(example.x[0]).shape[-1]
    wanted = ways or example.y.shape[-1]
    return fresh if width == wanted else nn.Sequential(fresh, nn.Linear(width, wanted))


def rerandomised(model: nn.Module) -> nn.Module:
    """A copy with every layer's weights drawn anew, always the same ones (seeded)."""
    import copy

    fresh = copy.deepcopy(model)
    with seeds.seeded(0, "from_scratch"):
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


def _loss(ways: int | None) -> Callable:
    return F.cross_entropy if ways else F.mse_loss


@dataclass(frozen=True, eq=False)
class ShuffledSupport:
    """A task source whose support answers are permuted within each task."""

    source: Any

    @property
    def ways(self) -> int | None:
        return getattr(self.source, "ways", None)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        support, query = self.source.sample(n, generator)
        order = torch.rand(support.y.shape[:2], generator=generator).argsort(1)
        shuffled = torch.stack([y[o] for y, o in zip(support.y, order, strict=True)])
        return Episode(support._replace(y=shuffled), query)

    def describe(self) -> dict[str, Any]:
        return self.source.describe()


CONTROLS: dict[str, Callable[[Learner, Theta, Any], Variant]] = {
    "zero_steps": zero_steps,
    "shuffled_labels": shuffled_labels,
    "nearest_centroid": nearest_centroid,
    "linear_probe": linear_probe,
    "from_scratch": from_scratch,
}
