"""One suite over every learner. A new learner adds a row to CASES and nothing else here."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import (
    Mixed,
    WithInputs,
    assert_close,
    by_name,
    clusters,
    in_order,
    map_tasks,
    meta_gradient,
    random_episodes,
    smooth_conv,
    snapshot,
    tensors_of,
    with_inputs,
)
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import seeds, trees
from quickstudy.engine import fitting, mapping
from quickstudy.episodes import examples, joined
from quickstudy.errors import QuickstudyError
from quickstudy.learner import Batch, Episode, Learner, Theta, demand, networks
from quickstudy.learners.reference import NIL, LinearProbe, SupportMean

pytestmark = pytest.mark.usefixtures("double")

WAYS, POOL = 3, 6  # classes in a task, classes in the pool it is drawn from
VECTOR, IMAGE, NUMBER = (4,), (1, 6, 6), (1,)  # shapes of one input


@dataclass(frozen=True)
class Case:
    """A row: one learner in one use, with what it declares about itself.

    The networks are tiny and smooth, so that finite differences are exact enough.
    """

    learner: str  # its name in LEARNERS
    use: str
    build: Callable[[], Learner]
    shape: tuple[int, ...] = VECTOR  # of one input
    regression: bool = False
    transductive: bool = False  # queries are normalised together
    exact: bool = True  # the meta-gradient is the derivative of the meta-loss (first-order methods: no)
    head: str | tuple[str, ...] | None = None  # theta entries with this prefix have a row per class of the task
    columns: tuple[str, int] | None = None  # matrices with this prefix read class k in column number + k
    unused: frozenset[str] = frozenset()  # theta entries whose meta-gradient is zero by design
    outer: float = 1e-2  # Adam's learning rate in the training test
    inputs: Callable[[Tensor], Any] = lambda x: x  # how an input is given: as it is, by names or in order
    decides: bool = False  # it looks at a number that it computed, to warn or to stop: no program can be recorded

    def __str__(self) -> str:
        return f"{self.learner}-{self.use}"

    def episodes(self, tasks: int = 3, queries: int = 2, seed: int = 0) -> Episode:
        ways = None if self.regression else WAYS
        return with_inputs(random_episodes(tasks, self.shape, ways, queries=queries, seed=seed), self.inputs)

    def episode(self, queries: int = 2) -> Episode:
        return mapping.unstack(self.episodes(1, queries))[0]

    def source(self) -> Any:
        source = qs.tasks.sinusoid(shots=5, queries=5) if self.regression else clusters(self.shape, POOL)
        return source if self.inputs is Case.inputs else WithInputs(source, self.inputs)


def vector_net(outputs: int | None) -> nn.Module:
    return qs.nn.mlp(4, outputs, hidden=(5,), activation="tanh")


def number_net(outputs: int | None = 1) -> nn.Module:
    return qs.nn.mlp(1, outputs, hidden=(6,), activation="tanh")


def maml(model: Callable[[], nn.Module], **fields: Any) -> Callable[[], Learner]:
    return lambda: qs.MAML(model(), **{"lr": 0.3, "steps": 2} | fields)


def gradient(cls: type[Learner], model: Callable[[], nn.Module], **fields: Any) -> Callable[[], Learner]:
    return lambda: cls(model(), **{"lr": 0.3, "steps": 2} | fields)


def protonet(model: Callable[[], nn.Module]) -> Callable[[], Learner]:
    return lambda: qs.ProtoNet(model(), ways=WAYS)


def metric(cls: type[Learner], model: Callable[[], nn.Module], **fields: Any) -> Callable[[], Learner]:
    return lambda: cls(model(), **{"ways": WAYS} | fields)


def finetune(model: Callable[[], nn.Module], **fields: Any) -> Callable[[], Learner]:
    return lambda: qs.FineTune(model(), **{"ways": WAYS, "lr": 0.3, "steps": 3} | fields)


def leo(model: Callable[[], nn.Module], width: int, **fields: Any) -> Callable[[], Learner]:
    sizes = {"ways": WAYS, "latent": 3, "lr": 0.5, "steps": 2, "finetune_lr": 0.3, "finetune_steps": 2}
    weights = {"kl": 0.1, "orthogonality": 0.1, "sample": False}  # a drawn loss has no other to agree with
    return lambda: qs.LEO(model(), width, **sizes | weights | fields)


def metarnn(model: Callable[[], nn.Module], width: int, **fields: Any) -> Callable[[], Learner]:
    # A drawn order has no other to agree with.
    return lambda: qs.MetaRNN(model(), width, **{"ways": WAYS, "units": 4, "shuffle": False} | fields)


def snail(model: Callable[[], nn.Module], width: int, **fields: Any) -> Callable[[], Learner]:
    small = {"ways": WAYS, "causal_filters": 4, "length": 4, "shuffle": False}
    return lambda: qs.SNAIL(model(), width, **small | fields)


def mann(model: Callable[[], nn.Module], width: int, **fields: Any) -> Callable[[], Learner]:
    small = {"ways": WAYS, "units": 4, "slots": 5, "slot": 3, "heads": 2, "shuffle": False}
    return lambda: qs.MANN(model(), width, **small | fields)


def relationnet(model: Callable[[], nn.Module], shape: tuple[int, ...], norm: str = "batch") -> Callable[[], Learner]:
    return lambda: qs.RelationNet(model(), qs.nn.relation(shape, filters=3, hidden=4, norm=norm), ways=WAYS)


def maps(norm: str) -> Callable[[], nn.Module]:
    return lambda: smooth_conv(norm, None)[:-1]  # without the flatten


def process(cls: type[Learner], model: Callable[[], nn.Module], width: int, **fields: Any) -> Callable[[], Learner]:
    sizes = {"ways": WAYS, "representation": 6, "depth": 2, "fewest": 99}  # a drawn loss has no other to agree with
    return lambda: cls(model(), width, **sizes | fields)


def cnaps(model: Callable[[], nn.Module], width: int, **fields: Any) -> Callable[[], Learner]:
    return lambda: qs.CNAPs(model(), width, **{"ways": WAYS, "embedding": 4, "penalty": 0.1} | fields)


def conv(norm: str, classes: int | None) -> Callable[[], nn.Module]:
    return functools.partial(smooth_conv, norm, classes)


regression: dict[str, Any] = {"shape": NUMBER, "regression": True}
squared: dict[str, Any] = {"loss": qs.mse_loss, "lr": 0.02}
plain: dict[str, Any] = {"batch": 0, "rule": "sgd"}
by_hand: dict[str, Any] = {"head": "head", "exact": False}  # hand in a gradient of their own
seen_together: dict[str, Any] = by_hand | {"transductive": True}
read: dict[str, Any] = {"head": ("rnn.head", "rnn.label")}
kept: dict[str, Any] = {"head": ("mann.head", "mann.label"), "outer": 3e-2}
slow: dict[str, Any] = squared | {"lr": 0.002}  # where the rate is learned too
numbers: dict[str, Any] = {"ways": None, "representation": 12, "y_scale": 3.0}
attentive: dict[str, Any] = {"heads": 2, "self_attention": 1}
solved: dict[str, Any] = {"steps": 5, "lam": 4.0, "lr": 0.2, "cg_steps": 60, "tolerance": 1e-8}
in_context: dict[str, Any] = {"context": True, "width": 5, "readings": 2}
solved_values: dict[str, Any] = {"ways": None, "lam": 0.5, "scale": 1.0}
stiff: dict[str, Any] = solved | {"lam": 10.0}
centred: dict[str, Any] = {"unused": frozenset({"simpleshot.mean"})}  # set by `finish`, not by descent

CASES = [
    Case("maml", "classification", maml(lambda: vector_net(WAYS)), head="head"),
    Case("maml", "regression", maml(number_net, **squared), **regression),
    Case("maml", "first order", maml(lambda: vector_net(WAYS), first_order=True), head="head", exact=False),
    Case("maml", "batch norm", maml(conv("batch", WAYS)), IMAGE, head="head", transductive=True),
    Case("maml", "support norm", maml(conv("support", WAYS)), IMAGE, head="head"),
    Case("maml", "layer norm", maml(conv("layer", WAYS)), IMAGE, head="head"),
    Case("maml", "momentum", maml(lambda: vector_net(WAYS), rule="momentum"), head="head"),
    Case("maml", "adam", maml(lambda: vector_net(WAYS), rule="adam", lr=0.05), head="head"),
    Case("maml", "inputs by name", maml(lambda: Mixed(WAYS)), head="head", inputs=by_name),
    Case("maml", "inputs in order", maml(lambda: Mixed(WAYS)), head="head", inputs=in_order),
    Case("reptile", "classification", gradient(qs.Reptile, lambda: vector_net(WAYS), **plain), **by_hand),
    Case("reptile", "adam", gradient(qs.Reptile, lambda: vector_net(WAYS), batch=0, lr=0.02), **by_hand),
    Case("reptile", "regression", gradient(qs.Reptile, number_net, **squared, **plain), exact=False, **regression),
    Case(
        "reptile", "batch norm", gradient(qs.Reptile, conv("batch", WAYS), **plain), IMAGE, transductive=True, **by_hand
    ),
    Case("reptile", "support norm", gradient(qs.Reptile, conv("support", WAYS), **plain), IMAGE, **by_hand),
    Case("anil", "classification", gradient(qs.ANIL, lambda: vector_net(WAYS)), head="head"),
    Case(
        "anil",
        "head and last layer",
        gradient(qs.ANIL, lambda: vector_net(WAYS), adapts="head.*,layer1.w*"),
        head="head",
    ),
    Case("anil", "regression", gradient(qs.ANIL, number_net, **squared), **regression),
    Case("anil", "batch norm", gradient(qs.ANIL, conv("batch", WAYS)), IMAGE, head="head", transductive=True),
    Case("anil", "support norm", gradient(qs.ANIL, conv("support", WAYS)), IMAGE, head="head"),
    Case("boil", "classification", gradient(qs.BOIL, lambda: vector_net(WAYS)), head="head"),
    Case("boil", "regression", gradient(qs.BOIL, number_net, **squared), **regression),
    Case("boil", "batch norm", gradient(qs.BOIL, conv("batch", WAYS)), IMAGE, head="head", transductive=True),
    Case("boil", "support norm", gradient(qs.BOIL, conv("support", WAYS)), IMAGE, head="head"),
    Case("metasgd", "classification", gradient(qs.MetaSGD, lambda: vector_net(WAYS)), head=("head", "rate.head")),
    Case("metasgd", "regression", gradient(qs.MetaSGD, number_net, **slow), outer=3e-3, **regression),
    Case(
        "metasgd",
        "batch norm",
        gradient(qs.MetaSGD, conv("batch", WAYS)),
        IMAGE,
        transductive=True,
        head=("head", "rate.head"),
    ),
    Case("metasgd", "support norm", gradient(qs.MetaSGD, conv("support", WAYS)), IMAGE, head=("head", "rate.head")),
    Case("mamlplusplus", "classification", gradient(qs.MAMLPlusPlus, lambda: vector_net(WAYS)), head="head"),
    Case("mamlplusplus", "regression", gradient(qs.MAMLPlusPlus, number_net, **slow), outer=3e-3, **regression),
    Case(
        "mamlplusplus",
        "batch norm",
        gradient(qs.MAMLPlusPlus, conv("batch", WAYS)),
        IMAGE,
        transductive=True,
        head="head",
    ),
    Case(
        "mamlplusplus",
        "support norm",
        gradient(qs.MAMLPlusPlus, conv("support", WAYS)),
        IMAGE,
        head="head",
    ),
    Case(
        "mamlplusplus",
        "averages of each step",
        gradient(qs.MAMLPlusPlus, conv("support", WAYS), per_step_statistics=True),
        IMAGE,
        head="head",
        exact=False,
    ),
    Case(
        "mamlplusplus",
        "one rate, one norm",
        gradient(qs.MAMLPlusPlus, conv("support", WAYS), per_step_norm=False, per_step_rates=False),
        IMAGE,
        head="head",
    ),
    Case(
        "mamlplusplus",
        "early in training",
        gradient(qs.MAMLPlusPlus, conv("layer", WAYS), progress=0.05, derivative_order=0.0),
        IMAGE,
        head="head",
    ),
    Case("imaml", "classification", gradient(qs.IMAML, lambda: vector_net(WAYS), **solved), **by_hand, decides=True),
    Case(
        "imaml",
        "regression",
        gradient(qs.IMAML, number_net, **solved | squared),
        exact=False,
        **regression,
        decides=True,
    ),
    Case(
        "imaml",
        "batch norm",
        gradient(qs.IMAML, conv("batch", WAYS), **stiff),
        IMAGE,
        outer=3e-2,
        **seen_together,
        decides=True,
    ),
    Case("imaml", "support norm", gradient(qs.IMAML, conv("support", WAYS), **stiff), IMAGE, **by_hand, decides=True),
    Case("metacurvature", "classification", gradient(qs.MetaCurvature, lambda: vector_net(WAYS)), head="head"),
    Case("metacurvature", "regression", gradient(qs.MetaCurvature, number_net, **squared), **regression),
    Case(
        "metacurvature",
        "batch norm",
        gradient(qs.MetaCurvature, conv("batch", WAYS)),
        IMAGE,
        head="head",
        transductive=True,
    ),
    Case("metacurvature", "support norm", gradient(qs.MetaCurvature, conv("support", WAYS)), IMAGE, head="head"),
    Case(
        "cavia",
        "classification",
        gradient(qs.CAVIA, lambda: vector_net(WAYS), context=6, lr=1.0),
        outer=3e-2,
        head="head",
    ),
    Case(
        "cavia",
        "regression",
        gradient(qs.CAVIA, number_net, loss=qs.mse_loss, lr=0.3, context=3, conditioning="shift"),
        **regression,
    ),
    Case(
        "cavia", "batch norm", gradient(qs.CAVIA, conv("batch", WAYS), context=6), IMAGE, transductive=True, head="head"
    ),
    Case("cavia", "support norm", gradient(qs.CAVIA, conv("support", WAYS), context=6), IMAGE, head="head"),
    Case("leo", "classification", leo(lambda: vector_net(None), 5)),
    Case("leo", "on features", leo(nn.Flatten, 4)),
    Case("leo", "first order", leo(lambda: vector_net(None), 5, first_order=True), exact=False),
    Case("leo", "batch norm", leo(conv("batch", None), 8), IMAGE, transductive=True),
    Case("leo", "support norm", leo(conv("support", None), 8), IMAGE),
    Case("metarnn", "classification", metarnn(lambda: vector_net(None), 5), outer=3e-2, **read),
    Case("metarnn", "gru, query", metarnn(nn.Flatten, 4, cell="gru", objective="query"), outer=3e-2, **read),
    Case("metarnn", "elman", metarnn(nn.Flatten, 4, cell="elman"), outer=3e-2, **read),
    Case(
        "metarnn",
        "regression",
        metarnn(lambda: qs.nn.mlp(1, hidden=(6,), activation="tanh"), 6, ways=None, loss=qs.mse_loss),
        outer=3e-2,
        **regression,
    ),
    Case("metarnn", "inputs by name", metarnn(lambda: Mixed(None), 5), outer=3e-2, inputs=by_name, **read),
    Case("metarnn", "layer norm", metarnn(conv("layer", None), 8), IMAGE, outer=3e-2, **read),
    Case("metarnn", "batch norm", metarnn(conv("batch", None), 8), IMAGE, transductive=True, outer=3e-2, **read),
    Case("metarnn", "support norm", metarnn(conv("support", None), 8, objective="query"), IMAGE, outer=3e-2, **read),
    Case("snail", "classification", snail(lambda: vector_net(None), 5), columns=("snail.", 5), head="snail.head"),
    Case("snail", "stream", snail(nn.Flatten, 4, objective="stream"), columns=("snail.", 4), head="snail.head"),
    Case("snail", "layer norm", snail(conv("layer", None), 8), IMAGE, columns=("snail.", 8), head="snail.head"),
    Case(
        "snail",
        "batch norm",
        snail(conv("batch", None), 8),
        IMAGE,
        transductive=True,
        columns=("snail.", 8),
        head="snail.head",
    ),
    Case(
        "snail",
        "support norm",
        snail(conv("support", None), 8),
        IMAGE,
        columns=("snail.", 8),
        head="snail.head",
        outer=3e-2,
    ),
    Case("mann", "classification", mann(lambda: vector_net(None), 5), **kept),
    Case("mann", "query", mann(nn.Flatten, 4, objective="query", heads=1, sharpness=5.0), **kept),
    Case("mann", "layer norm", mann(conv("layer", None), 8), IMAGE, **kept),
    Case("mann", "batch norm", mann(conv("batch", None), 8), IMAGE, transductive=True, **kept),
    Case("mann", "support norm", mann(conv("support", None), 8, objective="query"), IMAGE, **kept),
    Case("lstmmetalearner", "classification", gradient(qs.LSTMMetaLearner, lambda: vector_net(WAYS)), **by_hand),
    Case(
        "lstmmetalearner",
        "second order",
        gradient(qs.LSTMMetaLearner, lambda: vector_net(WAYS), first_order=False),
        head="head",
    ),
    Case(
        "lstmmetalearner", "regression", gradient(qs.LSTMMetaLearner, number_net, **squared), exact=False, **regression
    ),
    Case("lstmmetalearner", "batch norm", gradient(qs.LSTMMetaLearner, conv("batch", WAYS)), IMAGE, **seen_together),
    Case("lstmmetalearner", "support norm", gradient(qs.LSTMMetaLearner, conv("support", WAYS)), IMAGE, **by_hand),
    Case("cnaps", "classification", cnaps(lambda: vector_net(None), 5)),
    Case(
        "cnaps",
        "frozen",
        lambda: cnaps(lambda: vector_net(None), 5, freeze=True, set_encoder=vector_net(None))(),
    ),
    Case("cnaps", "batch norm", cnaps(conv("batch", None), 8), IMAGE, transductive=True),
    Case("cnaps", "support norm", cnaps(conv("support", None), 8), IMAGE),
    Case("cnp", "classification", process(qs.CNP, lambda: vector_net(None), 5), outer=3e-2),
    Case("cnp", "regression", process(qs.CNP, nn.Flatten, 1, **numbers), **regression),
    Case("cnp", "batch norm", process(qs.CNP, conv("batch", None), 8), IMAGE, transductive=True, outer=3e-2),
    Case("cnp", "support norm", process(qs.CNP, conv("support", None), 8), IMAGE, outer=3e-2),
    Case("anp", "classification", process(qs.ANP, lambda: vector_net(None), 5, **attentive), outer=3e-2),
    Case("anp", "regression", process(qs.ANP, nn.Flatten, 1, **numbers, **attentive), **regression),
    Case("anp", "batch norm", process(qs.ANP, conv("batch", None), 8, heads=2), IMAGE, transductive=True, outer=3e-2),
    Case("anp", "support norm", process(qs.ANP, conv("support", None), 8, heads=2), IMAGE, outer=3e-2),
    Case("protonet", "classification", protonet(lambda: vector_net(None))),
    Case("protonet", "inputs by name", protonet(lambda: Mixed(None)), inputs=by_name),
    Case("protonet", "batch norm", protonet(conv("batch", None)), IMAGE, transductive=True),
    Case("protonet", "support norm", protonet(conv("support", None)), IMAGE),
    Case("matchingnet", "classification", metric(qs.MatchingNet, lambda: vector_net(None))),
    Case("matchingnet", "fixed scale", metric(qs.MatchingNet, lambda: vector_net(None), scale=3.0, learn_scale=False)),
    Case("matchingnet", "context", metric(qs.MatchingNet, lambda: vector_net(None), **in_context)),
    Case("matchingnet", "batch norm", metric(qs.MatchingNet, conv("batch", None)), IMAGE, transductive=True),
    Case("matchingnet", "support norm", metric(qs.MatchingNet, conv("support", None)), IMAGE),
    Case("relationnet", "classification", relationnet(lambda: vector_net(None), (5,)), outer=3e-2),
    Case("relationnet", "batch norm", relationnet(maps("batch"), (2, 2, 2)), IMAGE, transductive=True),
    Case("relationnet", "support norm", relationnet(maps("support"), (2, 2, 2), norm="support"), IMAGE),
    Case("attentiveprotonet", "classification", metric(qs.AttentiveProtoNet, lambda: vector_net(None), width=5)),
    Case(
        "attentiveprotonet",
        "batch norm",
        metric(qs.AttentiveProtoNet, conv("batch", None), width=8, heads=2, contrast=0.0),
        IMAGE,
        transductive=True,
    ),
    Case(
        "attentiveprotonet",
        "support norm",
        metric(qs.AttentiveProtoNet, conv("support", None), width=8, heads=2),
        IMAGE,
    ),
    Case("r2d2", "classification", metric(qs.R2D2, lambda: vector_net(None))),
    Case(
        "r2d2", "regression", metric(qs.R2D2, lambda: number_net(None), loss=qs.mse_loss, **solved_values), **regression
    ),
    Case("r2d2", "batch norm", metric(qs.R2D2, conv("batch", None)), IMAGE, transductive=True),
    Case("r2d2", "support norm", metric(qs.R2D2, conv("support", None)), IMAGE),
    Case("metaoptnet", "classification", metric(qs.MetaOptNet, lambda: vector_net(None)), decides=True),
    Case("metaoptnet", "ridge", metric(qs.MetaOptNet, lambda: vector_net(None), head="ridge", lam=1.0)),
    Case(
        "metaoptnet", "batch norm", metric(qs.MetaOptNet, conv("batch", None)), IMAGE, transductive=True, decides=True
    ),
    Case("metaoptnet", "support norm", metric(qs.MetaOptNet, conv("support", None)), IMAGE, decides=True),
    Case("finetune", "classification, head", finetune(lambda: vector_net(POOL))),
    Case("finetune", "classification, all", finetune(lambda: vector_net(POOL), fit="all")),
    Case("finetune", "batch norm", finetune(conv("batch", POOL)), IMAGE, transductive=True),
    Case("finetune", "support norm", finetune(conv("support", POOL), fit="all"), IMAGE),
    Case("finetune", "regression", finetune(number_net, ways=None, **squared), **regression),
    Case("baselinepp", "classification", metric(qs.BaselinePP, lambda: vector_net(POOL), steps=3)),
    Case("baselinepp", "batch norm", metric(qs.BaselinePP, conv("batch", POOL), steps=3), IMAGE, transductive=True),
    Case("baselinepp", "support norm", metric(qs.BaselinePP, conv("support", POOL), steps=3), IMAGE),
    Case("simpleshot", "classification", metric(qs.SimpleShot, lambda: vector_net(POOL)), **centred),
    Case("simpleshot", "scaled", metric(qs.SimpleShot, lambda: vector_net(POOL), features="L2N")),
    Case("simpleshot", "as they are", metric(qs.SimpleShot, lambda: vector_net(POOL), features="UN")),
    Case("simpleshot", "batch norm", metric(qs.SimpleShot, conv("batch", POOL)), IMAGE, transductive=True, **centred),
    Case("simpleshot", "support norm", metric(qs.SimpleShot, conv("support", POOL)), IMAGE, **centred),
    Case("nearestcentroid", "classification", lambda: qs.NearestCentroid(ways=WAYS)),
    Case("nearestcentroid", "inputs by name", lambda: qs.NearestCentroid(ways=WAYS), inputs=by_name),
]


def rows(cases: Iterable[Case] = CASES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", list(cases), ids=str)


def answers(learner: Learner, theta: Theta, episode: Episode) -> Tensor:
    """Outputs at the queries after adapting to the support set."""
    with torch.no_grad():
        return learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x)


def one_by_one(x: Any) -> list[Any]:
    """Inputs as batches of one."""
    return [trees.rows(x, slice(i, i + 1)) for i in range(trees.size(x))]


def reordered(support: Batch) -> Batch:
    return examples(support, torch.randperm(trees.size(support.y)))


def trained_on(case: Case) -> qs.Trained:
    learner = case.build()
    return qs.Trained(learner, learner.init())


def adapted(case: Case) -> qs.Predictor:
    """A predictor for one generic task, whose classes have names."""
    x, y = case.episode().support
    return trained_on(case).adapt(x, y if case.regression else [f"class {k}" for k in y.tolist()])


# --- the list --------------------------------------------------------------------------------------------------------


def test_every_learner_has_a_row():
    assert {case.learner for case in CASES} == set(qs.LEARNERS)
    assert all(isinstance(case.build(), qs.LEARNERS[case.learner]) for case in CASES)


@pytest.mark.parametrize("name", qs.LEARNERS)
def test_a_learner_is_a_final_frozen_value_with_a_public_name(name):
    cls = qs.LEARNERS[name]
    assert cls.__bases__ == (Learner,)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert getattr(qs, cls.__name__) is cls and cls.__name__ in qs.__all__
    assert cls.__name__.lower() == name
    assert "Deviations" in (cls.__doc__ or "")


# --- four pure methods -----------------------------------------------------------------------------------------------


@rows()
def test_shapes(case):
    learner, episode = case.build(), case.episode(queries=4)
    theta = learner.init()
    assert all(isinstance(name, str) and isinstance(value, Tensor) for name, value in theta.items())
    phi = learner.adapt(theta, episode.support)
    assert all(torch.isfinite(t).all() for t in tensors_of(phi))
    output = learner.predict(theta, phi, episode.query.x)
    assert output.shape == (len(episode.query.y), 1 if case.regression else WAYS)
    assert output.dtype == torch.float64
    loss = learner.meta_loss(theta, episode)
    assert loss.shape == () and torch.isfinite(loss)


@rows(case for case in CASES if case.build().from_nothing)
def test_a_learner_that_needs_no_example_answers_without_one(case):
    """Whatever the encoder normalises with; several layers refuse an empty batch."""
    learner, (support, query) = case.build(), case.episode()
    theta = learner.init()
    output = answers(learner, theta, Episode(examples(support, slice(0)), query))
    assert output.shape == (len(query.y), 1 if case.regression else WAYS) and torch.isfinite(output).all()
    loss = learner.meta_loss(theta, Episode(examples(support, slice(0)), query))
    assert loss.shape == () and torch.isfinite(loss)


@rows()
def test_adapting_a_plain_theta_gives_a_plain_phi(case):
    """Where nothing asks for a gradient, none is recorded: a graph through every step would be kept alive with phi."""
    learner, episode = case.build(), case.episode()
    theta = learner.init()
    phi = learner.adapt(theta, episode.support)
    assert not any(t.requires_grad for t in tensors_of(phi))
    assert not learner.meta_loss(theta, episode).requires_grad


@rows()
def test_finishing_sets_statistics_of_the_examples_alone(case):
    """What no derivative moves; all other entries stay what training made them, and the theta given is not modified."""
    learner, episode = case.build(), case.episode()
    theta = {name: value + 1 for name, value in learner.init().items()}
    unchanged = snapshot(theta)
    finished = learner.finish(theta, [joined(episode), joined(case.episode(queries=5))])
    assert unchanged() and finished.keys() == theta.keys()
    handed_in = {name for name in theta if name.startswith(learner.handed_in)}
    assert {name for name in theta if not torch.equal(finished[name], theta[name])} == case.unused | handed_in


@rows()
def test_init_repeats_itself_and_hands_out_copies(case):
    learner = case.build()
    first = learner.init()
    unchanged = snapshot(*networks(learner).values())
    for value in first.values():
        value += 1
    assert unchanged()
    assert_close({name: value - 1 for name, value in first.items()}, learner.init(), 1e-12)


@rows()
def test_no_method_modifies_its_inputs_or_the_network(case):
    learner, episode = case.build(), case.episode()
    theta = learner.init()
    unchanged = snapshot(theta, episode, *networks(learner).values())
    phi = learner.adapt(theta, episode.support)
    same_phi = snapshot(phi)
    learner.predict(theta, phi, episode.query.x)
    learner.meta_loss(theta, episode)
    assert unchanged() and same_phi()


@rows()
@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_no_engine_modifies_its_inputs_or_the_network(case, name):
    learner, episodes = case.build(), case.episodes()
    theta = learner.init()
    unchanged = snapshot(theta, episodes, *networks(learner).values())
    meta_gradient(learner, theta, episodes, name)
    map_tasks(lambda episode: answers(learner, theta, episode), episodes, name)
    assert unchanged()
    assert all(not value.requires_grad and value.grad is None for value in theta.values())


@rows()
def test_repeating_a_call_repeats_its_bits(case):
    learner, episode = case.build(), case.episode()
    theta = learner.init()
    assert torch.equal(answers(learner, theta, episode), answers(learner, theta, episode))
    assert torch.equal(learner.meta_loss(theta, episode), learner.meta_loss(theta, episode))


# --- engines and gradients -------------------------------------------------------------------------------------------


@rows()
@pytest.mark.parametrize("name", ["threads", "vmap"])
def test_engines_agree_on_the_meta_gradient(case, name):
    learner, episodes = case.build(), case.episodes()
    theta = learner.init()
    loss, slope = meta_gradient(learner, theta, episodes, "loop")
    other_loss, other_slope = meta_gradient(learner, theta, episodes, name)
    assert_close(other_loss, loss, 1e-10)
    assert_close(other_slope, slope, 1e-10)


@rows()
def test_what_was_recorded_holds_for_other_tasks_and_another_theta(case):
    learner = case.build()
    theta, episodes = learner.init(), case.episodes()
    if case.decides:
        with pytest.raises(RuntimeError, match="decides on a tensor's values"):
            meta_gradient(learner, theta, episodes, "replay")
        return
    for seed in (0, 1):  # the second is computed by the program of the first
        episodes = case.episodes(seed=seed)
        (loss, slope), (other_loss, other_slope) = (
            meta_gradient(learner, theta, episodes, name) for name in ("loop", "replay")
        )
        assert_close(other_loss, loss, 1e-9)
        assert_close(other_slope, slope, 1e-9)
        theta = {name: value + 0.01 * torch.randn_like(value) for name, value in theta.items()}


@rows()
@pytest.mark.parametrize("name", ["threads", "vmap"])
def test_engines_agree_on_predictions(case, name):
    learner, episodes = case.build(), case.episodes()
    theta = learner.init()

    def both(episode: Episode) -> tuple[Tensor, Tensor]:
        return answers(learner, theta, episode), learner.meta_loss(theta, episode)

    for ours, loops in zip(map_tasks(both, episodes, name), map_tasks(both, episodes, "loop"), strict=True):
        assert_close(ours, loops, 1e-10)


@rows()
def test_every_entry_of_theta_matters(case):
    learner = case.build()
    slope = qs.meta_gradient(learner, learner.init(), case.episodes())[1]
    still = {name for name, value in slope.items() if not (value != 0).any()}
    assert still == case.unused


@rows(case for case in CASES if case.exact and case.learner != "nearestcentroid")
def test_the_meta_gradient_is_the_derivative_of_the_meta_loss(case):
    learner, episode = case.build(), case.episode()
    theta = learner.init()
    # Generic values: at ones and zeros (a fresh normalisation layer) an error of sign or order could hide.
    leaves = [(value + 0.1 * torch.randn_like(value)).requires_grad_() for value in theta.values()]

    def meta_loss(*values: Tensor) -> Tensor:
        return learner.meta_loss(dict(zip(theta, values, strict=True)), episode)

    large = case.shape == IMAGE or sum(value.numel() for value in leaves) > 500
    # Fast mode checks random projections, which is enough for the larger networks.
    assert torch.autograd.gradcheck(meta_loss, leaves, atol=1e-7, rtol=1e-5, fast_mode=large)


@rows()
def test_training_lowers_the_loss(case):
    learner, tasks = case.build(), case.source()
    start = learner.init()
    trained = qs.train(
        learner,
        tasks,
        iterations=40,
        meta_batch=4,
        engine="vmap",
        optimizer=lambda values: torch.optim.Adam(values, lr=case.outer),
        progress=False,
    )
    if not start:  # nothing to learn
        assert trained.theta == {}
        return
    held = tasks if learner.episodic or case.regression else tasks.pooled()
    episodes = held.sample(40, seeds.generator(1, "held"))
    before, after = (
        qs.map_tasks(lambda episode, at=theta: learner.meta_loss(at, episode), episodes)
        for theta in (start, trained.theta)
    )
    fall = before - after
    assert float(fall.mean()) > 3 * float(fall.std()) / len(fall) ** 0.5


# --- what an answer may depend on ------------------------------------------------------------------------------------


@rows()
def test_transduction_is_declared(case):
    """By the learner, or by a network that normalises by batch; the latter has another form."""
    learner = case.build()
    assert fitting.is_transductive(learner) == case.transductive
    assert learner.transductive == (case.transductive and fitting.normalisation_of(learner) != "batch")
    assert fitting.has_both_forms(learner) == (case.transductive and learner.inductive() is not None)
    assert learner.inductive() is None or not fitting.is_transductive(fitting.inductive(learner))


REFERENCES = {
    "SupportMean": (SupportMean, True),
    "LinearProbe": (lambda: LinearProbe(WAYS), False),
    "LinearProbe of values": (LinearProbe, True),
    "NIL": (lambda: NIL(vector_net(WAYS), WAYS), False),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_learners_of_controls_answer_each_query_by_itself(name):
    build, regression = REFERENCES[name]
    episode = mapping.unstack(random_episodes(1, VECTOR, None if regression else WAYS, queries=4))[0]
    learner, x = build(), episode.query.x
    phi = learner.adapt(learner.init(), episode.support)
    alone = torch.cat([learner.predict(learner.init(), phi, one) for one in one_by_one(x)])
    assert not learner.transductive
    assert_close(alone, learner.predict(learner.init(), phi, x), 1e-10)


@rows()
def test_an_answer_depends_on_the_other_queries_only_if_transductive(case):
    learner, episode = case.build(), case.episode(queries=4)
    theta, x = learner.init(), episode.query.x
    with torch.no_grad():
        phi = learner.adapt(theta, episode.support)
        together = learner.predict(theta, phi, x)
        alone = torch.cat([learner.predict(theta, phi, one) for one in one_by_one(x)])
    if case.transductive:
        assert float((together - alone).abs().max()) > 1e-3
    else:
        assert_close(alone, together, 1e-10)


@rows()
def test_a_predictor_answers_one_query_at_a_time_as_all_together(case):
    """Also for networks that normalise by batch: `adapt` switches them to the support set's statistics."""
    predictor, x = adapted(case), case.episode(queries=4).query.x
    with torch.no_grad():
        assert_close(torch.cat([predictor(one) for one in one_by_one(x)]), predictor(x), 1e-10)


@rows()
def test_the_order_of_the_support_set_matters_only_where_that_is_declared(case):
    learner, (support, query) = case.build(), case.episode()
    theta = learner.init()
    other, plain = (answers(learner, theta, Episode(s, query)) for s in (reordered(support), support))
    if learner.ordered:
        assert float((other - plain).abs().max()) > 1e-5
    else:
        assert_close(other, plain, 1e-9)


def offered(case: Case, method: str) -> bool:
    return getattr(qs.LEARNERS[case.learner], method) is not getattr(Learner, method)


@rows(case for case in CASES if offered(case, "stream"))
def test_a_stream_is_answered_as_example_by_example(case):
    """Row t of `stream` is predict(theta, adapt(theta, batch[:t]), x_t), from nothing read on."""
    learner, theta = case.build(), case.build().init()
    whole = joined(case.episode())
    rows = learner.stream(theta, whole)
    assert rows.shape == (len(whole.y), 1 if case.regression else WAYS)
    if fitting.normalisation_of(learner) in ("batch", "support"):  # statistics of another set
        return
    for t, x in enumerate(one_by_one(whole.x)):
        phi = learner.adapt(theta, examples(whole, slice(t)))
        assert_close(rows[t], learner.predict(theta, phi, x)[0], 1e-10)


@rows(case for case in CASES if case.build().fixed_ways and not case.regression)
def test_no_more_ways_than_in_training_where_theta_has_an_entry_for_each(case):
    learner, tasks = case.build(), case.source()
    fewer = qs.evaluate(qs.Trained(learner, learner.init()), tasks.replace(ways=2), episodes=3)
    assert fewer.protocol.ways == 2
    with pytest.raises(QuickstudyError, match="trained on 3 ways"):
        qs.evaluate(qs.Trained(learner, learner.init()), tasks.replace(ways=4), episodes=3)
    x, y = random_episodes(1, case.shape, 4).support
    with pytest.raises(QuickstudyError, match="trained on 3 ways"):
        qs.Trained(learner, learner.init()).adapt(case.inputs(x[0]), y[0])


@rows(case for case in CASES if offered(case, "embed"))
def test_a_task_embedding_depends_on_the_examples_and_not_on_their_order_or_the_names_of_classes(case):
    learner, support = case.build(), case.episode().support
    theta, p = learner.init(), torch.tensor([2, 0, 1])
    found = learner.embed(theta, support)
    assert found.dim() == 1 and torch.isfinite(found).all()
    shuffled = learner.embed(theta, reordered(support))
    if learner.ordered:
        assert float((shuffled - found).abs().max()) > 1e-6
    else:
        assert_close(shuffled, found, 1e-9)
    if not case.regression:
        renamed = with_classes_renamed(case, theta, p)
        assert_close(learner.embed(renamed, support._replace(y=p[support.y])), found, 1e-9)
    moved = trees.mapped(lambda t: t + 1 if t.is_floating_point() else t, support.x)
    assert float((learner.embed(theta, support._replace(x=moved)) - found).abs().max()) > 1e-6


@rows(case for case in CASES if offered(case, "embed"))
@pytest.mark.parametrize("name", ["threads", "vmap"])
def test_engines_agree_on_task_embeddings(case, name):
    learner, episodes = case.build(), case.episodes()
    theta = learner.init()
    ours, loops = (map_tasks(lambda e: learner.embed(theta, e.support), episodes, kind) for kind in (name, "loop"))
    assert_close(ours, loops, 1e-10)


@rows(case for case in CASES if not offered(case, "embed"))
def test_a_learner_without_a_task_embedding_says_so(case):
    learner = case.build()
    with pytest.raises(QuickstudyError, match="no vector of a task"):
        demand(learner, "embed")


MEASURING = [case for case in CASES if offered(case, "distance")]


@rows(MEASURING)
def test_a_distance_is_of_one_input_and_of_examples_in_any_order(case):
    learner, (support, query) = case.build(), case.episode(queries=4)
    theta, p = learner.init(), torch.tensor([2, 0, 1])
    found = learner.distance(theta, learner.adapt(theta, support), query.x)
    assert found.shape == (len(query.y),) and (found >= 0).all() and float(found.std()) > 1e-6
    mixed = reordered(support)
    shuffled = learner.adapt(theta, mixed._replace(y=p[mixed.y]))  # nor do names of classes matter
    if learner.ordered:
        assert float((learner.distance(theta, shuffled, query.x) - found).abs().max()) > 1e-6
    else:
        assert_close(learner.distance(theta, shuffled, query.x), found, 1e-9)
    predictor = adapted(case)
    alone = torch.cat([predictor.distance(one) for one in one_by_one(query.x)])
    assert_close(alone, predictor.distance(query.x), 1e-9)


@rows(MEASURING)
@pytest.mark.parametrize("name", ["threads", "vmap"])
def test_engines_agree_on_distances(case, name):
    learner, episodes = case.build(), case.episodes()
    theta = learner.init()

    def distance(episode: Episode) -> Tensor:
        return learner.distance(theta, learner.adapt(theta, episode.support), episode.query.x)

    assert_close(map_tasks(distance, episodes, name), map_tasks(distance, episodes, "loop"), 1e-9)


@rows(case for case in CASES if case not in MEASURING)
def test_a_learner_without_a_distance_says_so(case):
    with pytest.raises(QuickstudyError, match="no method `distance`"):
        demand(case.build(), "distance")


def with_classes_renamed(case: Case, theta: Theta, p: Tensor) -> Theta:
    """Theta for tasks whose class k is now called p(k).

    A learned head starts with a row per class, so the rows have to move along: that is part of the statement. So have
    the columns of matrices that read one-hot labels.
    """
    back = p.argsort()  # row k of the new head is row back[k] of the old one
    renamed = {n: v[back] if case.head is not None and n.startswith(case.head) else v for n, v in theta.items()}
    if case.columns:
        prefix, first = case.columns
        moved = {n: v.clone() for n, v in renamed.items() if n.startswith(prefix) and v.dim() == 2}
        for value in moved.values():
            value[:, first : first + WAYS] = value[:, first + back]
        renamed |= moved
    return renamed


@rows(case for case in CASES if not case.regression)
def test_renaming_the_classes_renames_the_answers(case):
    """Calling class k of the support set p(k) moves column k of the logits to p(k)."""
    learner, (support, query) = case.build(), case.episode()
    theta, p = learner.init(), torch.tensor([2, 0, 1])
    renamed = with_classes_renamed(case, theta, p)
    plain = answers(learner, theta, Episode(support, query))
    moved = answers(learner, renamed, Episode(support._replace(y=p[support.y]), query))
    assert_close(moved[:, p], plain, 1e-9)


# --- files and export ------------------------------------------------------------------------------------------------


def own_networks(case: Case) -> dict[str, nn.Module]:
    """Networks that a file cannot hold, built anew with other weights, as a user does before loading."""
    found = networks(case.build())
    return {key: net for key, net in found.items() if not hasattr(net, "architecture")}


@rows()
def test_trained_comes_back_from_its_file_bit_for_bit(case, tmp_path):
    trained, episode = trained_on(case), case.episode()
    trained.save(tmp_path / "learner.qs")
    again = qs.load(tmp_path / "learner.qs", **own_networks(case))
    assert isinstance(again, qs.Trained)
    assert again.theta.keys() == trained.theta.keys()
    assert all(torch.equal(again.theta[name], value) for name, value in trained.theta.items())
    assert torch.equal(answers(again.learner, again.theta, episode), answers(trained.learner, trained.theta, episode))
    for field in dataclasses.fields(trained.learner):  # type: ignore[arg-type]
        value = getattr(trained.learner, field.name)
        assert isinstance(value, nn.Module) or getattr(again.learner, field.name) == value


def test_a_loaded_theta_keeps_its_order(tmp_path):
    """An optimizer's state belongs to `list(theta.values())` by position."""
    trained = trained_on(CASES[0])
    trained.save(tmp_path / "learner.qs")
    assert list(qs.load(tmp_path / "learner.qs").theta) == list(trained.theta)  # type: ignore[union-attr]


def test_a_network_frozen_in_part_comes_back_frozen_in_part(tmp_path):
    """One of the library's own, which a file rebuilds without help."""
    learner = qs.MAML(vector_net(WAYS))
    learner.model.layer1.requires_grad_(False)
    trained, episode = qs.Trained(learner, learner.init()), CASES[0].episode()
    trained.save(tmp_path / "learner.qs")
    again = qs.load(tmp_path / "learner.qs")
    assert list(again.theta) == ["head.weight", "head.bias"] == list(again.learner.init())  # type: ignore[union-attr]
    assert torch.equal(answers(again.learner, again.theta, episode), answers(learner, trained.theta, episode))  # type: ignore[union-attr]


def test_loading_draws_nothing_from_the_callers_stream(tmp_path):
    trained_on(CASES[0]).save(tmp_path / "learner.qs")
    before = torch.get_rng_state()
    qs.load(tmp_path / "learner.qs")
    assert torch.equal(torch.get_rng_state(), before)


def test_pretraining_on_more_classes_than_outputs_is_refused():
    """Transfer learning needs an output per class of the pool, which is easily taken for the ways of a task."""
    learner = qs.FineTune(vector_net(WAYS), ways=WAYS)
    with pytest.raises(QuickstudyError, match="class"):
        qs.train(learner, clusters(VECTOR, POOL), iterations=2, progress=False)


@rows()
def test_a_predictor_comes_back_from_its_file_bit_for_bit(case, tmp_path):
    predictor, x = adapted(case), case.episode().query.x
    predictor.save(tmp_path / "predictor.qs")
    again = qs.load(tmp_path / "predictor.qs", **own_networks(case))
    assert isinstance(again, qs.Predictor)
    assert torch.equal(again(x), predictor(x)) and again.classes == predictor.classes
    if not case.regression:
        assert again.predict(x) == predictor.predict(x)
        assert torch.equal(again.predict_proba(x), predictor.predict_proba(x))


@rows()
def test_a_predictor_exports(case):
    predictor, x = adapted(case), case.episode().query.x
    exported = torch.export.export(predictor, (x,))
    assert_close(exported.module()(x), predictor(x), 1e-6)


@rows(case for case in CASES if case.use in ("classification", "regression", "support norm"))
def test_a_loaded_predictor_exports_before_its_first_use(case, tmp_path):
    """What a tracer sees first must not be kept for later calls."""
    predictor, x = adapted(case), case.episode().query.x
    predictor.save(tmp_path / "predictor.qs")
    again = qs.load(tmp_path / "predictor.qs", **own_networks(case))
    exported = torch.export.export(again, (x,))
    assert_close(exported.module()(x), predictor(x), 1e-6)
    assert torch.equal(again(x), predictor(x))


def test_the_table_names_each_row_once():
    names = [str(case) for case in CASES]
    assert all(a != b for a, b in itertools.combinations(names, 2))
