"""What is of no class: distances against formulas, AUROC and FPR95 against scikit-learn, what predictors reject."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from problems import assert_close, clusters, nearest_mean_logits, random_episodes
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.cli import main
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError, DataError, NonFiniteError
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.scope import auroc, doubt, false_alarms, sized
from quickstudy.learner import Episode, Learner, demand

WAYS = 3


def episode(**sizes: Any) -> Episode:
    return mapping.unstack(random_episodes(1, **sizes))[0]


def untrained(learner: Learner, **more: Any) -> qs.Trained:
    return qs.Trained(learner, learner.init(), **more)


# --- distances -------------------------------------------------------------------------------------------------------


def distances(learner: Learner) -> tuple[np.ndarray, qs.Predictor]:
    (x, y), query = episode()
    predictor = untrained(learner).adapt(x, y)
    return predictor.distance(query.x).numpy(), predictor


@pytest.mark.parametrize("name", ["ProtoNet", "NearestCentroid"])
def test_the_squared_distance_to_the_nearest_mean(name, double):
    net = nn.Linear(4, 6)
    found, predictor = distances(qs.ProtoNet(net, WAYS) if name == "ProtoNet" else qs.NearestCentroid(WAYS))
    (x, y), query = episode()
    with torch.no_grad():
        z, zq = (net(v) if name == "ProtoNet" else v for v in (x, query.x))
    wanted = nearest_mean_logits(z.numpy(), y.numpy(), zq.numpy(), WAYS)
    np.testing.assert_allclose(found, -wanted.max(1), rtol=1e-10)
    assert predictor.predict(query.x) == wanted.argmax(1).tolist()


def test_matching_networks_measure_the_angle_to_the_nearest_example(double):
    net = nn.Linear(4, 6)
    found, _ = distances(qs.MatchingNet(net, WAYS))
    (x, _), query = episode()
    z, zq = (net(v).detach().numpy() for v in (x, query.x))
    cosines = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in z] for a in zq]
    np.testing.assert_allclose(found, 1 - np.max(cosines, 1), rtol=1e-9)
    (x, y), _ = episode()
    assert_close(untrained(qs.MatchingNet(net, WAYS)).adapt(x, y).distance(x), torch.zeros(len(x)), 1e-9)


@pytest.mark.parametrize("features", ["UN", "L2N"])
def test_simpleshot_measures_its_features(features, double):
    net = qs.nn.mlp(4, 7, hidden=(5,), activation="tanh")
    found, _ = distances(qs.SimpleShot(net, WAYS, features))
    (x, y), query = episode()
    z, zq = (net[:-1](v).detach().numpy() for v in (x, query.x))
    if features == "L2N":
        z, zq = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (z, zq))
    np.testing.assert_allclose(found, -nearest_mean_logits(z, y.numpy(), zq, WAYS).max(1), rtol=1e-10)


def test_attention_moves_what_is_measured_and_the_temperature_does_not(double):
    net = nn.Linear(4, 6)
    cold, warm = (qs.AttentiveProtoNet(net, 6, WAYS, temperature=t) for t in (1.0, 8.0))
    found, predictor = distances(cold)
    np.testing.assert_array_equal(found, distances(warm)[0])
    np.testing.assert_allclose(found, -predictor(episode().query.x).detach().numpy().max(1), rtol=1e-10)


def test_a_distance_is_never_below_zero():
    x = 1e3 + torch.randn(6, 50)
    predictor = untrained(qs.NearestCentroid(6)).adapt(x, list("abcdef"))
    assert (predictor.distance(x) >= 0).all()


def test_features_of_an_extractor_are_measured():
    extractor = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    (x, y), query = episode()
    inside = untrained(qs.ProtoNet(extractor, WAYS)).adapt(x, y).distance(query.x)
    on_features = untrained(qs.NearestCentroid(WAYS), extractor=extractor).adapt(x, y)
    assert_close(on_features.distance(query.x), inside, 1e-6)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 8])  # with ties and without
def test_auroc_and_fpr95_are_scikit_learns(digits):
    rng = np.random.default_rng(digits)
    for own, foreign in ((75, 75), (20, 33), (1, 1)):
        a, b = (rng.normal(mean, 1, n).round(digits) for mean, n in ((0, own), (0.7, foreign)))
        truth, values = np.r_[np.zeros(own), np.ones(foreign)], np.r_[a, b]
        assert auroc(a, b) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
        passed, recall, _ = roc_curve(1 - truth, -values, drop_intermediate=False)  # an own query is the positive one
        assert false_alarms(a, b) == pytest.approx(passed[recall >= 0.95 - 1e-12].min(), abs=1e-12)


def test_doubt_has_the_order_of_the_largest_probability(double):
    logits = 3 * torch.randn(50, 4)
    p = logits.softmax(1).amax(1)
    assert_close(doubt(logits), ((1 - p) / p).log(), 1e-10)
    sure = doubt(torch.tensor([[200.0, 0.0], [300.0, 0.0]]))  # both probabilities round to 1
    assert_close(sure, torch.tensor([-200.0, -300.0]), 1e-12)
    assert torch.isfinite(doubt(torch.zeros(2, 1))).all() and doubt(torch.full((1, 2), torch.nan)).isnan()


# --- measuring -------------------------------------------------------------------------------------------------------


def test_other_classes_by_hand(double):
    """Through the predictor and scikit-learn, with the same foreign examples."""
    tasks = clusters(classes=7, spread=1.0, queries=4)
    trained, values = qs.scoped(untrained(qs.NearestCentroid(WAYS)), tasks, episodes=5), []
    found = qs.out_of_scope(trained, tasks, episodes=6, seed=3)
    for i in range(6):
        (x, y), (xq, _) = (qs.Batch(b.x[0], b.y[0]) for b in tasks.sample(1, seeds.generator(3, "test", i)))
        classes = tasks.told(seeds.generator(3, "test", i))["classes"]
        rows = [r for r in range(140) if f"class {r // 20}" not in classes]
        drawn = torch.randperm(len(rows), generator=seeds.generator(3, "foreign", i))[: len(xq)]
        both = torch.cat([xq, tasks.examples[torch.tensor(rows)[drawn]]])
        predictor = trained.adapt(x, y)
        far, sure = predictor.distance(both), predictor.predict_proba(both).amax(1)
        near = torch.tensor([name is not None for name in predictor.predict(both, reject=True)]).double()
        truth, own = [0] * 12 + [1] * 12, near[:12].mean()
        values.append([roc_auc_score(truth, far), roc_auc_score(truth, -sure), float(own), float(near[12:].mean())])
    wanted = np.mean(values, 0)
    assert found.distance.auroc.mean == pytest.approx(wanted[0], abs=1e-9)
    assert found.softmax.auroc.mean == pytest.approx(wanted[1], abs=1e-9)
    assert found.gain.mean == pytest.approx(found.distance.auroc.mean - found.softmax.auroc.mean)
    assert found.answered is not None and found.passed is not None
    assert (found.answered.mean, found.passed.mean) == pytest.approx(tuple(wanted[2:]))
    each = torch.tensor(values, dtype=torch.float64)
    assert found.distance.auroc == pytest.approx(Amount.of(each[:, 0], qs.Metric.PERCENT), rel=1e-6)
    away = each[:, 0] - each[:, 1]
    assert found.gain.interval == pytest.approx(2.5706 * float(away.std()) / 6**0.5, 1e-3)  # Student's t of 6 episodes


def test_inputs_far_away_are_told_by_distance_and_not_by_probability():
    """Far along one axis the classes are as unlike as ever: their softmax is sure of one."""
    tasks = clusters(classes=6)
    foreign = tasks.examples[:60] + torch.tensor([0.0, 0.0, 0.0, 50.0])
    found = qs.out_of_scope(untrained(qs.NearestCentroid(WAYS)), tasks, foreign, episodes=20)
    assert found.distance.auroc.mean == 1 and found.distance.fpr95.mean == 0
    assert found.softmax.auroc.mean < 0.6 and found.gain.decided
    assert "foreign: 60 given inputs" in str(found) and "within the distance" not in str(found)


def test_inputs_that_are_foreign_in_name_only_cannot_be_told():
    tasks = clusters(classes=3, queries=10)
    found = qs.out_of_scope(untrained(qs.NearestCentroid(WAYS)), tasks, tasks.examples, episodes=100)
    for one in (found.distance, found.softmax):  # a tenth of them are support examples, which lie a little nearer
        assert 0.42 < one.auroc.mean < 0.5 + 2 * one.auroc.interval


def test_the_chosen_distance_holds_what_it_promises():
    tasks = clusters(classes=6, queries=15)
    for recall in (0.5, 0.95):
        trained = qs.scoped(untrained(qs.NearestCentroid(WAYS)), tasks, recall=recall, episodes=100, seed=5)
        answered = qs.out_of_scope(trained, tasks, episodes=100).answered
        assert answered is not None and abs(answered.mean - recall) < 2 * answered.interval


def test_networks_that_normalise_by_batch_do_not_see_the_foreign_inputs(double):
    learner = qs.ProtoNet(nn.Sequential(nn.Linear(4, 5), qs.nn.norm("batch", 5)), WAYS)
    tasks = clusters(shape=(4,), classes=6)
    near, far = (
        qs.scoped(untrained(learner), tasks, episodes=4, seed=2).scope,
        qs.out_of_scope(untrained(learner), tasks, 1e3 + tasks.examples, episodes=4),
    )
    assert near and far.distance.auroc.mean == 1 and not far.protocol.transductive


def test_progress_is_told_and_tasks_of_any_source_do():
    done: list[int] = []
    pool = clusters(classes=6)
    episodes = mapping.unstack(pool.sample(4))
    keys = ("support", "support_labels", "query", "query_labels")
    source = qs.tasks.from_arrays([dict(zip(keys, [*e.support, *e.query], strict=True)) for e in episodes])
    qs.out_of_scope(untrained(qs.NearestCentroid(WAYS)), source, pool.examples, episodes=3, progress=done.append)
    assert sum(done) == 3
    with pytest.raises(ConfigError, match="ArrayTasks has no pool of other classes"):
        qs.out_of_scope(untrained(qs.NearestCentroid(WAYS)), source, episodes=3)


def test_what_cannot_be_measured_is_refused():
    tasks, centroid = clusters(classes=6), untrained(qs.NearestCentroid(WAYS))
    with pytest.raises(ConfigError, match=r"R2D2 knows boundaries .* protonet"):
        qs.out_of_scope(untrained(qs.R2D2(nn.Linear(4, 4), ways=WAYS)), tasks)
    with pytest.raises(ConfigError, match="R2D2 knows boundaries"):
        distances(qs.R2D2(nn.Linear(4, 4), ways=WAYS))
    with pytest.raises(ConfigError, match="at least 2"):
        qs.out_of_scope(centroid, tasks, episodes=1)
    with pytest.raises(ConfigError, match="between 0 and 1; got 95"):
        qs.scoped(centroid, tasks, recall=95)
    with pytest.raises(ConfigError, match="these tasks ask for values"):
        qs.scoped(centroid, qs.tasks.sinusoid())
    with pytest.raises(DataError, match="there are 2 foreign inputs, but 6 queries"):
        qs.out_of_scope(centroid, tasks, tasks.examples[:2], episodes=2)
    with pytest.raises(DataError, match="there are 0 examples of classes that are not in the task"):
        qs.out_of_scope(centroid, clusters(classes=3), episodes=2)
    broken = qs.Trained(
        qs.ProtoNet(nn.Linear(4, 2), WAYS), {"weight": torch.full((2, 4), 1e30), "bias": torch.zeros(2)}
    )
    with pytest.raises(NonFiniteError, match="test episode 0"):
        qs.out_of_scope(broken, tasks, episodes=2)
    with pytest.raises(ConfigError, match="no method `distance`"):
        demand(qs.MAML(nn.Linear(4, 3), lr=0.1), "distance")


# --- predictors ------------------------------------------------------------------------------------------------------


def test_a_predictor_answers_nothing_beyond_the_distance(tmp_path):
    tasks = clusters(classes=6)
    trained = qs.scoped(untrained(qs.NearestCentroid(WAYS)), tasks, episodes=10)
    x = torch.eye(3, 4) * 9
    predictor = trained.adapt(x, ["a", "b", "c"])
    asked = torch.cat([x, 100 * torch.ones(1, 4)])
    assert predictor.predict(asked, reject=True) == ["a", "b", "c", None]
    assert predictor.predict(asked)[3] is not None
    assert predictor.predict(asked, reject=0.0) == ["a", "b", "c", None]
    assert None not in predictor.predict(asked, reject=float("inf"))
    trained.save(tmp_path / "learner.qs")
    predictor.save(tmp_path / "predictor.qs")
    assert qs.load(tmp_path / "learner.qs").scope == trained.scope  # type: ignore[union-attr]
    again = qs.load(tmp_path / "predictor.qs").update(x[:1] + 1, ["a"])  # type: ignore[union-attr]
    assert again.predict(asked, reject=True) == ["a", "b", "c", None]


def test_a_predictor_says_what_it_lacks():
    predictor = untrained(qs.NearestCentroid(WAYS)).adapt(torch.eye(3, 4), ["a", "b", "c"])
    with pytest.raises(ConfigError, match="no distance was chosen"):
        predictor.predict(torch.eye(3, 4), reject=True)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="reject is a distance, 0 or more"):
            predictor.predict(torch.eye(3, 4), reject=wrong)
    with pytest.raises(DataError, match="cannot read inputs of shape"):
        predictor.distance(torch.eye(3, 5))


def test_sizes_are_those_of_the_support_set_as_far_as_the_pool_goes():
    tasks = clusters(classes=6, queries=15)  # 20 examples of each class
    assert [(t.ways, t.shots) for t in (sized(tasks, 4, 3), sized(tasks, 9, 50))] == [(4, 3), (6, 5)]


def pictures(folder: Path, value: int, count: int = 1) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 20, (8, 8))
        Image.fromarray((value + noise).astype(np.uint8)).save(folder / f"{i}.png")


def test_the_command_line_marks_what_is_none_of_the_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for k, split in enumerate(("train", "val", "test")):
        for value in range(4):
            pictures(tmp_path / "photos" / split / f"{split}{value}", 10 * k + 50 * value, count=4)
    train = ["train", "photos", "nearestcentroid", "--ways", "2", "--queries", "2", "--size", "8", "--out", "run"]
    assert main.run([*train, "--iterations", "1", "--meta-batch", "1"]) == 0
    for name, value in (("s/a", 0), ("s/b", 100), ("q", 230)):
        pictures(tmp_path / name, value)
    assert main.run(["adapt", "run", "s", "--out", "plain.qs"]) == main.run(["adapt", "run", "s", "--reject"]) == 0
    assert "within which are 95 % of queries of 2-way 1-shot validation tasks" in capsys.readouterr().out
    assert main.run(["predict", "predictor.qs", "s", "q", "--json", "--reject"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [(a["label"], a["probability"] is None) for a in answers] == [("a", False), ("b", False), (None, True)]
    assert main.run(["predict", "predictor.qs", "q", "--reject"]) == 0
    assert "none of these" in capsys.readouterr().out
    assert main.run(["predict", "predictor.qs", "q"]) == 0
    assert "none of these" not in capsys.readouterr().out
    assert main.run(["predict", "plain.qs", "q", "--reject"]) == 2
    assert "no distance was chosen" in capsys.readouterr().err
    assert main.run(["adapt", "run/learner.qs", "s", "--reject"]) == 2
    assert "not a run of 'quickstudy train'" in capsys.readouterr().err


def test_values_cannot_be_none_of_the_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.run(["train", "sinusoid", "maml", "--iterations", "1", "--meta-batch", "1", "--out", "run"]) == 0
    (tmp_path / "s.csv").write_text("0.1,1\n0.2,2\n")
    assert main.run(["adapt", "run", "s.csv", "--reject"]) == 2
    assert "--reject is for classes" in capsys.readouterr().err
