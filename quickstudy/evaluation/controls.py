"""Controls: the same test episodes with something taken away. A learner that does not beat them has learned nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.base import seeds, trees
from quickstudy.engine.labels import function_of, labelled, takes_classes
from quickstudy.episodes import are_classes, unstack
from quickstudy.errors import ConfigError, suggest
from quickstudy.evaluation.metric_of_loss import OF_VALUES
from quickstudy.learner import Batch, Learner, Theta, networks, setting, takes
from quickstudy.learners.gradient.maml import MAML
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.reference import NIL, Headed, LinearProbe, SupportMean, loss_for
from quickstudy.learners.reference_texts import IDF, TfIdfCentroid, TfIdfRegression
from quickstudy.learners.transfer.finetune import FineTune
from quickstudy.nn.model import call
from quickstudy.nn.parameters import own
from quickstudy.nn.text import TextEncoder
from quickstudy.tasks.changed import ChangedSupport, shuffled
from quickstudy.tasks.source import Source, source_of

Variant = tuple[Learner, Theta, Any]  # a learner, its theta and the tasks it is tested on


def control(name: str, learner: Learner, theta: Theta, tasks: Any) -> Variant:
    """The named control of a learner: the (learner, theta, tasks) to evaluate in its place.

    Raises ConfigError for an unknown name, and where the control does not apply to this learner or these tasks.
    """
    check_control(name)
    source = source_of(tasks)
    with seeds.seeded(0, "control"):  # new weights are always the same, and the caller's random state is untouched
        if why := hindrance(name, source):
            raise ConfigError(f"the control {name} cannot be run on these tasks: {why}.")
        return CONTROLS[name].make(learner, theta, source)


def check_control(name: str) -> None:
    """Raise ConfigError for a name that is not in CONTROLS."""
    if name not in CONTROLS:
        raise ConfigError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}.{suggest(name, CONTROLS)}")


def available(learner: Learner, tasks: Any) -> list[str]:
    """The names of the controls that make sense for this learner and these tasks, and can be run."""
    return chosen(learner, tasks, None)[0]


def chosen(learner: Learner, tasks: Any, names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The controls to run: those named, or None for all that make sense. Of the latter also why others cannot be run.

    Raises ConfigError for an unknown name.
    """
    if names is not None:
        for name in names:
            check_control(name)
        return list(names), {}
    source = source_of(tasks)
    suited = [name for name, one in CONTROLS.items() if one.suits(learner, source)]
    hindered = {name: why for name in suited if (why := hindrance(name, source))}
    return [name for name in suited if name not in hindered], hindered


def hindrance(name: str, source: Source) -> str | None:
    """Why a control cannot be run on the inputs or answers of these tasks; None if it can."""
    needs = CONTROLS[name].needs
    if needs is None:
        return None
    return "what their examples are depends on who acts" if source.on_policy else needs(_shown(source), source.ways)


def _shown(source: Source) -> Batch:
    """The support set of some task."""
    return unstack(source.sample(1, seeds.generator(0, "probe")))[0].support


@dataclass(frozen=True)
class Control:
    """A control: how its variant of a learner is made, for which learners and tasks that makes sense, what it needs.

    `suits` says whether it would tell anything of this learner on tasks of this kind. `needs` looks at a support set
    and the tasks' ways, and gives the reason why the control cannot be computed from these, or None.
    """

    make: Callable[[Learner, Theta, Source], Variant]
    suits: Callable[[Learner, Source], bool]
    needs: Callable[[Batch, int | None], str | None] | None = None
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
    fresh, example = rerandomised(model), _shown(tasks)
    with torch.no_grad():
        output = call(fresh, {}, example.x)
    if example.y.dim() > 1 and (output.shape == example.y.shape or takes_classes(loss)):
        return fresh
    width, wanted = output.flatten(1).shape[1], tasks.ways or example.y.shape[-1]
    return fresh if output.shape[1:] == (wanted,) else Headed(fresh, nn.Linear(width, wanted))


def rerandomised(model: nn.Module) -> nn.Module:
    """A copy of the model with the weights of every layer initialised again."""
    fresh = copy.deepcopy(model)
    for layer in reversed(list(fresh.modules())):  # a layer that sets its own parts anew comes after them
        reset = getattr(
            layer, "reset_parameters", getattr(layer, "_reset_parameters", None)
        )  # attention has the latter
        if callable(reset):
            reset()
    return fresh


def untrained(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """The same learner with the theta that its training began with: what its network and adaptation do by themselves.

    Raises ConfigError for a learner that has no meta-parameters.
    """
    start = {name: value.to(theta[name]) for name, value in learner.init().items()}
    if not start:
        raise ConfigError(f"{type(learner).__name__} has no meta-parameters: it is untrained as it is.")
    return learner, start, tasks


def tf_idf_centroid(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """The class mean of TF-IDF at the smallest angle. Raises ConfigError for tasks that are not of hashed texts."""
    ways, buckets = _of_texts("tf_idf_centroid", tasks)
    return TfIdfCentroid(ways, buckets), _idf(learner, buckets), tasks


def tf_idf_regression(learner: Learner, theta: Theta, tasks: Source) -> Variant:
    """Softmax regression on TF-IDF. Raises ConfigError for tasks that are not of hashed texts."""
    ways, buckets = _of_texts("tf_idf_regression", tasks)
    return TfIdfRegression(ways, buckets), _idf(learner, buckets), tasks


def _of_texts(name: str, tasks: Source) -> tuple[int, int]:
    """Ways and buckets of tasks of hashed texts."""
    if not _texts(tasks) or tasks.ways is None:
        raise ConfigError(f"{name} is a control for the hashed texts of qs.tasks.from_text; these tasks are others.")
    return tasks.ways, tasks.preprocess["buckets"]


def _idf(learner: Learner, buckets: int) -> Theta:
    """The inverse document frequencies of the training texts, where the learner's network was given them."""
    layers = (layer for network in networks(learner).values() for layer in network.modules())
    known = (layer.idf for layer in layers if isinstance(layer, TextEncoder) and len(layer.idf) == buckets)
    return next(({IDF: idf} for idf in known if idf.any()), {})


# --- for which learners and tasks ------------------------------------------------------------------------------------


def _texts(tasks: Source) -> bool:
    """Whether the inputs are texts as hashed subwords. Controls of the raw input are replaced by those on TF-IDF."""
    return "buckets" in tasks.preprocess


def _raw_classes(learner: Learner, tasks: Source) -> bool:
    return tasks.ways is not None and not _texts(tasks)


def _text_classes(learner: Learner, tasks: Source) -> bool:
    return tasks.ways is not None and _texts(tasks)


def _one_target(shown: Batch, ways: int | None) -> str | None:
    """What is needed: the values, the classes of the positions, or one class of a known number, of a single target."""
    if not isinstance(shown.y, Tensor):
        return "the answers are several targets"
    unknown = are_classes(shown.y) and not ways
    return "the task source does not declare how many classes there are, `ways`" if unknown else None


def _one_answer(shown: Batch, ways: int | None) -> str | None:
    """What is needed: one class, of a known number of them, or the values of one target for each example."""
    several = isinstance(shown.y, Tensor) and not (shown.y.is_floating_point() or are_classes(shown.y))
    return "an example has several classes" if several else _one_target(shown, ways)


def _numbers(shown: Batch, ways: int | None) -> str | None:
    """What is needed: inputs of which a mean and a sum mean something, and one answer for each example."""
    if not all(t.is_floating_point() for t in trees.tensors(shown.x)):
        return "the inputs hold whole numbers, such as tokens or categories, which have no mean"
    return _one_answer(shown, ways)


def _reads_values(learner: Learner, tasks: Source) -> bool:
    """Whether no classes are declared, and the loss says what an output means: a logit, or the value itself."""
    loss = setting(learner, "loss")
    known = loss is None or takes_classes(loss) or function_of(loss) in OF_VALUES or labelled(loss) is not None
    return tasks.ways is None and known


def _can_be_probed(learner: Learner, tasks: Source) -> bool:
    return not _texts(tasks) and (bool(tasks.ways) or _reads_values(learner, tasks))


CONTROLS: dict[str, Control] = {
    "zero_steps": Control(zero_steps, lambda learner, tasks: takes(learner, "steps")),
    "shuffled_labels": Control(shuffled_labels, lambda learner, tasks: True),
    "untrained": Control(untrained, lambda learner, tasks: bool(learner.init())),
    "nearest_centroid": Control(nearest_centroid, _raw_classes, _numbers),
    "tf_idf_centroid": Control(tf_idf_centroid, _text_classes),
    "support_mean": Control(support_mean, _reads_values, _one_answer),
    "linear_probe": Control(linear_probe, _can_be_probed, _numbers),
    "tf_idf_regression": Control(tf_idf_regression, _text_classes),
    "nil": Control(nil, lambda learner, tasks: tasks.ways is not None and _has_head(learner), _one_answer),
    "from_scratch": Control(from_scratch, lambda learner, tasks: bool(networks(learner)), _one_target, dear=True),
}
