"""Learners that pretrain: against logistic regression and nearest means by hand, and against each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, clusters, nearest_mean_logits, random_episodes
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Episode, Theta

pytestmark = pytest.mark.usefixtures("double")

WAYS, POOL = 3, 6
QUIET: dict[str, Any] = {"meta_batch": 2, "engine": "loop", "progress": False}


def one_episode(**sizes: Any) -> Episode:
    return mapping.unstack(random_episodes(1, **{"queries": 4} | sizes))[0]


def net() -> nn.Module:
    return qs.nn.mlp(4, POOL, hidden=(5,), activation="tanh")


def body(theta: Theta, x: Tensor) -> Tensor:
    return torch.tanh(F.linear(x, theta["layer1.weight"], theta["layer1.bias"]))


def answers(learner: Any, theta: Theta, episode: Episode) -> Tensor:
    return learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x).detach()


# --- SimpleShot ------------------------------------------------------------------------------------------------------


def test_features_as_they_are_give_the_nearest_mean():
    learner, episode = qs.SimpleShot(net(), ways=WAYS, features="UN"), one_episode()
    theta = learner.init()
    z, zq = (body(theta, batch.x) for batch in episode)
    by_loop = nearest_mean_logits(z.numpy(), episode.support.y.numpy(), zq.numpy(), WAYS)
    np.testing.assert_allclose(answers(learner, theta, episode).numpy(), by_loop, rtol=1e-10)
    centroid = qs.NearestCentroid(ways=WAYS)
    on_features = Episode(episode.support._replace(x=z), episode.query._replace(x=zq))
    assert torch.equal(answers(learner, theta, episode), answers(centroid, {}, on_features))


@pytest.mark.parametrize("kind", ["L2N", "CL2N"])
def test_transformed_features_by_hand(kind):
    learner, episode = qs.SimpleShot(net(), ways=WAYS, features=kind), one_episode()
    theta = learner.init() | ({"simpleshot.mean": torch.randn(5)} if kind == "CL2N" else {})

    def transformed(x: Tensor) -> np.ndarray:
        z = body(theta, x).numpy() - (theta["simpleshot.mean"].numpy() if kind == "CL2N" else 0)
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    by_loop = nearest_mean_logits(
        transformed(episode.support.x), episode.support.y.numpy(), transformed(episode.query.x), WAYS
    )
    np.testing.assert_allclose(answers(learner, theta, episode).numpy(), by_loop, rtol=1e-9)


@pytest.mark.parametrize("kind", ["UN", "CL2N"])
def test_simpleshot_pretrains_as_finetune_does(kind):
    model, episode = net(), one_episode(ways=POOL)
    learner, tune = qs.SimpleShot(model, ways=WAYS, features=kind), qs.FineTune(model, ways=WAYS)
    batch = Episode(*(Batch(x[None], y[None]) for x, y in episode))
    loss, slope = qs.meta_gradient(learner, learner.init(), batch)
    wanted, wanted_slope = qs.meta_gradient(tune, tune.init(), batch)
    assert_close(loss, wanted, 1e-12)
    assert_close({n: v for n, v in slope.items() if n != "simpleshot.mean"}, wanted_slope, 1e-12)
    assert kind == "UN" or not slope["simpleshot.mean"].any()  # a statistic of the features, not what moves them


def mean_feature(theta: Theta, tasks: Any) -> Tensor:
    """The mean feature over the examples of the pool, each once."""
    return body(theta, tasks.examples.to(theta["layer1.weight"])).mean(0)


@pytest.mark.parametrize("iterations", [1, 30])
def test_the_mean_is_that_of_the_features_of_all_training_examples(iterations):
    """However short the training was; classes of unequal sizes, so that a mean of class means is another."""
    pool = clusters(ways=WAYS)
    tasks = dataclasses.replace(pool, examples=pool.examples[:-7], starts=pool.starts - 7 * (pool.starts == 120))
    trained = qs.train(qs.SimpleShot(net(), ways=WAYS), tasks, iterations=iterations, **QUIET)
    wanted = mean_feature(trained.theta, tasks)
    assert_close(trained.theta["simpleshot.mean"], wanted, 1e-12)
    assert float(wanted.abs().max()) > 0.01  # where it started is elsewhere


def test_each_theta_that_is_kept_has_the_mean_of_its_own_features():
    tasks = clusters(ways=WAYS)
    settings = {"iterations": 6, "val": clusters(seed=1), "val_every": 2, "keep": 3, **QUIET}
    trained = qs.train(qs.SimpleShot(net(), ways=WAYS), tasks, **settings)
    assert len(trained.best) == 3
    for theta in (trained.theta, *trained.best):
        assert_close(theta["simpleshot.mean"], mean_feature(theta, tasks), 1e-12)


def test_a_resumed_training_ends_with_the_same_mean(tmp_path):
    """To the bit, also where the first part had ended with a mean of its own."""
    tasks = clusters(ways=WAYS)
    learner = qs.SimpleShot(net(), ways=WAYS)
    whole = qs.train(learner, tasks, iterations=8, out=tmp_path / "whole", **QUIET)
    qs.train(learner, tasks, iterations=5, out=tmp_path / "parts", **QUIET)
    parts = qs.train(learner, tasks, iterations=8, out=tmp_path / "parts", resume=True, **QUIET)
    saved = qs.load(tmp_path / "parts" / "learner.qs")
    for name, value in whole.theta.items():
        assert torch.equal(parts.theta[name], value) and torch.equal(saved.theta[name], value)


def test_a_validation_centres_with_a_mean_too():
    """Without one, CL2N is L2N: its scores would choose a theta for another learner."""
    tasks, val, seen = clusters((16,), 20, 20, ways=WAYS), clusters((16,), 20, 20, seed=1), []

    class Watched:
        ways = val.ways

        def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
            return val.sample(n, generator)

    learner = qs.SimpleShot(qs.nn.mlp(16, 20, hidden=(5,), activation="tanh"), ways=WAYS)
    adapt = qs.SimpleShot.adapt

    def watched(self: Any, theta: Theta, support: Batch) -> Any:
        seen.append(float(theta["simpleshot.mean"].abs().max()))
        return adapt(self, theta, support)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qs.SimpleShot, "adapt", watched)
        qs.train(learner, tasks, iterations=4, val=Watched(), val_every=2, val_episodes=2, **QUIET)
    assert seen and min(seen[-4:]) > 0


@pytest.mark.parametrize("kind", ["UN", "L2N", "CL2N"])
def test_simpleshot_answers_classes_that_it_never_saw(kind):
    train, test = clusters((16,), 20, 20, ways=5), clusters((16,), 30, 12, ways=20, shots=5, seed=1)
    learner = qs.SimpleShot(qs.nn.mlp(16, 20, hidden=(16,)), ways=5, features=kind)
    fast = {"engine": "vmap", "optimizer": lambda values: torch.optim.Adam(values, 0.01), "progress": False}
    score = qs.evaluate(qs.train(learner, train, iterations=60, meta_batch=4, **fast), test, episodes=20, engine="loop")
    assert score.protocol.ways == 20 and score.mean > 0.5, str(score)


# --- Baseline++ ------------------------------------------------------------------------------------------------------


def test_fitting_directions_is_descent_by_hand():
    learner, (support, query) = qs.BaselinePP(net(), ways=WAYS, scale=4.0, lr=0.3, steps=5), one_episode()
    theta = learner.init()
    z = F.normalize(body(theta, support.x), dim=1)
    weight = torch.stack([z[support.y == k].mean(0) for k in range(WAYS)])
    for _ in range(5):
        length = weight.norm(dim=1, keepdim=True)
        unit = weight / length
        wrong = ((4.0 * z @ unit.T).softmax(1) - torch.eye(WAYS)[support.y]) / len(z)
        towards = 4.0 * wrong.T @ z  # the slope in the unit vectors; what lies along them changes no cosine
        weight = weight - 0.3 * (towards - (towards * unit).sum(1, keepdim=True) * unit) / length
    phi = learner.adapt(theta, support)
    assert_close(phi.weight, weight, 1e-12)
    zq = F.normalize(body(theta, query.x), dim=1)
    assert_close(learner.predict(theta, phi, query.x), 4.0 * zq @ F.normalize(weight, dim=1).T, 1e-12)


def test_without_steps_a_class_is_its_mean_direction():
    learner, episode = qs.BaselinePP(net(), ways=WAYS, scale=1.0, steps=0), one_episode(shots=1)
    theta, order = learner.init(), episode.support.y.argsort()
    z, zq = body(theta, episode.support.x[order]), body(theta, episode.query.x)
    assert_close(answers(learner, theta, episode), F.cosine_similarity(zq[:, None], z[None], dim=-1), 1e-12)


def test_pretraining_compares_with_a_direction_per_training_class():
    learner, episode = qs.BaselinePP(net(), scale=4.0), one_episode(ways=POOL)
    theta = learner.init()
    x, y = (torch.cat(t) for t in zip(*episode, strict=True))
    logits = 4.0 * F.cosine_similarity(body(theta, x)[:, None], theta["head.weight"][None], dim=-1)
    assert_close(learner.meta_loss(theta, episode), F.cross_entropy(logits, y), 1e-12)
    assert "head.bias" not in theta
    longer = theta | {"head.weight": 3 * theta["head.weight"]}
    assert_close(learner.meta_loss(longer, episode), learner.meta_loss(theta, episode), 1e-12)


def test_baselinepp_answers_classes_that_it_never_saw():
    train, test = clusters((16,), 20, 20, ways=5), clusters((16,), 30, 12, ways=20, shots=5, seed=1)
    learner = qs.BaselinePP(qs.nn.mlp(16, 20, hidden=(16,)), ways=5)
    fast = {"engine": "vmap", "optimizer": lambda values: torch.optim.Adam(values, 0.01), "progress": False}
    score = qs.evaluate(qs.train(learner, train, iterations=60, meta_batch=4, **fast), test, episodes=20, engine="loop")
    assert score.protocol.ways == 20 and score.mean > 0.5, str(score)


def test_the_features_of_baselinepp_have_a_control_though_its_head_has_no_bias():
    learner, tasks = qs.BaselinePP(net(), ways=WAYS), clusters(ways=WAYS)
    score = qs.evaluate(qs.Trained(learner, learner.init()), tasks, episodes=5, controls=["nil"], engine="loop")
    assert set(score.controls) == {"nil"}


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [qs.BaselinePP, qs.SimpleShot])
def test_a_model_that_goes_on_after_its_last_linear_layer_is_refused(cls):
    learner = cls(nn.Sequential(nn.Linear(4, POOL), nn.Tanh()), ways=WAYS)
    with pytest.raises(ConfigError, match="must end in the linear layer"):
        learner.adapt(learner.init(), one_episode().support)


@pytest.mark.parametrize("cls", [qs.BaselinePP, qs.SimpleShot])
def test_a_model_without_a_linear_layer_is_refused(cls):
    with pytest.raises(ConfigError, match="Linear layer"):
        cls(nn.Flatten())


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="one of UN, L2N, CL2N"):
        qs.SimpleShot(net(), features="cl2n")
    with pytest.raises(ConfigError, match="scale"):
        qs.BaselinePP(net(), scale=0.0)
    with pytest.raises(ConfigError, match="steps"):
        qs.BaselinePP(net(), steps=-1)


def test_more_training_classes_than_outputs_are_refused():
    tasks = clusters(classes=3 * POOL)
    for cls in (qs.BaselinePP, qs.SimpleShot):
        with pytest.raises(qs.errors.DataError, match="class"):
            qs.train(cls(net(), ways=WAYS), tasks, iterations=1, progress=False)
