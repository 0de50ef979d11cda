"""Learners against the mathematics: closed forms written out by hand, finite differences, and what each reduces to."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, meta_gradient, random_episodes
from torch import Tensor, nn

import quickstudy as qs
from quickstudy import inner
from quickstudy.engine import mapping
from quickstudy.learner import Batch, Episode, Theta
from quickstudy.nn.model import call

pytestmark = pytest.mark.usefixtures("double")

ENGINES = ("loop", "threads", "vmap")
TASKS = problems.linear_tasks(4)
START = np.array([0.3, -1.2, 0.8])
RATE = 0.1


def linear_maml(steps: int, **fields: Any) -> qs.MAML:
    return qs.MAML(nn.Linear(3, 1, bias=False), loss=qs.mse_loss, lr=RATE, steps=steps, **fields)


def linear_meta_gradient(learner: qs.MAML, name: str = "loop") -> tuple[float, np.ndarray]:
    loss, slope = meta_gradient(learner, {"weight": torch.tensor(START[None])}, problems.as_episodes(TASKS), name)
    return float(loss), slope["weight"][0].numpy()


def same_to_rounding(found: tuple[float, np.ndarray], wanted: tuple[float, np.ndarray]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-12)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-12, atol=1e-12)


def tanh_net(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, outputs))


def one_episode(**sizes: Any) -> Episode:
    return mapping.unstack(random_episodes(1, **sizes))[0]


# --- the closed forms themselves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_closed_form_is_the_derivative_of_its_own_loss(steps):
    """A check of the checker: central differences of the closed-form loss, which is quadratic in w."""
    task, h = TASKS[0], 1e-5
    slope = problems.maml_closed_form(START, task, RATE, steps)[1]
    for direction, wanted in zip(np.eye(3), slope, strict=True):
        ends = [problems.maml_closed_form(START + s * h * direction, task, RATE, steps)[0] for s in (1, -1)]
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(wanted, rel=1e-8)


# --- MAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_maml_on_linear_regression(steps, name):
    wanted = problems.average([problems.maml_closed_form(START, task, RATE, steps) for task in TASKS])
    same_to_rounding(linear_meta_gradient(linear_maml(steps), name), wanted)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_maml_on_linear_regression(steps, name):
    wanted = problems.average([problems.fomaml_closed_form(START, task, RATE, steps) for task in TASKS])
    same_to_rounding(linear_meta_gradient(linear_maml(steps, first_order=True), name), wanted)


def test_the_two_closed_forms_are_far_apart():
    """Or the two tests above could not tell second order from first."""
    second, first = (
        form(START, TASKS[0], RATE, 3)[1] for form in (problems.maml_closed_form, problems.fomaml_closed_form)
    )
    assert np.abs(second - first).max() > 0.1 * np.abs(second).max()


@pytest.mark.parametrize("name", ENGINES)
def test_adjoint_first_order_is_the_flag_first_order(name):
    by_flag = linear_meta_gradient(linear_maml(3, first_order=True), name)
    by_adjoint = linear_meta_gradient(linear_maml(3, adjoint="first_order"), name)
    assert by_flag[0] == by_adjoint[0] and np.array_equal(by_flag[1], by_adjoint[1])


@pytest.mark.parametrize("name", ENGINES)
def test_without_curvature_first_order_is_exact(name):
    """A loss that is linear in the output of a linear model has H = 0, so prod (I - lr H) is the identity."""

    def linear_loss(output: Tensor, y: Tensor) -> Tensor:
        return (output * y).mean()

    theta, episodes = {"weight": torch.tensor(START[None])}, problems.as_episodes(TASKS)
    fields: dict[str, Any] = {"loss": linear_loss, "lr": RATE, "steps": 3}
    exact, first = (
        meta_gradient(qs.MAML(nn.Linear(3, 1, bias=False), first_order=flag, **fields), theta, episodes, name)
        for flag in (False, True)
    )
    assert_close(exact[0], first[0], 1e-14)
    assert_close(exact[1], first[1], 1e-14)
    assert float(first[1]["weight"].abs().min()) > 1e-3


def test_first_order_is_the_gradient_at_phi():
    learner, episode = qs.MAML(tanh_net(3), lr=0.5, steps=3, first_order=True), one_episode()
    theta = learner.init()
    phi = {name: value.detach().requires_grad_() for name, value in learner.adapt(theta, episode.support).items()}
    loss = F.cross_entropy(call(learner.model, phi, episode.query.x), episode.query.y)
    wanted = dict(zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True))
    found = qs.meta_gradient(learner, theta, Episode(*(Batch(b.x[None], b.y[None]) for b in episode)))
    assert_close(found[0], loss.detach(), 1e-14)
    assert_close(found[1], wanted, 1e-12)


@pytest.mark.parametrize("name", ENGINES)
def test_no_steps_is_the_plain_model(name):
    model, episodes = tanh_net(3), random_episodes()
    learner = qs.MAML(model, steps=0)
    loss, slope = qs.meta_gradient(learner, learner.init(), episodes, name)
    plain = torch.stack([F.cross_entropy(model(x), y) for x, y in zip(*episodes.query, strict=True)]).mean()
    plain.backward()
    assert_close(loss, plain.detach(), 1e-14)
    assert_close(slope, {n: p.grad for n, p in model.named_parameters()}, 1e-12)


def test_one_step_from_a_rate_of_zero_is_the_plain_model():
    episode, model = one_episode(), tanh_net(3)
    still, plain = qs.MAML(model, lr=0.0, steps=2), qs.MAML(model, steps=0)
    theta = still.init()
    assert torch.equal(still.meta_loss(theta, episode), plain.meta_loss(theta, episode))


@pytest.mark.parametrize("name", ENGINES)
def test_maml_against_finite_differences(name):
    """Three steps through a two-layer tanh network, along random directions of theta, on each engine."""
    learner, episodes = qs.MAML(tanh_net(3), lr=0.5, steps=3), random_episodes()
    theta = learner.init()
    slope = meta_gradient(learner, theta, episodes, name)[1]
    for _ in range(5):
        towards = {n: torch.randn_like(value) for n, value in theta.items()}
        wanted = problems.directional(lambda at: float(qs.meta_gradient(learner, at, episodes)[0]), theta, towards)
        assert sum(float((slope[n] * towards[n]).sum()) for n in theta) == pytest.approx(wanted, rel=1e-6)


def test_maml_descends_by_hand():
    """phi after two steps, with gradients from plain autograd."""
    learner, episode = qs.MAML(tanh_net(3), lr=0.5, steps=2), one_episode()
    theta = learner.init()
    phi = theta
    for _ in range(2):
        phi = {n: v.detach().requires_grad_() for n, v in phi.items()}
        loss = F.cross_entropy(torch.func.functional_call(learner.model, phi, (episode.support.x,)), episode.support.y)
        slopes = torch.autograd.grad(loss, list(phi.values()))
        phi = {n: v - 0.5 * g for (n, v), g in zip(phi.items(), slopes, strict=True)}
    assert_close(learner.adapt(theta, episode.support), phi, 1e-13)


# --- Hessian-vector products -----------------------------------------------------------------------------------------


def random_like(theta: Theta) -> Theta:
    return {name: torch.randn_like(value) for name, value in theta.items()}


def test_hessian_vector_product_of_a_quadratic():
    a = torch.randn(6, 6)
    h = a @ a.T
    product = inner.hessian_vector_product(lambda p: 0.5 * p["v"] @ h @ p["v"], {"v": torch.randn(6)}, {"v": a[0]})
    assert_close(product["v"], h @ a[0], 1e-12)


def test_hessian_vector_product_of_a_linear_model():
    """H = 2 X^T X / n; forward over reverse fails in torch on just this model."""
    task, v = TASKS[0], np.array([1.0, -2.0, 0.5])
    x, y = torch.tensor(task.x), torch.tensor(task.y)
    product = inner.hessian_vector_product(
        lambda p: F.mse_loss(x @ p["w"], y), {"w": torch.tensor(START)}, {"w": torch.tensor(v)}
    )
    np.testing.assert_allclose(product["w"].numpy(), problems.squared_hessian(task.x) @ v, rtol=1e-12)


def test_hessian_vector_product_of_a_network():
    model, (support, _) = tanh_net(3), one_episode()
    theta = {name: p.detach() for name, p in model.named_parameters()}
    vector = random_like(theta)
    sizes = [value.numel() for value in theta.values()]

    def loss_at(point: Theta) -> Tensor:
        return F.cross_entropy(call(model, point, support.x), support.y)

    def flat_loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        return loss_at({name: part.view_as(theta[name]) for name, part in zip(theta, parts, strict=True)})

    whole = torch.autograd.functional.hessian(flat_loss, torch.cat([v.flatten() for v in theta.values()]))
    wanted = (whole @ torch.cat([vector[name].flatten() for name in theta])).split(sizes)  # type: ignore[operator]
    product = inner.hessian_vector_product(loss_at, theta, vector)
    assert_close(product, {n: part.view_as(theta[n]) for n, part in zip(theta, wanted, strict=True)}, 1e-12)


def test_hessian_vector_product_of_a_linear_function_is_zero():
    product = inner.hessian_vector_product(lambda p: 3 * p["a"].sum(), {"a": torch.ones(3)}, {"a": torch.ones(3)})
    assert torch.equal(product["a"], torch.zeros(3))


def test_hessian_vector_product_under_vmap():
    points, vectors = torch.randn(4, 3), torch.randn(4, 3)
    product = torch.func.vmap(
        lambda p, v: inner.hessian_vector_product(lambda q: (q["a"] ** 4).sum(), {"a": p}, {"a": v})["a"]
    )
    assert_close(product(points, vectors), 12 * points**2 * vectors, 1e-12)


# --- prototypes ------------------------------------------------------------------------------------------------------


def test_protonet_is_a_linear_classifier_on_the_embedding():
    """-|z - c|^2 = 2 c.z - |c|^2 - |z|^2, and the last term is common to all classes."""
    learner, episode = qs.ProtoNet(tanh_net(4), ways=3), one_episode(queries=4)
    theta = learner.init()
    z, zq = (call(learner.encoder, theta, batch.x) for batch in episode)
    means = torch.stack([z[episode.support.y == k].mean(0) for k in range(3)])
    phi = learner.adapt(theta, episode.support)
    logits = learner.predict(theta, phi, episode.query.x)
    difference = logits - (2 * zq @ means.T - (means * means).sum(1))
    assert_close(difference - difference[:, :1], torch.zeros_like(difference), 1e-10)
    assert_close(phi.means, means, 1e-14)


def test_protonet_uses_the_squared_euclidean_distance():
    learner, episode = qs.ProtoNet(tanh_net(4), ways=3), one_episode(queries=4)
    theta = learner.init()
    z, zq = (call(learner.encoder, theta, batch.x).detach().numpy() for batch in episode)
    logits = learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x)
    by_loop = problems.nearest_mean_logits(z, episode.support.y.numpy(), zq, 3)
    np.testing.assert_allclose(logits.detach().numpy(), by_loop, rtol=1e-10)


def test_the_product_form_of_distances_keeps_its_digits():
    """|a|^2 - 2 a.b + |b|^2 cancels when two points are close and far from the origin."""
    from quickstudy.learners.parts.distance import squared_distances

    a = 100 + torch.randn(5, 8, dtype=torch.float32)
    b = a[:3] + 0.01 * torch.randn(3, 8, dtype=torch.float32)
    exact = ((a.double()[:, None] - b.double()[None]) ** 2).sum(-1)
    assert float((squared_distances(a, b) - exact).abs().max()) < 1e-3


def test_nearest_centroid_is_a_protonet_without_a_network():
    episode = one_episode(shape=(2, 2), queries=4)
    plain, proto = qs.NearestCentroid(ways=3), qs.ProtoNet(nn.Flatten(), ways=3)
    outputs = [
        learner.predict({}, learner.adapt({}, episode.support), episode.query.x)  # type: ignore[arg-type]
        for learner in (plain, proto)
    ]
    assert torch.equal(*outputs)
    assert torch.equal(plain.meta_loss({}, episode), proto.meta_loss({}, episode))


def test_unequal_class_sizes_are_averaged_class_by_class():
    x, y = torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 2, 2])
    means = qs.NearestCentroid(ways=3).adapt({}, Batch(x, y))
    assert_close(means, torch.stack([x[:3].mean(0), x[3], x[4:].mean(0)]), 1e-14)


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fitting_the_head_is_logistic_regression_on_the_features():
    model, episode = qs.nn.mlp(4, 6, hidden=(5,), activation="tanh"), one_episode(queries=4)
    learner = qs.FineTune(model, ways=3, lr=0.7, steps=30)
    theta = learner.init()
    z, zq = (torch.tanh(F.linear(b.x, theta["layer1.weight"], theta["layer1.bias"])).numpy() for b in episode)
    weight, bias = problems.softmax_descent(z, episode.support.y.numpy(), 3, lr=0.7, steps=30)
    phi = learner.adapt(theta, episode.support)
    np.testing.assert_allclose(phi["head.weight"].detach().numpy(), weight, rtol=0, atol=1e-13)
    np.testing.assert_allclose(phi["head.bias"].detach().numpy(), bias, rtol=0, atol=1e-13)
    assert all(torch.equal(phi[name], theta[name]) for name in ("layer1.weight", "layer1.bias"))
    output = learner.predict(theta, phi, episode.query.x).detach().numpy()
    np.testing.assert_allclose(output, zq @ weight.T + bias, rtol=0, atol=1e-12)


def test_fitting_all_of_a_linear_model_is_fitting_its_head():
    episode = one_episode()
    head, everything = (qs.FineTune(nn.Linear(4, 6), ways=3, lr=0.7, steps=5, fit=fit) for fit in ("head", "all"))
    theta = head.init()
    assert_close(everything.adapt(theta, episode.support), head.adapt(theta, episode.support), 1e-13)


def test_fitting_all_from_a_pretrained_head_is_maml_without_meta_learning():
    """For regression both descend from theta on the support loss; only what they train for differs."""
    model, episode = tanh_net(1), one_episode(ways=None)
    tuned = qs.FineTune(model, qs.mse_loss, ways=None, lr=0.1, steps=4, fit="all")
    maml = qs.MAML(model, qs.mse_loss, lr=0.1, steps=4)
    theta = tuned.init()
    assert_close(tuned.adapt(theta, episode.support), maml.adapt(theta, episode.support), 1e-13)


def test_pretraining_is_the_supervised_loss_on_all_examples():
    model, (support, query) = tanh_net(6), one_episode()
    learner = qs.FineTune(model, ways=3)
    wanted = F.cross_entropy(model(torch.cat([support.x, query.x])), torch.cat([support.y, query.y]))
    assert_close(learner.meta_loss(learner.init(), Episode(support, query)), wanted.detach(), 1e-14)
