"""Several inputs and several targets, from training to files; and predictors that change, which make new ones."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import Mixed, WithInputs, assert_close, by_name, clusters, in_order
from torch import Tensor, nn
from torch.func import functional_call

import quickstudy as qs
from quickstudy.base import trees
from quickstudy.episodes import unstack
from quickstudy.errors import DataError, FileFormatError

LR, STEPS = 0.2, 2


class Two(nn.Module):
    """Class logits and a value, from numbers [n, 4] and kinds [n]."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.value = Mixed(None), nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, values: Tensor, kind: Tensor) -> dict[str, Tensor]:
        h = self.body(values, kind)
        return {"class": self.classes(h), "value": self.value(h)}


def loss(output: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output["class"], y["class"]) + F.mse_loss(output["value"], y["value"])


def examples(n: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=drawn)
    return by_name(x), {"class": torch.arange(n) % 3, "value": x.sum(1, keepdim=True)}


def source(tasks: int = 4) -> qs.tasks.ArrayTasks:
    made = []
    for i in range(tasks):
        (x, y), (xq, yq) = examples(6, 2 * i), examples(5, 2 * i + 1)
        made.append({"support": x, "support_labels": y, "query": xq, "query_labels": yq})
    return qs.tasks.from_arrays(made)


def maml() -> qs.MAML:
    torch.manual_seed(0)
    return qs.MAML(Two(), loss=loss, lr=LR, steps=STEPS)


def by_hand(model: nn.Module, episode: qs.Episode) -> tuple[Tensor, dict[str, Tensor]]:
    """The meta-loss and its gradient by plain autograd, without the library."""
    theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def loss_at(phi, batch):
        return loss(functional_call(model, phi, (), batch.x), batch.y)

    phi = theta
    for _ in range(STEPS):
        slopes = torch.autograd.grad(loss_at(phi, episode.support), list(phi.values()), create_graph=True)
        phi = {name: value - LR * g for (name, value), g in zip(phi.items(), slopes, strict=True)}
    total = loss_at(phi, episode.query)
    return total.detach(), dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))


def test_the_meta_gradient_of_two_targets_is_that_of_plain_autograd(double):
    learner, episodes = maml(), source().sample(3, torch.Generator().manual_seed(0))
    assert episodes.query.y["class"].dtype == torch.int64
    total, slope = qs.meta_gradient(learner, learner.init(), episodes, "loop")
    ones = [by_hand(learner.model, one) for one in unstack(episodes)]
    assert_close(total, torch.stack([one for one, _ in ones]).mean(), 1e-10)
    for name in slope:
        assert_close(slope[name], torch.stack([g[name] for _, g in ones]).mean(0), 1e-10)


def test_two_targets_from_training_to_a_file_and_back(tmp_path):
    learner = maml()
    trained = qs.train(learner, source(), iterations=2, meta_batch=2, engine="loop", progress=False, out=tmp_path / "r")
    assert any(not torch.equal(trained.theta[name], value) for name, value in learner.init().items())
    (x, y), (asked, _) = examples(6, 20), examples(5, 21)
    predictor = trained.adapt(x, y)
    wanted = learner.predict(trained.theta, learner.adapt(trained.theta, qs.Batch(x, y)), asked)
    found = predictor.predict(asked)
    assert predictor.classes is None and found.keys() == {"class", "value"}
    assert all(torch.equal(found[name], wanted[name]) for name in found)

    assert isinstance(qs.load(tmp_path / "r", model=Two(), loss=loss), qs.Trained)
    predictor.save(tmp_path / "p.qs")
    loaded = qs.load(tmp_path / "p.qs", model=Two(), loss=loss)
    assert all(torch.equal(loaded.predict(asked)[name], found[name]) for name in found)
    more = examples(4, 22)
    grown, at_once = loaded.updated(*more), trained.adapt(*map(trees.joined, zip((x, y), more, strict=True)))
    assert_close(grown.predict(asked), at_once.predict(asked), 1e-6)
    assert_close(grown.without(range(6, 10)).predict(asked), found, 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y | {"value": y["value"][:4]}, r"x has 6 examples, but y\['value'\] has shape \(4, 1\)"),
        (lambda y: y | {"class": ["a"] * 6}, r"y\['class'\] holds \['a'\]; several targets are numbers"),
        (lambda y: y | {"value": y["value"] * torch.nan}, r"support answers \['value'\] hold NaN"),
    ],
)
def test_targets_that_do_not_fit_are_named(change, message):
    trained, (x, y) = qs.Trained(maml(), maml().init()), examples(6, 0)
    with pytest.raises(DataError, match=message):
        trained.adapt(x, change(y))


def test_inputs_that_do_not_fit_are_named():
    trained, (x, y) = qs.Trained(maml(), maml().init()), examples(6, 0)
    for wrong, message in [
        (x | {"values": x["values"] * torch.inf}, r"x \['values'\] holds NaN or infinity"),
        (x | {"kind": x["kind"][:5]}, r"\['kind'\] has 5 rows, \['values'\] has 6 rows"),
        (x | {"kind": [object()] * 6}, r"x\['kind'\] must be a tensor or an array of numbers"),
    ]:
        with pytest.raises(DataError, match=message):
            trained.adapt(wrong, y)


@pytest.mark.parametrize("inputs", [by_name, in_order], ids=["by name", "in order"])
def test_whole_numbers_keep_their_type_and_floats_are_as_precise_as_theta(inputs, double):
    learner = qs.ProtoNet(Mixed(None), ways=3)
    trained = qs.Trained(learner, learner.init())
    x = torch.randn(6, 4, dtype=torch.float32)
    arrays = trees.mapped(lambda t: t, inputs(x))
    as_numpy = (
        {n: t.numpy() for n, t in arrays.items()} if isinstance(arrays, dict) else tuple(t.numpy() for t in arrays)
    )
    predictor = trained.adapt(as_numpy, list("aabbcc"))
    assert {t.dtype for t in trees.tensors(predictor.support.x)} == {torch.float64, torch.int64}
    assert torch.equal(predictor.predict_proba(as_numpy), trained.adapt(arrays, list("aabbcc")).predict_proba(arrays))


class Named(NamedTuple):
    values: Tensor
    kind: Tensor


def test_a_named_tuple_of_the_users_own_comes_back_as_a_plain_one(tmp_path):
    """A file names no classes of the user's, and a model takes the arguments of both in order."""
    learner = qs.ProtoNet(Mixed(None), ways=2)
    trained = qs.Trained(learner, learner.init())
    x = Named(**by_name(torch.randn(4, 4)))
    predictor = trained.adapt(x, ["a", "b", "a", "b"])
    assert isinstance(predictor.support.x, Named)
    predictor.save(tmp_path / "p.qs")
    loaded = qs.load(tmp_path / "p.qs", encoder=Mixed(None))
    assert type(loaded.support.x) is tuple
    assert torch.equal(loaded.predict_proba(x), predictor.predict_proba(x))
    again = loaded.updated(tuple(x), ["a", "b", "a", "b"]).predict_proba(x)
    assert_close(again, predictor.predict_proba(x), 1e-6)


def test_tasks_of_unequal_sizes_train_on_nested_inputs():
    class Ragged:
        ways = 3

        def sample(self, n, generator=None):
            parts = [WithInputs(clusters(shots=1 + i % 2), by_name).sample(1, generator) for i in range(n)]
            return qs.episodes.concat(parts)

    assert isinstance(Ragged().sample(3), list)
    learner = qs.ProtoNet(Mixed(None), ways=3)
    for engine in ("loop", "vmap"):
        trained = qs.train(learner, Ragged(), iterations=2, meta_batch=3, engine=engine, progress=False)
        assert qs.evaluate(trained, Ragged(), episodes=4, engine=engine).protocol.ways == 3


def test_features_of_several_inputs():
    tasks = qs.tasks.from_arrays(
        [
            {"support": x, "support_labels": y["class"], "query": xq, "query_labels": yq["class"]}
            for (x, y), (xq, yq) in [(examples(6, i), examples(6, 10 + i)) for i in range(3)]
        ]
    )
    extractor = Mixed(7)
    found = qs.tasks.features(tasks, extractor, batch=5)
    with torch.no_grad():
        wanted = extractor(tasks.episodes.query.x["values"][1], tasks.episodes.query.x["kind"][1])
    assert_close(found.episodes.query.x[1], wanted, 1e-6)
    learner = qs.ProtoNet(nn.Linear(7, 2), ways=3)
    trained = qs.train(learner, found, iterations=1, meta_batch=2, progress=False, engine="loop")
    (x, y), at = examples(6, 30), learner.adapt
    predictor = trained.adapt(x, y["class"])
    z = extractor(**x).detach()
    output = learner.predict(trained.theta, at(trained.theta, qs.Batch(z, y["class"])), z)
    assert_close(predictor.predict_proba(x), output.softmax(1), 1e-5)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["with a theta", "without"])
def test_features_are_as_precise_as_in_training_whatever_the_inputs_and_the_extractor(name, precision):
    """The first of the inputs holds whole numbers, and tells nothing of the precision."""
    learner = {"with a theta": qs.R2D2(nn.Linear(7, 4)), "without": qs.NearestCentroid()}[name]
    extractor = Mixed(7).to(precision)
    trained = qs.Trained(learner, learner.init(), extractor=extractor)
    x, y = examples(6, 0)
    predictor = trained.adapt(dict(sorted(x.items())), y["class"])
    assert next(iter(predictor.support.x)) == "kind" and predictor(x).dtype == torch.float32
    z = extractor(x["values"].to(precision), x["kind"]).detach().float()
    wanted = qs.Trained(learner, trained.theta).adapt(z, y["class"]).predict_proba(z)
    assert_close(predictor.predict_proba(x), wanted, 1e-5)


# --- a predictor that changes makes a new one ------------------------------------------------------------------------


def plain() -> tuple[qs.Trained, Tensor, list[str]]:
    torch.manual_seed(0)
    learner = qs.ProtoNet(qs.nn.mlp(4, None, hidden=(6,)), ways=3)
    return qs.Trained(learner, learner.init()), torch.randn(8, 4), list("abcabdca")


def nested() -> tuple[qs.Trained, dict[str, Tensor], list[str]]:
    _, x, y = plain()
    learner = qs.ProtoNet(Mixed(None), ways=3)
    return qs.Trained(learner, learner.init()), by_name(x), y


@pytest.mark.parametrize("make", [plain, nested])
def test_updated_answers_as_one_that_saw_all_at_once_and_leaves_the_old_one(make):
    trained, x, y = make()
    first = trained.adapt(trees.rows(x, slice(4)), y[:4])
    before = first.predict_proba(x)
    second = first.updated(trees.rows(x, slice(4, 8)), y[4:])
    assert second is not first and second.classes == ("a", "b", "c", "d")
    assert_close(second.predict_proba(x), trained.adapt(x, y).predict_proba(x), 1e-6)
    assert first.classes == ("a", "b", "c") and torch.equal(first.predict_proba(x), before)
    assert trees.size(first.support.x) == 4 == len(first.support.y)


@pytest.mark.parametrize("make", [plain, nested])
def test_without_answers_as_one_that_never_saw_them_and_leaves_the_old_one(make):
    trained, x, y = make()
    first = trained.adapt(x, y)
    before = first.predict_proba(x)
    second = first.without([0, 4], classes=["d"])
    kept = [i for i, name in enumerate(y) if i not in (0, 4) and name != "d"]
    wanted = trained.adapt(trees.rows(x, kept), [y[i] for i in kept])
    assert second.classes == ("a", "b", "c") == wanted.classes
    assert_close(second.predict_proba(x), wanted.predict_proba(x), 1e-6)
    assert first.classes == ("a", "b", "c", "d") and torch.equal(first.predict_proba(x), before)
    assert len(first.support.y) == 8


def test_more_examples_may_name_their_inputs_in_another_order(tmp_path):
    trained, x, y = nested()
    turned = dict(reversed(x.items()))
    twice = trained.adapt(trees.joined([x, x]), y + y).predict_proba(x)
    assert_close(trained.adapt(x, y).updated(turned, y).predict_proba(x), twice, 1e-6)
    # Earlier versions kept the order of the user, in files too.
    first = trained.adapt(x, y)
    first.support = first.support._replace(x={name: first.support.x[name] for name in ("values", "kind")})
    first.save(tmp_path / "p.qs")
    again = qs.load(tmp_path / "p.qs", encoder=Mixed(None))
    assert_close(again.updated(turned, y).predict_proba(x), twice, 1e-6)


def test_a_predictor_that_forgets_all_is_refused_unless_it_needs_no_example():
    """As `adapt` refuses an empty support set."""
    torch.manual_seed(0)
    learner, none = qs.MAML(qs.nn.mlp(2, 1, hidden=(4,)), loss=F.mse_loss, lr=0.01, steps=1), qs.CNP(nn.Flatten(), 2)
    x, y = torch.randn(3, 2), torch.randn(3, 1)
    with pytest.raises(DataError, match="none of the 3 examples would be left"):
        qs.Trained(learner, learner.init()).adapt(x, y).without([0, 1, 2])
    predictor = qs.Trained(none, none.init()).adapt(x, y)
    wanted = qs.Trained(none, predictor.basis.theta).adapt(x[:0], y[:0]).predict(x)
    assert_close(predictor.without([0, 1, 2]).predict(x), wanted, 1e-6)


def test_more_examples_that_are_not_built_alike_are_refused():
    trained, x, y = nested()
    predictor = trained.adapt(x, y)
    with pytest.raises(DataError, match=r"so far are x \['kind'\] \(8,\), \['values'\] \(8, 4\), y \[8\]"):
        predictor.updated({"values": x["values"]}, y)
    with pytest.raises(DataError, match="so far are"):
        predictor.updated(x, {"class": np.zeros(8, dtype=int)})


def test_a_file_without_the_users_network_asks_for_it(tmp_path):
    trained, x, y = nested()
    trained.adapt(x, y).save(tmp_path / "p.qs")
    with pytest.raises(FileFormatError, match="encoder of your own"):
        qs.load(tmp_path / "p.qs")


def test_two_targets_are_scored_by_a_metric_of_the_users_own():
    """Nothing says which of the targets counts, so a score has to be told."""
    share = qs.Metric(
        "accuracy of the class",
        True,
        lambda m, w: f"{m} ± {w}",
        lambda out, y: (out["class"].argmax(1) == y["class"]).double().mean(),
    )
    learner = maml()
    trained = qs.Trained(learner, learner.init())
    score = qs.evaluate(trained, source(), episodes=3, seed=0, engine="loop", metric=share)
    assert score.protocol.metric == "accuracy of the class" and len(score.values) == 3
