"""Heads that are solved: against numpy, scikit-learn, and finite differences."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from problems import assert_close, random_episodes
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import AccuracyWarning, ConfigError
from quickstudy.learner import Batch, Episode
from quickstudy.learners.metric.crammer_singer import solve, support_vectors
from quickstudy.learners.metric.ridge import ridge

pytestmark = pytest.mark.usefixtures("double")


def one_episode(**sizes: Any) -> Episode:
    return mapping.unstack(random_episodes(1, **sizes))[0]


def features(ways: int, shots: int, d: int, scale: float = 1.0, apart: float = 0.5) -> tuple[Tensor, Tensor]:
    """Clouds that overlap, and their classes."""
    drawn = torch.Generator().manual_seed(0)
    y = torch.arange(ways).repeat(shots)
    centres = apart * torch.randn(ways, d, generator=drawn)
    return scale * (centres[y] + torch.randn(len(y), d, generator=drawn)), y


def numpys_ridge(z: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    """Least squares on the joined system [Z; sqrt(lam) I] W = [Y; 0]: no normal equations."""
    joined = np.concatenate([z, np.sqrt(lam) * np.eye(z.shape[1])])
    return np.linalg.lstsq(joined, np.concatenate([y, np.zeros((z.shape[1], y.shape[1]))]), rcond=None)[0]


# --- ridge regression ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 9), (30, 5), (1, 3)])
@pytest.mark.parametrize("lam", [0.01, 1.0, 50.0])
def test_ridge_is_numpys_and_scikit_learns(n, d, lam):
    z, y = torch.randn(n, d), torch.randn(n, 3)
    found = ridge(z, y, lam).numpy()
    np.testing.assert_allclose(found, numpys_ridge(z.numpy(), y.numpy(), lam), rtol=0, atol=1e-10)
    theirs = Ridge(alpha=lam, fit_intercept=False).fit(z.numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(3, 5), (5, 3)])
def test_ridge_is_differentiable_twice(n, d):
    inputs = torch.randn(n, d, requires_grad=True), torch.randn(n, 2, requires_grad=True), torch.tensor(0.7)
    inputs[2].requires_grad_()
    assert torch.autograd.gradcheck(ridge, inputs)
    assert torch.autograd.gradgradcheck(ridge, inputs)


@pytest.mark.parametrize(("ways", "shots", "d"), [(3, 1, 8), (3, 5, 4), (20, 2, 8)])
def test_r2d2_answers_as_numpy_does(ways, shots, d):
    learner = qs.R2D2(nn.Linear(4, d), ways=ways, lam=0.3, scale=7.0)
    (x, y), (xq, _) = one_episode(ways=ways, shots=shots)
    theta = learner.init()
    z, zq = (learner.encoder(t).detach().numpy() for t in (x, xq))
    wanted = 7.0 * zq @ numpys_ridge(z, np.eye(ways)[y.numpy()], 0.3)
    output = learner.predict(theta, learner.adapt(theta, Batch(x, y)), xq)
    np.testing.assert_allclose(output.detach().numpy(), wanted, rtol=0, atol=1e-8)


def test_r2d2_on_raw_inputs_is_ridge_regression_with_a_learned_shift():
    learner, (support, query) = (
        qs.R2D2(nn.Flatten(), qs.mse_loss, ways=None, lam=0.3, scale=1.0),
        one_episode(ways=None),
    )
    theta = learner.init() | {"r2d2.shift": torch.tensor(0.25)}
    output = learner.predict(theta, learner.adapt(theta, support), query.x)
    wanted = query.x.numpy() @ numpys_ridge(support.x.numpy(), support.y.numpy(), 0.3) + 0.25
    np.testing.assert_allclose(output.numpy(), wanted, rtol=0, atol=1e-10)
    assert_close(learner.embed(theta, support), learner.adapt(theta, support).weight.flatten(), 1e-14)


def test_a_shift_of_all_logits_is_not_kept_for_classes():
    assert "r2d2.shift" not in qs.R2D2(nn.Flatten()).init()


def test_r2d2_learns_sines():
    """Features for which least squares on ten points follows a sine: better than the raw input by far."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    learner = qs.R2D2(qs.nn.mlp(1), qs.mse_loss, ways=None, lam=0.1, scale=1.0)
    tasks, test = qs.tasks.sinusoid("train"), qs.tasks.sinusoid("test")
    trained = qs.train(learner, tasks, iterations=300, meta_batch=25, engine="vmap", progress=False)
    before, after = (qs.evaluate(t, test, episodes=100) for t in (qs.Trained(learner, learner.init()), trained))
    assert after.mean < 0.5 * before.mean


# --- support vector machines -----------------------------------------------------------------------------------------

# ways, shots, width, scale of the features, C
PROBLEMS = [
    (3, 2, 5, 1.0, 0.1),  # more features than the kernel has rank
    (3, 2, 2, 1.0, 1.0),
    (5, 1, 64, 1.0, 0.1),
    (5, 5, 64, 1.0, 0.1),
    (5, 5, 64, 5.0, 0.1),
    (2, 10, 3, 1.0, 0.5),
    (5, 20, 16, 1.0, 0.1),
    (20, 2, 32, 1.0, 0.1),
]


@pytest.mark.parametrize(("ways", "shots", "d", "scale", "c"), PROBLEMS)
def test_the_support_vector_machine_is_scikit_learns(ways, shots, d, scale, c):
    z, y = features(ways, shots, d, scale)
    found, gap = support_vectors(z, torch.eye(ways)[y], c, steps=20, tolerance=1e-9)
    assert float(gap) < 1.5e-9
    theirs = LinearSVC(multi_class="crammer_singer", C=c, fit_intercept=False, tol=1e-10, max_iter=10**6)
    coefficients = theirs.fit(z.numpy(), y.numpy()).coef_
    if ways == 2:  # there scikit-learn keeps the difference of the two alone
        found = (found[:, 1:] - found[:, :1]) if coefficients.shape[0] == 1 else found
    np.testing.assert_allclose(found.numpy(), coefficients.T, rtol=0, atol=1e-4 * np.abs(coefficients).max())


@pytest.mark.parametrize(("ways", "shots", "d", "scale", "c"), PROBLEMS)
def test_the_optimality_conditions_hold(ways, shots, d, scale, c):
    z, y = features(ways, shots, d, scale)
    one_hot, kernel = torch.eye(ways)[y], c * z @ z.T
    a, slack, price, level = solve(kernel, one_hot, steps=25, tolerance=1e-9)
    size = max(1.0, float(price.max()))
    assert float((kernel @ a - one_hot + price + level[:, None]).abs().max()) < 1e-10 * size
    assert float(a.sum(1).abs().max()) < 1e-10
    assert_close(slack, one_hot - a, 1e-9)
    assert float(slack.min()) > 0 and float(price.min()) > 0
    assert_close(slack * price, torch.full_like(slack, 1e-9 / ways), 1e-3)


def test_no_classifier_has_a_lower_objective():
    z, y = features(5, 5, 16)

    def objective(w: Tensor) -> Tensor:
        output, wanted = z @ w, torch.eye(5)[y]
        return 0.5 * (w**2).sum() + 0.1 * ((1 - wanted + output).amax(1) - (wanted * output).sum(1)).sum()

    w = support_vectors(z, torch.eye(5)[y], 0.1, 20, 1e-9)[0]
    least = float(objective(w))
    for size in (1e-3, 1e-2, 0.1):
        assert all(float(objective(w + size * torch.randn_like(w))) > least for _ in range(20))


@pytest.mark.parametrize(("ways", "shots", "d", "scale", "c"), PROBLEMS[:4])
def test_the_derivative_of_the_solution_by_implicit_differentiation(ways, shots, d, scale, c):
    """Central differences of W itself along random directions of Z."""
    z, y = features(ways, shots, d, scale)
    weights = torch.randn(d, ways)

    def value(at: Tensor) -> Tensor:
        return (support_vectors(at, torch.eye(ways)[y], c, 25, 1e-9)[0] * weights).sum()

    leaf = z.clone().requires_grad_()
    slope = torch.autograd.grad(value(leaf), leaf)[0]
    for _ in range(3):
        towards = torch.randn_like(z)
        wanted = float(value(z + 1e-6 * towards) - value(z - 1e-6 * towards)) / 2e-6
        assert float((slope * towards).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_holding_the_dual_solution_constant_would_be_another_derivative():
    """Or the test above could not tell whether the solution is followed."""
    z, y = features(5, 5, 64)
    one_hot, leaf, weights = torch.eye(5)[y], z.clone().requires_grad_(), torch.randn(64, 5)
    exact = torch.autograd.grad((support_vectors(leaf, one_hot, 0.1, 20, 1e-9)[0] * weights).sum(), leaf)[0]
    a = solve(0.1 * z @ z.T, one_hot, 20, 1e-9).a
    constant = torch.autograd.grad((0.1 * leaf.T @ a * weights).sum(), leaf)[0]
    assert float((exact - constant).norm()) > 0.1 * float(exact.norm())


def test_single_precision_features_are_solved_as_exactly():
    z, y = features(5, 5, 64, 5.0)
    exact, single = (support_vectors(t, torch.eye(5)[y].to(t), 0.1, 20, 1e-9)[0] for t in (z, z.float()))
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) < 1e-5 * float(exact.abs().max()) + 1e-6


def test_a_solver_that_stops_early_says_so():
    learner, (support, _) = qs.MetaOptNet(nn.Flatten(), ways=3, solver_steps=3), one_episode()
    with pytest.warns(AccuracyWarning, match="solver_steps=3"):
        learner.adapt(learner.init(), support)


@pytest.mark.parametrize("head", ["svm", "ridge"])
@pytest.mark.parametrize("ways", [2, 3, 8])
def test_metaoptnet_answers_with_the_scaled_solution(head, ways):
    learner = qs.MetaOptNet(nn.Linear(4, 6), ways=ways, head=head, lam=2.0, scale=3.0)
    (x, y), (xq, _) = one_episode(ways=ways)
    theta = learner.init()
    z, zq, one_hot = learner.encoder(x).detach(), learner.encoder(xq).detach(), torch.eye(ways)[y]
    weight = ridge(z, one_hot, 2.0) if head == "ridge" else support_vectors(z, one_hot, 0.1, 20, 1e-9)[0]
    output = learner.predict(theta, learner.adapt(theta, Batch(x, y)), xq)
    assert_close(output.detach(), 3.0 * zq @ weight, 1e-10)


def test_metaoptnet_with_ridge_and_r2d2_solve_the_same():
    episode = one_episode()
    encoder = nn.Linear(4, 6)
    first, second = qs.MetaOptNet(encoder, 3, "ridge", lam=0.7, scale=2.0), qs.R2D2(encoder, ways=3, lam=0.7, scale=2.0)
    losses = [learner.meta_loss(learner.init(), episode).detach() for learner in (first, second)]
    assert_close(losses[0], losses[1], 1e-12)


@pytest.mark.parametrize(
    "fields", [{"head": "swm"}, {"c": 0.0}, {"lam": -1.0}, {"scale": 0.0}, {"tolerance": 0.0}, {"solver_steps": 0}]
)
def test_impossible_settings_of_metaoptnet_are_refused(fields):
    with pytest.raises(ConfigError):
        dataclasses.replace(qs.MetaOptNet(nn.Flatten()), **fields)


@pytest.mark.parametrize("fields", [{"lam": 0.0}, {"scale": -1.0}])
def test_impossible_settings_of_r2d2_are_refused(fields):
    with pytest.raises(ConfigError):
        dataclasses.replace(qs.R2D2(nn.Flatten()), **fields)
