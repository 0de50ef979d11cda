"""The ways to differentiate an inner loop: exact ones against `unroll`, the implicit one against its closed form."""

from __future__ import annotations

import dataclasses
import weakref

import problems
import pytest
import torch
from problems import assert_close, random_episodes, smooth_conv
from torch import Tensor, nn

import quickstudy as qs
from quickstudy import inner
from quickstudy.base import seeds
from quickstudy.engine import agreement, mapping
from quickstudy.errors import AccuracyWarning, ConfigError
from quickstudy.inner.adjoints import adjoint_of
from quickstudy.inner.descent import descend
from quickstudy.learner import Episode, Learner

pytestmark = pytest.mark.usefixtures("double")

EXACT = ("remat", "mixed")


def net() -> nn.Module:
    return qs.nn.mlp(4, 3, hidden=(5, 4), activation="tanh")


LEARNERS = {
    "maml": lambda: qs.MAML(net(), lr=0.2, steps=3),
    "maml-adam": lambda: qs.MAML(net(), lr=0.05, steps=3, rule="adam"),
    "maml-momentum": lambda: qs.MAML(net(), lr=0.2, steps=2, rule="momentum"),
    "maml++": lambda: qs.MAMLPlusPlus(net(), lr=0.2, steps=2),
    "anil": lambda: qs.ANIL(net(), lr=0.2, steps=3),
    "anil-more": lambda: qs.ANIL(net(), lr=0.2, steps=2, adapts="*.weight"),
    "boil": lambda: qs.BOIL(net(), lr=0.2, steps=2),
    "cavia": lambda: qs.CAVIA(net(), lr=0.5, steps=2, context=3),
    "metasgd": lambda: qs.MetaSGD(net(), lr=0.2, steps=2),
    "metacurvature": lambda: qs.MetaCurvature(net(), lr=0.2, steps=2),
    "leo": lambda: qs.LEO(net(), width=3, ways=3, latent=4, steps=2, finetune_steps=2),
}


class Recurrent(nn.Module):
    """torch's own layer, which has no rule for vmap: [n, 5, 2] -> [n, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attentive(nn.Module):
    """A layer of a transformer: [n, 5, 4] -> [n, 3]."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


IMAGE = (1, 6, 6)
NETWORKS = {
    "conv": (lambda: smooth_conv(), IMAGE),
    "conv-batch": (lambda: smooth_conv("batch"), IMAGE),
    "conv-support": (lambda: smooth_conv("support"), IMAGE),
    "conv-layer": (lambda: smooth_conv("layer"), IMAGE),
    "pooled": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
        IMAGE,
    ),
    "lstm": (Recurrent, (5, 2)),
    "transformer": (Attentive, (5, 4)),
    "line": (lambda: nn.Linear(4, 3), (4,)),
}


def same_as_unroll(learner: Learner, episodes: Episode, adjoint: str, name: str) -> None:
    theta = learner.init()
    with seeds.restored():
        wanted = mapping.meta_gradient(learner, theta, episodes, "loop")
    found = mapping.meta_gradient(dataclasses.replace(learner, adjoint=adjoint), theta, episodes, name)  # type: ignore
    assert agreement.relative_difference(found, wanted) < 1e-10


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
@pytest.mark.parametrize("adjoint", EXACT)
@pytest.mark.parametrize("learner", LEARNERS)
def test_exact_adjoints_of_every_learner(learner: str, adjoint: str, name: str) -> None:
    built = LEARNERS[learner]()
    if isinstance(built, qs.LEO):
        built = dataclasses.replace(built, sample=False)
    with problems.cores(2):
        same_as_unroll(built, random_episodes(), adjoint, name)


@pytest.mark.parametrize("name", ["loop", "vmap", "replay"])
@pytest.mark.parametrize("adjoint", EXACT)
@pytest.mark.parametrize("network", NETWORKS)
def test_exact_adjoints_of_every_network(network: str, adjoint: str, name: str) -> None:
    build, shape = NETWORKS[network]
    if network == "lstm" and (name == "vmap" or adjoint == "mixed"):
        pytest.skip("torch's LSTM has no rule for vmap, nor for forward differentiation")
    same_as_unroll(qs.MAML(build(), lr=0.1, steps=2), random_episodes(shape=shape), adjoint, name)


@pytest.mark.parametrize("adjoint", EXACT)
def test_exact_adjoints_of_values(adjoint: str) -> None:
    learner = qs.MAML(qs.nn.mlp(4, 1, activation="tanh"), loss=qs.mse_loss, lr=0.1, steps=3)
    for name in ("loop", "vmap"):
        same_as_unroll(learner, random_episodes(ways=None), adjoint, name)


@pytest.mark.parametrize("adjoint", EXACT)
def test_what_is_computed_again_draws_the_same_numbers(adjoint: str) -> None:
    """Dropout in the inner loop: the second computation must drop what the first did."""
    learner = qs.MAML(Attentive(dropout=0.5), lr=0.1, steps=2)
    theta, episodes, found = learner.init(), random_episodes(1, shape=(5, 4)), []
    for way in ("unroll", adjoint):
        torch.manual_seed(7)
        found.append(mapping.meta_gradient(dataclasses.replace(learner, adjoint=way), theta, episodes))
        found.append(({}, {"after": torch.rand(3)}))
    assert agreement.relative_difference(found[2], found[0]) < 1e-10
    assert torch.equal(found[1][1]["after"], found[3][1]["after"])


@pytest.mark.parametrize("adjoint", EXACT)
def test_a_step_keeps_nothing_of_its_graph(adjoint: str) -> None:
    """What a step saves for the backward pass is phi and the support set, counted by hooks, not activations."""
    learner = qs.MAML(qs.nn.mlp(4, 3, hidden=(50, 50)), lr=0.1)
    theta = {name: value.requires_grad_() for name, value in learner.init().items()}
    episode = mapping.unstack(random_episodes(1, shots=20))[0]

    def saved(adjoint: str, steps: int) -> int:
        kept: list[weakref.ref[Tensor]] = []

        def keep(t: Tensor) -> Tensor:
            kept.append(weakref.ref(t))
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = dataclasses.replace(learner, adjoint=adjoint, steps=steps).meta_loss(theta, episode)
        alive = {t.data_ptr(): t.numel() for ref in kept if (t := ref()) is not None}
        assert loss.requires_grad
        return sum(alive.values())

    size = sum(value.numel() for value in theta.values())
    each = (saved(adjoint, 6) - saved(adjoint, 2)) / 4
    assert each <= 1.01 * size < (saved("unroll", 6) - saved("unroll", 2)) / 4


def test_a_hidden_tensor_is_refused_where_its_derivative_would_be_lost() -> None:
    scale, start = torch.ones(1, requires_grad=True), {"w": torch.ones(2, requires_grad=True)}

    def loss_at(phi: dict[str, Tensor]) -> Tensor:
        return (scale * phi["w"] ** 2).sum()

    for adjoint in EXACT:
        with pytest.raises(ConfigError, match=r"shape \[1\].*neither phi nor `given`"):
            descend(loss_at, start, lr=0.1, steps=1, adjoint=adjoint)
        given = descend(lambda p, s: (s * p["w"] ** 2).sum(), start, given=(scale,), lr=0.1, steps=1, adjoint=adjoint)
        assert_close(torch.autograd.grad(given["w"].sum(), scale)[0], torch.tensor([-0.4]), 1e-12)


# --- implicit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_the_implicit_adjoint_by_hand(name: str) -> None:
    """Linear regression: (I + lr K H)^{-1} grad L_Q(phi_K), a system of 3 unknowns that conjugate gradient solves."""
    import numpy as np

    tasks, start, rate, steps = problems.linear_tasks(4), np.array([0.3, -1.2, 0.8]), 0.05, 4
    learner = qs.MAML(nn.Linear(3, 1, bias=False), loss=qs.mse_loss, lr=rate, steps=steps, adjoint="implicit")
    slope = mapping.meta_gradient(learner, {"weight": torch.tensor(start[None])}, problems.as_episodes(tasks), name)[1]
    wanted = [
        np.linalg.solve(
            np.eye(3) + rate * steps * problems.squared_hessian(task.x),
            problems.fomaml_closed_form(start, task, rate, steps)[1],
        )
        for task in tasks
    ]
    np.testing.assert_allclose(slope["weight"][0].numpy(), np.mean(wanted, 0), rtol=1e-6)


@pytest.mark.parametrize("learner", ["maml", "anil", "anil-more", "boil", "cavia"])
def test_the_implicit_adjoint_is_exact_to_first_order_in_the_rate(learner: str) -> None:
    """Its error against unroll falls with the square of the rate, that of first_order with the rate."""
    built, episodes = LEARNERS[learner](), random_episodes()
    theta = built.init()

    def error(adjoint: str, rate: float) -> float:
        one = dataclasses.replace(built, lr=rate)
        wanted = mapping.meta_gradient(one, theta, episodes)
        return agreement.relative_difference(
            mapping.meta_gradient(dataclasses.replace(one, adjoint=adjoint), theta, episodes), wanted
        )

    ratio = error("implicit", 0.02) / error("implicit", 0.01)
    assert 3.5 < ratio < 4.5
    for name in ("threads", "vmap"):
        one = dataclasses.replace(built, adjoint="implicit", lr=0.02)
        both = [mapping.meta_gradient(one, theta, episodes, way) for way in ("loop", name)]
        assert agreement.relative_difference(*both) < 1e-6


def test_the_implicit_adjoint_says_what_it_cannot() -> None:
    with pytest.raises(ConfigError, match="unroll, remat, mixed, first_order; got 'implicit'"):
        qs.MetaSGD(net(), adjoint="implicit")
    with pytest.raises(ConfigError, match="one inner learning rate"):
        descend(lambda p: p["w"].sum(), {"w": torch.ones(1)}, lr={"w": torch.ones(1)}, steps=1, adjoint="implicit")
    episodes = random_episodes(2)
    for rule in ("momentum", "adam"):  # its formula is that of plain descent
        learner = qs.MAML(net(), adjoint="implicit", rule=rule)
        with pytest.raises(ConfigError, match='rule="sgd"'):
            mapping.meta_gradient(learner, learner.init(), episodes)
    steep = {"w": torch.linspace(1, 60, 60, requires_grad=True)}
    with pytest.warns(AccuracyWarning, match="conjugate gradient stopped"):
        phi = descend(
            lambda p: (torch.logspace(0, 4, 60) * p["w"] ** 2).sum(), steep, lr=0.1, steps=3, adjoint="implicit"
        )
        phi["w"].sum().backward()


def bowl(p: dict[str, Tensor]) -> Tensor:
    return (p["w"] ** 2).sum()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"transform": lambda gradient: {"w": 3 * gradient["w"]}}, "knows nothing of a `transform`"),
        ({"rule": inner.sgd(weight_decay=0.1)}, 'rule="sgd"'),
        ({"rule": inner.sgd(momentum=0.1)}, 'rule="sgd"'),
        ({"loss_at": [bowl, lambda p: 2 * bowl(p)]}, "one loss in all steps; got 2 losses"),
        ({"lr": [0.1, 0.2]}, "one inner learning rate"),
    ],
)
def test_what_the_implicit_derivative_would_leave_out_is_refused(settings: dict, why: str) -> None:
    """Each of these changes the path, and not the formula: the derivative would be a wrong number in silence."""
    given = {"loss_at": bowl, "lr": 0.1, **settings}
    with pytest.raises(ConfigError, match=why):
        descend(start={"w": torch.ones(2)}, steps=3, adjoint="implicit", **given)
    assert descend(start={"w": torch.ones(2)}, steps=3, adjoint="unroll", **given)["w"].isfinite().all()


def test_a_plain_rule_as_a_value_has_the_implicit_derivative() -> None:
    ends = []
    for rule in ("sgd", inner.sgd()):
        start = {"w": torch.ones(2, requires_grad=True)}
        descend(bowl, start, lr=0.1, steps=3, adjoint="implicit", rule=rule)["w"].sum().backward()
        ends.append(start["w"].grad)
    assert torch.equal(*ends)  # type: ignore[arg-type]
    assert_close(ends[0], torch.full((2,), 1 / (1 + 0.1 * 3 * 2)), 1e-6)  # (I + lr K H)^{-1}, H = 2 I


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_a_single_gradient_refuses_adjoints_that_are_not_its_own(adjoint: str) -> None:
    """They were taken for "unroll"."""
    with pytest.raises(ConfigError, match=f"unroll, remat, mixed, first_order; got '{adjoint}'"):
        inner.gradient(bowl, {"w": torch.ones(2)}, adjoint=adjoint)


@pytest.mark.parametrize("outer", ["tape", "transform"])
def test_first_order_cuts_what_the_loss_closes_over_too(outer: str) -> None:
    """grad (a w^2) = 2 a w is a constant for the outer derivative in a, whoever takes it."""

    def end(a: Tensor) -> Tensor:
        gradient = inner.gradient(lambda p: (a * p["w"] ** 2).sum(), {"w": torch.ones(2)}, adjoint="first_order")
        return (a * gradient["w"]).sum()

    a = torch.tensor([1.0, 3.0], requires_grad=True)
    found = torch.autograd.grad(end(a), a)[0] if outer == "tape" else torch.func.grad(end)(a.detach())
    assert_close(found, 2 * a, 1e-15)


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_learner_names_its_exact_twin(learner: str) -> None:
    built = LEARNERS[learner]()
    assert built.exact() is built
    for adjoint in ("remat", inner.ADJOINTS["mixed"]):
        exact = dataclasses.replace(built, adjoint=adjoint)  # type: ignore[type-var]
        assert exact.exact() is exact
    twin = dataclasses.replace(built, adjoint="first_order").exact()  # type: ignore[type-var]
    assert twin is not None and twin.exact() is twin and adjoint_of(twin).exact


def test_maml_plus_plus_is_exact_once_it_takes_the_second_order() -> None:
    learner = qs.MAMLPlusPlus(net(), steps=2, derivative_order=0.5)
    assert learner.exact() is learner and learner.at(0.5).exact().progress == 0.5  # type: ignore[union-attr]
    twin = learner.at(0.2).exact()
    assert twin is not None and twin.exact() is twin and twin.derivative_order == 0  # type: ignore[attr-defined]
    assert qs.Reptile(net()).exact() is None
