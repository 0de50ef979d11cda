"""The contract's own parts: given gradients, and a learner as a module."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from problems import assert_close, meta_gradient, random_episodes, snapshot
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.learner import Batch, Episode, Learner, Theta

ENGINES = ("loop", "threads", "vmap")
pytestmark = pytest.mark.usefixtures("double")


def small_maml() -> qs.MAML:
    return qs.MAML(qs.nn.mlp(4, 3, hidden=(5,), activation="tanh"), lr=0.3, steps=2)


# --- with_gradient ---------------------------------------------------------------------------------------------------


def test_a_given_gradient_is_what_backward_gives():
    theta = {"a": torch.randn(3).requires_grad_(), "b": torch.randn(2, 2).requires_grad_()}
    wanted = {name: torch.randn_like(value) for name, value in theta.items()}
    loss = qs.with_gradient(torch.tensor(0.7), theta, wanted)
    loss.backward()
    assert float(loss.detach()) == 0.7
    assert_close({name: value.grad for name, value in theta.items()}, wanted, 1e-15)


@pytest.mark.parametrize("size", [1e6, 1e20])
def test_the_value_survives_a_large_gradient_bit_for_bit(size):
    """In float32 a sum with a large number would swallow the value."""
    theta = {"a": torch.full((5,), size, dtype=torch.float32, requires_grad=True)}
    value = torch.tensor(0.3, dtype=torch.float32)
    assert torch.equal(qs.with_gradient(value, theta, {"a": torch.full((5,), 7.0, dtype=torch.float32)}), value)


def test_entries_without_a_given_gradient_get_none():
    theta = {"a": torch.randn(3).requires_grad_(), "b": torch.randn(2).requires_grad_()}
    qs.with_gradient(torch.tensor(1.0), theta, {"a": torch.ones(3)}).backward()
    assert theta["b"].grad is None and torch.equal(theta["a"].grad, torch.ones(3))


def test_an_empty_gradient_leaves_the_value():
    assert float(qs.with_gradient(torch.tensor(0.7), {}, {})) == 0.7


def test_the_given_gradient_is_a_constant():
    """Its own history is cut: the derivative is the number handed in, not that of the way it was found."""
    a = torch.tensor([2.0], requires_grad=True)
    qs.with_gradient((a**2).sum(), {"a": a}, {"a": 10 * a**3}).backward()
    assert torch.equal(a.grad, torch.tensor([80.0]))


@dataclass(frozen=True, eq=False)
class TowardsMean(Learner):
    """A learner that hands in its gradient: theta - mean of the support set, and the query's mean as value."""

    def init(self) -> Theta:
        return {"centre": torch.zeros(4)}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return support.x.mean(0)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return phi + 0 * x

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return qs.with_gradient(episode.query.x.mean(), theta, {"centre": theta["centre"] - phi})


@pytest.mark.parametrize("name", ENGINES)
def test_a_given_gradient_is_the_meta_gradient_on_each_engine(name):
    learner, episodes = TowardsMean(), random_episodes()
    loss, slope = meta_gradient(learner, learner.init(), episodes, name)
    assert_close(loss, episodes.query.x.mean(), 1e-14)
    assert_close(slope["centre"], -episodes.support.x.mean((0, 1)), 1e-14)


def test_a_learner_that_hands_in_its_gradient_trains_like_any_other():
    """With plain descent at rate 1 on one constant task, theta jumps to the mean and stays."""

    class OneTask:
        def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
            one = random_episodes(1)
            return Episode(*(Batch(*(t.expand(n, *t.shape[1:]) for t in batch)) for batch in one))

    trained = qs.train(
        TowardsMean(),
        OneTask(),
        iterations=3,
        meta_batch=2,
        engine="loop",
        optimizer=lambda values: torch.optim.SGD(values, lr=1.0),
        progress=False,
    )
    assert_close(trained.theta["centre"], random_episodes(1).support.x.mean((0, 1)), 1e-12)


# --- as_module -------------------------------------------------------------------------------------------------------


def test_a_modules_parameters_are_theta():
    learner = small_maml()
    module = qs.as_module(learner)
    theta = learner.init()
    assert [tuple(p.shape) for p in module.parameters()] == [tuple(v.shape) for v in theta.values()]
    assert_close({n: v.detach() for n, v in module.theta().items()}, theta, 1e-15)  # type: ignore[operator]


def test_forward_is_the_meta_loss_and_backward_the_meta_gradient():
    learner, episodes = small_maml(), random_episodes(1)
    module, episode = qs.as_module(learner), mapping.unstack(episodes)[0]
    loss = module(episode)
    loss.backward()
    wanted_loss, wanted = qs.meta_gradient(learner, learner.init(), episodes)
    assert_close(loss, wanted_loss, 1e-14)
    assert all(p.grad is not None for p in module.parameters())
    assert_close({n: v.grad for n, v in module.theta().items()}, wanted, 1e-13)  # type: ignore[operator]


def test_a_batch_of_episodes_gives_the_mean_loss():
    learner, episodes = small_maml(), random_episodes(4)
    module = qs.as_module(learner)
    loss = module(episodes, batched=True)
    loss.backward()
    wanted_loss, wanted = qs.meta_gradient(learner, learner.init(), episodes)
    assert_close(loss, wanted_loss, 1e-14)
    assert_close({n: v.grad for n, v in module.theta().items()}, wanted, 1e-13)  # type: ignore[operator]


def test_a_module_trains_without_touching_the_network_it_came_from():
    learner, episodes = small_maml(), random_episodes(4)
    module, unchanged = qs.as_module(learner), snapshot(learner.model)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    first = module(episodes, batched=True)
    first.backward()
    optimizer.step()
    assert float(module(episodes, batched=True).detach()) < float(first.detach())
    assert unchanged()


def test_a_modules_state_survives_state_dict():
    learner = small_maml()
    one, other = qs.as_module(learner), qs.as_module(learner)
    with torch.no_grad():
        for p in one.parameters():
            p.add_(torch.randn_like(p))
    other.load_state_dict(one.state_dict())
    episode = mapping.unstack(random_episodes(1))[0]
    assert torch.equal(one(episode), other(episode))


# --- the types -------------------------------------------------------------------------------------------------------


def test_a_learner_must_have_all_four_methods():
    class Half(Learner):
        def init(self) -> Theta:
            return {}

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_hyper_parameters_cannot_be_written():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_maml().lr = 0.1  # type: ignore[misc]


def test_episodes_are_trees_of_four_tensors():
    episode = random_episodes(1)
    leaves, structure = pytree.tree_flatten(episode)
    assert len(leaves) == 4
    again = pytree.tree_unflatten(leaves, structure)
    assert isinstance(again, Episode) and isinstance(again.support, Batch) and again.query.x is episode.query.x


def test_any_module_and_loss_make_a_learner():
    """The low level of the documentation, with plain tensors: `steps` steps of descent, written out by hand."""
    learner = qs.MAML(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), loss=qs.mse_loss, lr=0.01, steps=5)
    x, xq = torch.linspace(-1, 1, 10)[:, None], torch.linspace(-2, 2, 7)[:, None]
    theta = {name: value.requires_grad_() for name, value in learner.init().items()}
    loss = learner.meta_loss(theta, qs.Episode(qs.Batch(x, 2 * x), qs.Batch(xq, 2 * xq)))
    loss.backward()

    def squared_error(w, b, v, c, x):
        return ((torch.tanh(x @ w.T + b) @ v.T + c - 2 * x) ** 2).mean()

    start = [value.detach().clone().requires_grad_() for value in theta.values()]
    phi = start
    for _ in range(5):
        slopes = torch.autograd.grad(squared_error(*phi, x), phi, create_graph=True)
        phi = [value - 0.01 * slope for value, slope in zip(phi, slopes, strict=True)]
    wanted = squared_error(*phi, xq)
    assert_close(loss, wanted, 1e-14)
    slopes = dict(zip(theta, torch.autograd.grad(wanted, start), strict=True))
    assert_close({name: value.grad for name, value in theta.items()}, slopes, 1e-12)
