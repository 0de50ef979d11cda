"""Controls: the same test episodes with something taken away. A learner that does not beat them has learned nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.base import seeds
from quickstudy.engine.labels import function_of, labelled, takes_classes
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError, suggest
from quickstudy.evaluation.metric_of_loss import OF_VALUES
from quickstudy.learner import Learner, Theta, networks, setting, takes
from quickstudy.learners.gradient.maml import MAML
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.reference import NIL, LinearProbe, SupportMean, loss_for
from quickstudy.learners.transfer.finetune import FineTune
from quickstudy.nn.parameters import own
from quickstudy.tasks.changed import ChangedSupport, shuffled
from quickstudy.tasks.source import Source, source_of

Variant = tuple[Learner, Theta, Any]  # a learner, its theta and the tasks it is tested on


def control(name: str, learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The named control of a learner: the (learner, theta, tasks) to evaluate in its place.

    Raises ConfigError for an unknown name, and where the control does not apply to this learner or these tasks.
    """
    check_control(name)
    with seeds.seeded(0, "control"):  # new weights are always the same, and the caller's random state is untouched
        return CONTROLS[name].make(learner, theta, source_of(tasks))


def check_control(name: str) -> None:
    """Raise ConfigError for a name that is not in CONTROLS."""
    if name not in CONTROLS:
        raise ConfigError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}.{suggest(name, CONTROLS)}")


def available(learner: Learner, tasks: Any) -> list[str]:
    """The names of the controls that make sense for this learner and these tasks."""
    source = source_of(tasks)
    numbers = _numbers(source)
    return [name for name, one in CONTROLS.items() if one.applies(learner, source) and (numbers or not one.numeric)]


@dataclass(frozen=True)
class Control:
    """A control: how its variant of a learner is made, and for which learners and tasks that makes sense."""

    make: Callable[[Learner, Theta, Source], Variant]
    applies: Callable[[Learner, Source], bool]
    numeric: bool = (
        False  # whether it computes with the raw inputs and answers, which are then a tensor of numbers each
    )
    dear: bool = False  # whether it trains a network on each task, which takes far longer than the learner itself

    def episodes(self, asked: int) -> int:
        """How many of the test episodes it answers: the first PAIRED if it is dear. Comparisons pair those alone."""
        return min(asked, PAIRED) if self.dear else asked


PAIRED = 50  # test episodes of a dear control: enough to tell a learner from one that has learned nothing before


def zero_steps(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """No adaptation: the predictions of theta itself. Raises ConfigError for a learner without inner steps."""
    if not takes(learner, "steps"):
        raise ConfigError(f"{type(learner).__name__} takes no inner steps: there is no zero_steps control of it.")
    return dataclasses.replace(learner, steps=0), theta, tasks  # type: ignore[type-var]


def shuffled_labels(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """Support targets permuted at random: what is left when they carry no information."""
    return learner, theta, ChangedSupport(tasks, shuffled)


def nearest_centroid(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """The nearest class mean of the raw input. Raises ConfigError for regression tasks."""
    if tasks.ways is None:
        raise ConfigError("nearest_centroid is a control for classification; these tasks are regression.")
    return NearestCentroid(tasks.ways), {}, tasks


def linear_probe(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """A linear model of the raw input, fitted on the support set; of labels by the learner's loss."""
    loss, labels = setting(learner, "loss"), labelled(setting(learner, "loss"))
    logits = tasks.ways is None and labels is not None and labels.logits
    return LinearProbe(tasks.ways, loss=loss if logits else None), {}, tasks


def support_mean(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """The mean of the support targets for every query. Raises ConfigError for classification tasks."""
    if tasks.ways is not None:
        raise ConfigError("support_mean is a control for values; these tasks have classes.")
    labels = labelled(setting(learner, "loss"))
    return SupportMean(labels and labels.output), {}, tasks


def nil(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """No inner loop: the features of theta's body, compared by cosine similarity.

    Raises ConfigError for regression tasks, and for a learner without a model that ends in a linear layer.
    """
    if tasks.ways is None:
        raise ConfigError("nil is a control for classification; these tasks are regression.")
    if not _has_head(learner):
        raise ConfigError(
            f"nil compares the features below the head, but {type(learner).__name__} has no field `model` whose last "
            "layer is an nn.Linear."
        )
    model = learner.model  # type: ignore[attr-defined]
    return NIL(model, tasks.ways), own(model, theta), tasks


def _has_head(learner: Learner) -> bool:
    """Whether the learner has a model that ends in a linear layer."""
    model = setting(learner, "model")
    return isinstance(model, nn.Module) and _ends_linear(model)


def _ends_linear(model: nn.Module) -> bool:
    """Whether the last layer that holds parameters is linear."""
    layers = [layer for layer in model.modules() if layer._parameters]
    return bool(layers) and isinstance(layers[-1], nn.Linear)


def from_scratch(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """The same network from random weights, trained on the support set alone.

    Raises ConfigError for a learner without a network.
    """
    own_networks = networks(learner)
    if not own_networks:
        raise ConfigError(f"{type(learner).__name__} has no network to train from scratch.")
    model = _with_head(next(iter(own_networks.values())), tasks, setting(learner, "loss"))
    loss = setting(learner, "loss") or loss_for(tasks.ways)
    if _ends_linear(model):
        scratch: Learner = FineTune(model, loss, tasks.ways, lr=0.01, steps=100, fit="all")
    else:  # such as a network for masks, which ends in a convolution
        scratch = MAML(model, loss, lr=0.01, steps=100, first_order=True)
    return scratch, scratch.init(), tasks


def _with_head(model: nn.Module, tasks: Source, loss: Any) -> nn.Module:
    """A randomly initialised copy of the network that answers these tasks; an encoder gets a linear layer on top."""
    fresh = rerandomised(model)
    example = unstack(tasks.sample(1, seeds.generator(0, "probe")))[0].support
    with torch.no_grad():
        output = fresh(example.x)
    if example.y.dim() > 1 and (output.shape == example.y.shape or takes_classes(loss)):
        return fresh
    width, wanted = output.flatten(1).shape[1], tasks.ways or example.y.shape[-1]
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


def _numbers(tasks: Source) -> bool:
    """Whether inputs and answers are a tensor of numbers each. Indices of subwords have no meaningful mean."""
    if tasks.on_policy or "buckets" in tasks.preprocess:
        return False
    support = unstack(tasks.sample(1, seeds.generator(0, "probe")))[0].support
    return isinstance(support.x, Tensor) and isinstance(support.y, Tensor) and support.x.is_floating_point()


def _reads_values(learner: Learner, tasks: Source) -> bool:
    """Whether answers are values, or labels, and the loss says what an output means: a logit, or the value itself."""
    loss = setting(learner, "loss")
    return tasks.ways is None and (loss is None or function_of(loss) in OF_VALUES or labelled(loss) is not None)


CONTROLS: dict[str, Control] = {
    "zero_steps": Control(zero_steps, lambda learner, tasks: takes(learner, "steps")),
    "shuffled_labels": Control(shuffled_labels, lambda learner, tasks: True),
    "nearest_centroid": Control(nearest_centroid, lambda learner, tasks: tasks.ways is not None, numeric=True),
    "support_mean": Control(support_mean, _reads_values, numeric=True),
    "linear_probe": Control(
        linear_probe, lambda one, tasks: bool(tasks.ways) or _reads_values(one, tasks), numeric=True
    ),
    "nil": Control(nil, lambda learner, tasks: tasks.ways is not None and _has_head(learner), numeric=True),
    "from_scratch": Control(from_scratch, lambda learner, tasks: bool(networks(learner)), numeric=True, dear=True),
}
