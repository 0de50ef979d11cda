"""Controls: the same test episodes with something taken away. A learner that does not beat them has learned nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from quickstudy.base import seeds
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Learner, Theta, networks
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.reference import NIL, LinearProbe, SupportMean, loss_for
from quickstudy.learners.transfer.finetune import FineTune
from quickstudy.nn.parameters import own
from quickstudy.tasks.changed import ChangedSupport, shuffled

Variant = tuple[Learner, Theta, Any]  # a learner, its theta and the tasks it is tested on


def control(name: str, learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The named control of a learner: the (learner, theta, tasks) to evaluate in its place.

    Raises ConfigError for an unknown name, and where the control does not apply to this learner or these tasks.
    """
    check_control(name)
    with seeds.seeded(0, "control"):  # new weights are always the same, and the caller's random state is untouched
        return CONTROLS[name](learner, theta, tasks)


def check_control(name: str) -> None:
    """Raise ConfigError for a name that is not in CONTROLS."""
    if name not in CONTROLS:
        raise ConfigError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}.{suggest(name, CONTROLS)}")


def available(learner: Learner, tasks: Any) -> list[str]:
    """The names of the controls that make sense for this learner and these tasks."""
    classification = getattr(tasks, "ways", None) is not None
    names = ["shuffled_labels"]
    if "buckets" in getattr(tasks, "preprocess", {}):  # subword indices have no meaningful mean or scale
        return names + (["zero_steps"] if hasattr(learner, "steps") else [])
    names += ["linear_probe"]
    names += ["zero_steps"] if hasattr(learner, "steps") else []
    names += ["nearest_centroid"] if classification else ["support_mean"]
    names += ["nil"] if classification and _has_head(learner) else []
    names += ["from_scratch"] if networks(learner) else []
    return [name for name in CONTROLS if name in names]


def zero_steps(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """No adaptation: the predictions of theta itself. Raises ConfigError for a learner without inner steps."""
    if not hasattr(learner, "steps"):
        raise ConfigError(f"{type(learner).__name__} takes no inner steps: there is no zero_steps control of it.")
    return dataclasses.replace(learner, steps=0), theta, tasks  # type: ignore[type-var]


def shuffled_labels(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """Support targets permuted at random: what is left when they carry no information."""
    return learner, theta, ChangedSupport(tasks, shuffled)


def nearest_centroid(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The nearest class mean of the raw input. Raises ConfigError for regression tasks."""
    if getattr(tasks, "ways", None) is None:
        raise ConfigError("nearest_centroid is a control for classification; these tasks are regression.")
    return NearestCentroid(tasks.ways), {}, tasks


def linear_probe(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """A linear model of the raw input, fitted on the support set."""
    return LinearProbe(getattr(tasks, "ways", None)), {}, tasks


def support_mean(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The mean of the support targets for every query. Raises ConfigError for classification tasks."""
    if getattr(tasks, "ways", None) is not None:
        raise ConfigError("support_mean is a control for values; these tasks have classes.")
    return SupportMean(), {}, tasks


def nil(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """No inner loop: the features of theta's body, compared by cosine similarity.

    Raises ConfigError for regression tasks, and for a learner without a model that ends in a linear layer.
    """
    ways = getattr(tasks, "ways", None)
    if ways is None:
        raise ConfigError("nil is a control for classification; these tasks are regression.")
    if not _has_head(learner):
        raise ConfigError(
            f"nil compares the features below the head, but {type(learner).__name__} has no field `model` whose last "
            "layer is an nn.Linear."
        )
    model = learner.model  # type: ignore[attr-defined]
    return NIL(model, ways), own(model, theta), tasks


def _has_head(learner: Learner) -> bool:
    """Whether the last layer of the learner's model that holds parameters is linear."""
    model = getattr(learner, "model", None)
    layers = [layer for layer in model.modules() if layer._parameters] if isinstance(model, nn.Module) else []
    return bool(layers) and isinstance(layers[-1], nn.Linear)


def from_scratch(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The same network from random weights, trained on the support set alone.

    Raises ConfigError for a learner without a network.
    """
    found = networks(learner)
    if not found:
        raise ConfigError(f"{type(learner).__name__} has no network to train from scratch.")
    ways = getattr(tasks, "ways", None)
    model = _with_head(next(iter(found.values())), tasks, ways)
    scratch = FineTune(model, loss_for(ways), ways, lr=0.01, steps=100, fit="all")
    return scratch, scratch.init(), tasks


def _with_head(model: nn.Module, tasks: Any, ways: int | None) -> nn.Module:
    """A randomly initialised copy of the network that ends in a linear layer; an encoder gets one on top."""
    fresh = rerandomised(model)
    example = unstack(tasks.sample(1, seeds.generator(0, "probe")))[0].support
    with torch.no_grad():
        output = fresh(example.x)
    width, wanted = output.flatten(1).shape[1], ways or example.y.shape[-1]
    return fresh if output.shape[1:] == (wanted,) else nn.Sequential(fresh, nn.Flatten(), nn.Linear(width, wanted))


def rerandomised(model: nn.Module) -> nn.Module:
    """A copy of the model with the weights of every layer initialised again."""
    fresh = copy.deepcopy(model)
    for layer in fresh.modules():
        reset = getattr(
            layer, "reset_parameters", getattr(layer, "_reset_parameters", None)
        )  # attention has the latter
        if callable(reset):
            reset()
    return fresh


CONTROLS: dict[str, Callable[[Learner, Theta, Any], Variant]] = {
    "zero_steps": zero_steps,
    "shuffled_labels": shuffled_labels,
    "nearest_centroid": nearest_centroid,
    "support_mean": support_mean,
    "linear_probe": linear_probe,
    "nil": nil,
    "from_scratch": from_scratch,
}
