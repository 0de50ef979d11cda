"""The control without an inner loop: the cosine classifier on theta's features, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from problems import assert_close, clusters, map_tasks, random_episodes, smooth_conv, snapshot
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError
from quickstudy.evaluation import controls
from quickstudy.evaluation.score import Score
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.learners.reference import NIL
from quickstudy.report.one_run import verdict

IMAGE = (1, 6, 6)


def ready(learner: Learner) -> Any:
    return SimpleNamespace(learner=learner, theta=learner.init())


def answers(learner: Learner, theta: Theta, episode: Episode) -> Tensor:
    return learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x)


def mean_cosines(z: np.ndarray, y: np.ndarray, zq: np.ndarray, ways: int) -> np.ndarray:
    """Mean over the support examples of a class of cos(query, example), by a plain double loop."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    return np.array([[np.mean([cosine(q, s) for s in z[y == k]]) for k in range(ways)] for q in zq])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_it_is_the_mean_cosine_of_the_features_below_the_head(norm):
    """With classes of unlike sizes, so that a sum in place of the mean would show."""
    model = smooth_conv(norm)
    x, xq = torch.randn(6, *IMAGE), torch.randn(4, *IMAGE)
    y = torch.tensor([0, 0, 0, 1, 2, 2])
    found = answers(NIL(model, 3), NIL(model, 3).init(), Episode(Batch(x, y), Batch(xq, torch.zeros(4).long())))
    body = model[:-1]
    z, zq = (body(inputs).detach().numpy() for inputs in (x, xq))
    assert_close(found, torch.as_tensor(mean_cosines(z, y.numpy(), zq, 3)), 1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["none", "batch", "support"])
@pytest.mark.parametrize("name", ["vmap", "threads"])
def test_it_is_the_same_on_every_engine(norm, name):
    learner, episodes = NIL(smooth_conv(norm), 3), random_episodes(4, IMAGE)
    theta = learner.init()
    unchanged = snapshot(learner.model, theta, episodes)
    one, other = (map_tasks(lambda e: answers(learner, theta, e), episodes, n) for n in (name, "loop"))
    assert_close(one, other, 1e-10)
    assert unchanged()


@pytest.mark.usefixtures("double")
def test_it_reads_the_body_of_theta_and_not_the_head():
    learner, episode = NIL(smooth_conv(), 3), mapping.unstack(random_episodes(1, IMAGE))[0]
    theta = learner.init()
    before = answers(learner, theta, episode)
    other_head = {n: v + 1 if n.startswith("head.") else v for n, v in theta.items()}
    other_body = {n: v if n.startswith("head.") else v + 0.1 for n, v in theta.items()}
    assert torch.equal(answers(learner, other_head, episode), before)
    assert not torch.allclose(answers(learner, other_body, episode), before, atol=1e-3)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("norm", "alone"), [("batch", False), ("support", True), ("layer", True)])
def test_a_query_sees_the_others_as_the_network_declares(norm, alone):
    learner, episode = NIL(smooth_conv(norm), 3), mapping.unstack(random_episodes(1, IMAGE))[0]
    theta = learner.init()
    few = episode._replace(query=Batch(*(t[:2] for t in episode.query)))
    same = torch.allclose(answers(learner, theta, episode)[:2], answers(learner, theta, few), atol=1e-12)
    assert same == alone


def test_the_control_gets_the_models_parameters_alone():
    """Learned rates beside them are no part of the features, and neither are inner steps."""
    learner = qs.MetaSGD(qs.nn.mlp(4, 3, hidden=(8,)), lr=0.1, steps=3)
    variant, theta, _ = controls.control("nil", learner, learner.init(), clusters())
    assert set(theta) == set(learner.model.state_dict())
    score = qs.evaluate(ready(learner), clusters(), episodes=20, controls=["nil"])
    alone = qs.evaluate(SimpleNamespace(learner=variant, theta=theta), clusters(), episodes=20)
    assert torch.equal(score.controls["nil"].values, alone.values)
    assert score.controls["nil"].protocol == replace(score.protocol, learner="NIL", steps=None, control="nil")


def test_features_that_tell_the_classes_apart_are_enough():
    """The identity as body, and classes in directions of their own."""
    eye = nn.Linear(4, 4, bias=False)
    nn.init.eye_(eye.weight)
    learner = qs.MAML(nn.Sequential(eye, nn.Linear(4, 3)), lr=0.0)
    score = qs.evaluate(ready(learner), clusters(spread=0.02), episodes=40, controls=["nil"])
    assert score.controls["nil"].mean > 0.95 > score.mean


@pytest.mark.parametrize(
    ("learner", "tasks", "offered"),
    [
        (lambda: qs.MAML(qs.nn.mlp(4, 3)), clusters, True),
        (lambda: qs.ANIL(qs.nn.mlp(4, 3)), clusters, True),
        (lambda: qs.FineTune(qs.nn.mlp(4, 6), ways=3), clusters, True),
        (lambda: qs.ProtoNet(qs.nn.mlp(4, None), ways=3), clusters, False),
        (lambda: qs.NearestCentroid(3), clusters, False),
        (lambda: qs.MAML(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))), clusters, False),
        (lambda: qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss), lambda: qs.tasks.sinusoid("test"), False),
    ],
    ids=["maml", "anil", "finetune", "protonet", "nearest centroid", "no linear head", "regression"],
)
def test_it_is_offered_where_it_makes_sense(learner, tasks, offered):
    made = learner()
    assert ("nil" in controls.available(made, tasks())) == offered
    if not offered:
        with pytest.raises(ConfigError, match="nil"):
            controls.control("nil", made, made.init(), tasks())


def test_its_loss_is_the_cross_entropy_of_its_answers():
    learner, episode = NIL(qs.nn.mlp(4, 3), 3), mapping.unstack(random_episodes(1))[0]
    theta = learner.init()
    expected = qs.cross_entropy(answers(learner, theta, episode), episode.query.y)
    assert_close(learner.meta_loss(theta, episode), expected, 1e-6)


def test_losing_against_it_is_not_called_learning_nothing():
    """It has the learner's own features: that alone makes the verdict on the inner loop, not on meta-learning."""
    drawn = torch.rand(50, generator=seeds.generator(0, "scores"), dtype=torch.float64) / 10
    protocol = qs.Protocol("MAML", "glyphs", "test", 5, 1, 15, "accuracy", 50, 1, False, "none")

    def score(level: float, name: str | None = None, **of: Score) -> Score:
        return Score(drawn + level, replace(protocol, control=name), of)

    beaten, equal = score(0.2, "zero_steps"), score(0.5, "nil")
    said = verdict(score(0.5, zero_steps=beaten, nil=equal))
    assert "MAML beats zero inner steps, but not NIL" in said and "inner loop adds nothing" in said
    assert "does not show that meta-learning helped" in verdict(score(0.1, zero_steps=beaten, nil=equal))
