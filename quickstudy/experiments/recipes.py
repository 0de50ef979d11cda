"""Builds task sources, networks and learners that fit together, from the names and numbers of a command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from quickstudy import nn as networks
from quickstudy import tasks as sources
from quickstudy.base import seeds
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError, QuickstudyError, suggest
from quickstudy.experiments.baselines import per_task, pooled
from quickstudy.learner import Episode, Learner, structural_fields
from quickstudy.learners import LEARNERS
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.metric.protonet import ProtoNet
from quickstudy.learners.reference import LinearProbe
from quickstudy.nn import NETWORKS
from quickstudy.nn.model import call
from quickstudy.tasks.source import Source, source_of
from quickstudy.trained.trained import Trained

# Defaults for each kind of task: sizes of an episode and the outer loop here, and the inner loop of each learner in
# FIELDS. Images: the settings of MAML and ProtoNet on Omniglot, or those that did best on validation classes in short
# trainings there. Sinusoids: those of MAML (Finn 2017, section 5.1). Tables: those with which MAML did best on
# validation schools, students and chickens.
DEFAULTS: dict[str, dict[str, Any]] = {
    "images": {"ways": 5, "shots": 1, "queries": 15, "meta_batch": 16, "iterations": 2000},
    "text": {"ways": 5, "shots": 1, "queries": 15, "meta_batch": 4, "iterations": 500, "hidden": (256,)},
    "table": {"ways": None, "shots": 10, "queries": 10, "meta_batch": 16, "iterations": 2000},
    "sinusoid": {"ways": None, "shots": 10, "queries": 10, "meta_batch": 25, "iterations": 10000},
}
# 4 tasks per iteration, because an iteration on 16 tasks of these takes two seconds of one core.
DEFAULTS |= {name: DEFAULTS["images"] | {"meta_batch": 4} for name in ("cifar_fs", "fc100")}
# Networks for images, and the options of each.
IMAGE_NETWORKS = {
    "conv4": ("filters", "norm", "downsample", "maps"),
    "resnet12": ("filters", "norm", "dropblock", "maps"),
    "pixels": (),
}
FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("images", "boil"): {"lr": 0.1},
    ("images", "imaml"): {"lr": 0.5, "steps": 8, "lam": 0.1},
    ("images", "cavia"): {"lr": 30.0},
    **{("table", name): {"lr": 0.05} for name in ("maml", "anil", "boil", "metasgd", "metacurvature")},
    ("table", "reptile"): {"lr": 0.01, "steps": 10, "batch": 0, "rule": "sgd"},
    ("table", "cavia"): {"lr": 1.0, "context": 4, "conditioning": "shift"},
    ("table", "finetune"): {"lr": 0.01, "steps": 10, "fit": "all"},
    ("sinusoid", "maml"): {"lr": 0.01, "steps": 1},
    ("sinusoid", "reptile"): {"lr": 0.01, "steps": 10, "batch": 0, "rule": "sgd"},
    ("sinusoid", "anil"): {"lr": 0.01, "steps": 1},
    ("sinusoid", "boil"): {"lr": 0.01, "steps": 1},
    ("sinusoid", "metasgd"): {"lr": 0.01, "steps": 1},
    ("sinusoid", "mamlplusplus"): {"lr": 0.001, "steps": 5, "derivative_order": 0.0},
    ("sinusoid", "imaml"): {"lr": 0.005, "steps": 10, "lam": 10.0, "cg_steps": 10},
    ("sinusoid", "metacurvature"): {"lr": 0.01, "steps": 1},
    ("sinusoid", "cavia"): {"lr": 1.0, "steps": 1, "context": 4, "conditioning": "shift"},
    ("sinusoid", "r2d2"): {"lam": 0.1, "scale": 1.0},
    ("sinusoid", "cnp"): {"y_scale": 2.0},
    ("sinusoid", "anp"): {"y_scale": 2.0},
    ("sinusoid", "finetune"): {"lr": 0.01, "steps": 10, "fit": "all"},
}


def find_learner(name: str) -> tuple[str, type[Learner]]:
    """The command-line name and the class of a learner; case, '-' and '_' in `name` do not matter.

    Raises ConfigError where there is no such learner.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    if plain not in LEARNERS:
        raise ConfigError(f"unknown learner {name!r}; there are {', '.join(LEARNERS)}.{suggest(plain, LEARNERS)}")
    return plain, LEARNERS[plain]


def plain_fields(cls: type[Learner]) -> list[dataclasses.Field]:
    """The learner's fields that a command line can set: those that do not follow from the tasks."""
    structural = structural_fields(cls)
    return [field for field in dataclasses.fields(cls) if field.name not in structural]  # type: ignore[arg-type]


class Making(NamedTuple):
    """A learner in the making: what its structural fields follow from."""

    cls: type[Learner]
    source: Source
    fields: Mapping[str, Any]  # its plain fields, with their defaults
    network: Mapping[str, Any]  # options of `build_network`
    made: dict[str, Any]  # its structural fields so far: role -> value

    @property
    def features(self) -> tuple[int, ...]:
        """The shape of its encoder's output for one input."""
        return shape_of(next(self.made[role] for role in ("encoder", "map encoder") if role in self.made), self.source)


def _encoder(making: Making, maps: bool) -> nn.Module:
    return build_network(making.source, None, {"downsample": "pool", "maps": maps, **making.network})


def _relation(making: Making) -> nn.Module:
    sizes = {name: making.network[name] for name in ("filters", "norm") if name in making.network}
    return networks.relation(making.features, **sizes)


def _network(making: Making) -> nn.Module:
    source = making.source if making.cls.episodic else making.source.pooled()
    return build_network(making.source, source.ways or answer_width(making.source), dict(making.network))


# How a field that follows from the tasks is made, by its role; the first are made first.
ROLES: dict[str, Callable[[Making], Any]] = {
    "loss": lambda making: F.cross_entropy if making.source.ways else F.mse_loss,
    "ways": lambda making: making.source.ways,
    "encoder": lambda making: _encoder(making, maps=False),
    "map encoder": lambda making: _encoder(making, maps=True),
    "outputs": lambda making: 1 if making.source.ways else answer_width(making.source),
    "width": lambda making: making.features[-1],
    "length": lambda making: positions(making.source, making.fields.get("objective", "query")),
    "relation": _relation,
    "network": _network,
}


def build_learner(cls: type[Learner], tasks: Any, fields: Mapping[str, Any], network: Mapping[str, Any]) -> Learner:
    """A learner of class `cls` for these tasks. Its network fits their inputs and answers, and its loss their kind.

    `fields` are some of the learner's plain fields, and `network` the options of `build_network`. Raises ConfigError
    where the learner is for classification and the tasks are regression.
    """
    source, structural = source_of(tasks), structural_fields(cls)
    if source.ways is None and not {"loss", "outputs"} & set(structural.values()):
        raise ConfigError(
            f"{cls.__name__} is for classification; these tasks ask for real numbers. Try maml or finetune."
        )
    plain = {field.name: field.default for field in plain_fields(cls)} | dict(fields)
    making = Making(cls, source, plain, network, {})
    for role, make in ROLES.items():
        if role in structural.values():
            making.made[role] = make(making)
    made = {name: making.made[role] for name, role in structural.items() if role in making.made}
    return cls(**made, **fields)


def shape_of(encoder: nn.Module, tasks: Any) -> tuple[int, ...]:
    """The shape of the encoder's output for one input of these tasks."""
    with torch.no_grad():
        return tuple(call(encoder, {}, one_episode(tasks).support.x).shape[1:])


def one_episode(tasks: Any) -> Episode:
    """One training episode, whose tensors show the shapes of the tasks."""
    return unstack(tasks.sample(1, seeds.generator(0, "width")))[0]


def answer_width(tasks: Any) -> int:
    """How many numbers one answer has in these regression tasks."""
    return one_episode(tasks).support.y.shape[-1]


def positions(tasks: Any, objective: str) -> int:
    """The length of the longest sequence in training.

    For the objective 'stream' these are all examples of an episode, else the support set and one query.
    """
    support, query = one_episode(tasks)
    return len(support.y) + (len(query.y) if objective == "stream" else 1)


def build_network(tasks: Any, outputs: int | None, options: dict[str, Any]) -> nn.Module:
    """The network for these tasks: for images the one named by the option `network` (conv4 by default), for rows of
    numbers an mlp, for hashed texts the text network. It is an encoder without a head where `outputs` is None.
    """
    preprocess = source_of(tasks).preprocess
    if "buckets" in preprocess:  # hashed texts
        model = networks.text(outputs, buckets=preprocess["buckets"], words=preprocess["words"])
        model.encoder.set_idf(source_of(tasks).tasks.examples)  # type: ignore[operator, union-attr]
        return model
    shape = tuple(one_episode(tasks).support.x.shape[1:])
    if len(shape) != 3:
        hidden = options.get("hidden")
        return networks.mlp(math.prod(shape), outputs, hidden=(40, 40) if hidden is None else tuple(hidden))
    name = options.get("network") or "conv4"
    chosen = {k: options[k] for k in IMAGE_NETWORKS[name] if options.get(k) is not None}
    sizes = {"size": shape[-1]} if name == "conv4" else {}
    return NETWORKS[name](channels=shape[0], classes=outputs, **sizes, **chosen)


def network_options(cls: type[Learner], kind: str, network: str) -> set[str]:
    """The options of `build_network` that a learner's networks have; `kind` is what the tasks are read as."""
    roles = set(structural_fields(cls).values())
    if not roles & {"network", "encoder", "map encoder"}:
        return set()
    if kind != "images":
        return set() if kind == "hashed texts" else {"hidden"}
    relation = {"filters", "norm"} if "relation" in roles else set()
    return {"network", *IMAGE_NETWORKS[network], *relation} - {"maps"}


def builders(
    learners: Mapping[str, type[Learner]], kind: str, tasks: Any, network: dict[str, Any]
) -> dict[str, Callable[[], Learner]]:
    """For each learner name, a function that builds the learner with new weights.

    Fine-tuning is added where it fits these tasks. Raises ConfigError where one of `learners` does not fit them.
    """

    def builder(name: str, cls: type[Learner]) -> Callable[[], Learner]:
        fields = FIELDS.get((kind, name), {})
        return lambda: build_learner(cls, tasks, fields, network)

    known = {name: builder(name, cls) for name, cls in learners.items()}
    for build in known.values():
        build()  # so that an unsuitable learner is refused now rather than after others were trained
    with suppress(QuickstudyError):  # it does not fit all tasks
        fine_tuning = builder("finetune", LEARNERS["finetune"])
        fine_tuning()
        known.setdefault("finetune", fine_tuning)
    return known


def baselines(train: Any, test: Any) -> dict[str, Trained]:
    """Baselines without meta-training for such tasks, by name; with scikit-learn's models where it is installed.

    `train` fits the pooled models; `test` has the tasks that all of them will be tested on.
    """
    if "buckets" in source_of(train).preprocess:  # texts, as hashed subwords
        return _on_texts(train, test)
    ways = source_of(test).ways
    untrained: dict[str, Trained] = {"linear-probe": Trained(LinearProbe(ways), {})}
    if ways:
        untrained["nearest-centroid"] = Trained(NearestCentroid(ways), {})
    return untrained | (_on_tables(train, test) if isinstance(train, sources.GroupTasks) else {})


def _on_texts(train: Any, test: Any) -> dict[str, Trained]:
    """Class means and logistic regression on TF-IDF, computed by the untrained text encoder's hashed sketch alone."""
    tf_idf = build_network(train, None, {})
    with torch.no_grad():
        tf_idf.encoder.angle.zero_()  # type: ignore[operator, union-attr]
    means = ProtoNet(tf_idf, ways=test.ways)
    untrained = {"tf-idf-centroid": Trained(means, means.init())}
    with suppress(ImportError):
        from sklearn.linear_model import LogisticRegression

        linear = LogisticRegression(C=10.0, max_iter=500)
        untrained["tf-idf-logistic-regression"] = per_task(linear, test, encoder=tf_idf)
    return untrained


def _on_tables(train: sources.GroupTasks, test: Any) -> dict[str, Trained]:
    """A linear model and boosted trees, fitted on each task alone, and pooled over all training rows.

    For regression the pooled models also get a level for each task.
    """
    try:
        from sklearn import ensemble, linear_model
    except ImportError:
        return {}
    few: dict[str, Any] = {"n_estimators": 50, "random_state": 0}
    if test.ways:
        line: Any = linear_model.LogisticRegression(max_iter=1000)
        trees: Any = ensemble.GradientBoostingClassifier(**few)
        forest: Any = ensemble.HistGradientBoostingClassifier(random_state=0)
    else:
        line = linear_model.RidgeCV(alphas=(0.01, 0.1, 1.0, 10.0, 100.0))
        trees = ensemble.GradientBoostingRegressor(**few)
        forest = ensemble.HistGradientBoostingRegressor(random_state=0)
    name, level = ("logistic-regression", "") if test.ways else ("ridge", "-and-level")
    fitted = {name: per_task(line, test), "gradient-boosting": per_task(trees, test)}
    fitted |= {f"pooled-{name}{level}": pooled(line, train, offset=bool(level))}
    return fitted | {f"pooled-boosting{level}": pooled(forest, train, offset=bool(level))}
