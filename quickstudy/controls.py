"""Controls: the same test episodes with something taken away. A learner that does not beat them has learned nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy import seeds
from quickstudy.episodes import Episodes, stacked, unstack
from quickstudy.errors import ConfigError, suggest
from quickstudy.inner import descend
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.learners.metric.distance import class_means
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.transfer.finetune import FineTune
from quickstudy.model import input_of, last_linear, own, parameters, statistics
from quickstudy.protocol import describe, networks

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


@dataclass(frozen=True, eq=False)
class SupportMean(Learner):
    """y = mean of the support targets."""

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return support.y.mean(0)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return phi.expand(len(x), *phi.shape)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return F.mse_loss(self.predict(theta, self.adapt(theta, episode.support), episode.query.x), episode.query.y)


class Line(NamedTuple):
    """x -> (x - centre) / scale @ weight + bias."""

    centre: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class LinearProbe(Learner):
    """Least squares for regression, softmax regression for classification, on inputs scaled to be free of units.

    z = (x - mean) / scale has mean squared length 1. Regression takes the minimum-norm solution pinv(Z) (Y - mean Y).
    Classification descends from zero on the cross entropy with learning rate 1, which is safe because the curvature in
    (weight, bias) is then at most 1.
    """

    ways: int | None = None  # classes in a task; None for regression
    steps: int = 100  # gradient steps (classification)

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Line:
        x = support.x.flatten(1)
        centre = x.mean(0)
        scale = ((x - centre) ** 2).sum(1).mean().sqrt().clamp(min=1e-12)
        z = (x - centre) / scale
        if self.ways is None:
            level = support.y.mean(0)
            return Line(centre, scale, torch.linalg.pinv(z) @ (support.y - level), level)
        start = {"weight": z.new_zeros(z.shape[1], self.ways), "bias": z.new_zeros(self.ways)}
        phi = descend(
            lambda p, z, y: F.cross_entropy(z @ p["weight"] + p["bias"], y),
            start,
            given=(z, support.y),
            lr=1.0,
            steps=self.steps,
            adjoint="first_order",
        )
        return Line(centre, scale, phi["weight"], phi["bias"])

    def predict(self, theta: Theta, phi: Line, x: Tensor) -> Tensor:
        return (x.flatten(1) - phi.centre) / phi.scale @ phi.weight + phi.bias

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        output = self.predict(theta, self.adapt(theta, episode.support), episode.query.x)
        return _loss(self.ways)(output, episode.query.y)


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


class Likeness(NamedTuple):
    means: Tensor  # [ways, d]
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class NIL(Learner):
    """Nothing adapts: the head is dropped, and a query is compared with the support examples by their features.

        logits_k(x) = mean over the support examples (x_i, k) of cos(f(x), f(x_i)),   f the body below the last linear

    What a learner scores beyond this is due to its inner loop, not to the features alone.

    Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse?, ICLR 2020, https://arxiv.org/abs/1909.09157
    """

    model: nn.Module  # ends in a linear layer, the head
    ways: int  # classes in a task

    def init(self) -> Theta:
        return parameters(self.model)

    def adapt(self, theta: Theta, support: Batch) -> Likeness:
        means = class_means(self._directions(theta, support.x), support.y, self.ways)
        return Likeness(means, statistics(self.model, theta, support.x))

    def _directions(self, theta: Theta, x: Tensor) -> Tensor:
        """f(x) / |f(x)|. Inner products are cosines; a mean of cosines is the inner product with the mean direction."""
        return F.normalize(input_of(last_linear(self.model).rstrip("."), self.model, theta, x).flatten(1), dim=1)

    def predict(self, theta: Theta, phi: Likeness, x: Tensor) -> Tensor:
        return self._directions(theta | phi.statistics, x) @ phi.means.T

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        output = self.predict(theta, self.adapt(theta, episode.support), episode.query.x)
        return F.cross_entropy(output, episode.query.y)


def from_scratch(learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The same network from random weights, trained on the support set alone.

    Raises ConfigError for a learner without a network.
    """
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


def _loss(ways: int | None) -> Callable:
    return F.cross_entropy if ways else F.mse_loss


@dataclass(frozen=True, eq=False)
class ChangedSupport:
    """A task source that applies `change` to each support set; `change` may draw from the tasks' generator."""

    source: Any
    change: Callable[[Batch, torch.Generator | None], Batch]

    @property
    def ways(self) -> int | None:
        return getattr(self.source, "ways", None)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episodes:
        drawn = self.source.sample(n, generator)
        changed = [one._replace(support=self.change(one.support, generator)) for one in unstack(drawn)]
        return changed if isinstance(drawn, list) else stacked(changed)

    @property
    def unit(self) -> float:
        return getattr(self.source, "unit", 1.0)

    def facts(self, n: int, generator: torch.Generator | None = None) -> dict[str, Any]:
        return self.source.facts(n, generator) if hasattr(self.source, "facts") else {}

    def describe(self) -> dict[str, Any]:
        return describe(self.source)


def shuffled(support: Batch, generator: torch.Generator | None) -> Batch:
    """The same examples with their targets permuted at random."""
    order = torch.rand(len(support.y), generator=generator).argsort()
    return support._replace(y=support.y[order])


def without_support(support: Batch, generator: torch.Generator | None) -> Batch:
    """An empty support set."""
    return Batch(support.x[:0], support.y[:0])


CONTROLS: dict[str, Callable[[Learner, Theta, Any], Variant]] = {
    "zero_steps": zero_steps,
    "shuffled_labels": shuffled_labels,
    "nearest_centroid": nearest_centroid,
    "support_mean": support_mean,
    "linear_probe": linear_probe,
    "nil": nil,
    "from_scratch": from_scratch,
}
