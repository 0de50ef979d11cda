"""Ways to learn an initialisation, against closed forms and against what each reduces to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import problems
import pytest
import torch
import torch.nn.functional as F
from problems import as_episodes, assert_close, clusters, meta_gradient, random_episodes, smooth_conv
from torch import Tensor, nn

import quickstudy as qs
from quickstudy import inner
from quickstudy.engine import mapping
from quickstudy.errors import AccuracyWarning, ConfigError
from quickstudy.inner import descent, rules
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.learners.gradient.meta_curvature import transformed
from quickstudy.learners.gradient.reptile import minibatches
from quickstudy.nn.hooks import below_head
from quickstudy.nn.model import call
from quickstudy.nn.parameters import parameters
from quickstudy.nn.statistics import moments

pytestmark = pytest.mark.usefixtures("double")

ENGINES = ("loop", "threads", "vmap")
TASKS = problems.linear_tasks(4)
START = np.array([0.3, -1.2, 0.8])
RATE = 0.1


def line() -> nn.Module:
    return nn.Linear(3, 1, bias=False)


def on_line(learner: Learner, name: str = "loop", extra: Theta | None = None) -> tuple[float, np.ndarray]:
    """Loss and meta-gradient of the weight on the tasks of linear regression, at START."""
    theta = {"weight": torch.tensor(START[None])} | (extra or {})
    loss, slope = meta_gradient(learner, theta, as_episodes(TASKS), name)
    return float(loss), slope["weight"][0].numpy()


def close(found: tuple[float, np.ndarray], wanted: tuple[float, np.ndarray], rtol: float = 1e-12) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=rtol)
    np.testing.assert_allclose(found[1], wanted[1], rtol=rtol, atol=rtol)


def net(outputs: int = 3) -> nn.Module:
    return qs.nn.mlp(4, outputs, hidden=(5, 4), activation="tanh")


def one(episodes: Episode) -> Episode:
    return mapping.unstack(episodes)[0]


def same_meta_gradient(
    a: Learner, b: Learner, theta: Theta, more: Theta | None = None, relative: float = 1e-12
) -> None:
    """a at theta with `more` and b at theta: the same loss, and the same gradient in what both have."""
    episodes = random_episodes(3)
    loss_a, slope_a = qs.meta_gradient(a, theta | (more or {}), episodes)
    loss_b, slope_b = qs.meta_gradient(b, theta, episodes)
    assert_close(loss_a, loss_b, 1e-12)
    assert_close({name: slope_a[name] for name in theta}, slope_b, 1e-12)


# --- update rules ----------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda values: torch.optim.SGD(values, lr=0.1),
    "momentum": lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9),
    "adam": lambda values: torch.optim.Adam(values, lr=0.1),
    "adam_no_momentum": lambda values: torch.optim.Adam(values, lr=0.1, betas=(0.0, 0.999)),
}


def test_every_rule_has_its_twin_in_torch():
    assert rules.RULES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_rule_takes_the_steps_of_torchs_optimizer(rule):
    start, target = torch.randn(3, 2), torch.randn(3, 2)

    def loss_at(p: Theta) -> Tensor:
        return ((p["w"] - target) ** 4).sum() + p["w"].prod()

    leaf = start.clone().requires_grad_()
    optimizer = OPTIMIZERS[rule]([leaf])
    for _ in range(6):
        optimizer.zero_grad()
        loss_at({"w": leaf}).backward()
        optimizer.step()
    assert_close(descent.descend(loss_at, {"w": start}, lr=0.1, steps=6, rule=rule)["w"], leaf, 1e-12)


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_rule_is_differentiated_through_all_steps(rule):
    target = torch.randn(4)

    def end(start: Tensor) -> Tensor:
        return descent.descend(lambda p: ((p["w"] - target) ** 4).sum(), {"w": start}, lr=0.05, steps=4, rule=rule)["w"]

    assert torch.autograd.gradcheck(end, torch.randn(4, requires_grad=True), atol=1e-6)


@pytest.mark.parametrize("rule", rules.RULES)
def test_an_entry_without_gradient_stays_and_passes_its_derivative_on(rule):
    """A dead unit: its gradient is zero, exactly. The derivative of where it ends in where it starts is one."""
    start = {"dead": torch.zeros(2, requires_grad=True), "live": torch.ones(2, requires_grad=True)}
    end = descent.descend(lambda p: (p["live"] ** 2).sum() + 0 * p["dead"].sum(), start, lr=0.1, steps=3, rule=rule)
    end["dead"].sum().backward()
    assert torch.equal(start["dead"].grad, torch.ones(2)) and torch.equal(end["dead"], torch.zeros(2))


@pytest.mark.parametrize("seed", range(20))
def test_the_meta_gradient_through_adam_is_finite_with_dead_units(seed):
    """The sinusoid network of MAML in float32: some units are dead on every support set."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(seed)
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=5, rule="adam")
    theta = learner.init()
    episodes = qs.tasks.sinusoid(shots=5, queries=5).sample(4, torch.Generator().manual_seed(seed))
    support = one(episodes).support
    first = inner.gradient(lambda p: F.mse_loss(call(learner.model, p, support.x), support.y), theta)
    assert any(bool((value == 0).any()) for value in first.values())  # or the test would show nothing
    loss, slope = qs.meta_gradient(learner, theta, episodes)
    assert torch.isfinite(loss) and all(torch.isfinite(value).all() for value in slope.values())


def test_an_unknown_rule_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'adm'\. Did you mean 'adam'"):
        qs.MAML(line(), rule="adm")


def test_a_list_holds_one_rate_for_each_step():
    path = list(descent.trajectory(lambda p: p["w"].sum(), {"w": torch.zeros(1)}, lr=[1.0, 10.0], steps=3))
    assert [float(phi["w"]) for phi in path] == [-1.0, -11.0, -21.0]


# --- Reptile ---------------------------------------------------------------------------------------------------------


def reptile(steps: int = 1, **fields: Any) -> qs.Reptile:
    return qs.Reptile(line(), loss=qs.mse_loss, lr=RATE, steps=steps, **{"batch": 0, "rule": "sgd"} | fields)


@pytest.mark.parametrize("name", ENGINES)
def test_reptile_with_one_step_is_descent_on_the_joint_loss(name):
    slope = on_line(reptile(1), name)[1]
    joint = np.mean([problems.squared_slope(START, task.x, task.y) for task in TASKS], axis=0)
    np.testing.assert_allclose(slope, RATE * joint, rtol=1e-12)


@pytest.mark.parametrize("name", ENGINES)
def test_reptile_hands_in_how_far_the_task_moved(name):
    """phi_K - w_S = (I - lr H)^K (theta - w_S) with w_S the solution of the support set."""
    ends = []
    for task in TASKS:
        solution = np.linalg.lstsq(task.x, task.y, rcond=None)[0]
        shrink = np.linalg.matrix_power(np.eye(3) - RATE * problems.squared_hessian(task.x), 4)
        ends.append(solution + shrink @ (START - solution))
    loss = np.mean([problems.squared_loss(phi, task.xq, task.yq) for phi, task in zip(ends, TASKS, strict=True)])
    close(on_line(reptile(4), name), (loss, START - np.mean(ends, axis=0)), 1e-11)


def test_reptile_at_outer_rate_one_moves_to_the_mean_of_the_tasks_solutions():
    learner, episodes = reptile(3), as_episodes(TASKS)
    theta = {"weight": torch.tensor(START[None])}
    ends = [learner.adapt(theta, episode.support)["weight"] for episode in mapping.unstack(episodes)]
    trained = qs.train(_Always(learner, theta), _Fixed(episodes), iterations=1, meta_batch=4, progress=False)
    assert_close(trained.theta["weight"], torch.stack(ends).mean(0), 1e-12)


def test_the_outer_rate_of_reptile_falls_to_zero():
    outer = reptile().outer()
    optimizer = qs.training.optimizer_of(outer)([torch.zeros(1, requires_grad=True)])
    schedule = qs.training.schedule_of(outer.schedule, 4)(optimizer)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_minibatches_pass_through_all_examples_before_any_comes_again():
    data = Batch(torch.arange(6.0), torch.arange(6))
    batches = minibatches(data, 2, 6)
    assert all(len(batch.x) == 2 and torch.equal(batch.x.long(), batch.y) for batch in batches)
    for half in (batches[:3], batches[3:]):
        assert sorted(torch.cat([batch.y for batch in half]).tolist()) == list(range(6))
    order = torch.cat([batch.y for batch in batches]).tolist()
    assert order[:6] != order[6:] or order != sorted(order)


def test_minibatches_longer_than_the_data_are_the_data():
    data = Batch(torch.arange(3.0), torch.arange(3))
    assert all(torch.equal(batch.x, data.x) for batch in minibatches(data, 5, 4))


def test_minibatches_are_drawn_anew_for_each_task_and_from_the_seed():
    learner = reptile(4, batch=2)
    episodes = as_episodes([TASKS[0]] * 3)
    theta = {"weight": torch.tensor(START[None])}

    def ends(name: str) -> Tensor:
        torch.manual_seed(3)
        return qs.map_tasks(lambda episode: learner.adapt(theta, episode.support)["weight"], episodes, name)

    for name in ("loop", "vmap"):
        found = ends(name)
        assert not torch.equal(found[0], found[1])
        assert torch.equal(found, ends(name))


# --- ANIL and BOIL ---------------------------------------------------------------------------------------------------


def test_anil_on_all_parameters_is_maml():
    fields: dict[str, Any] = {"lr": 0.3, "steps": 3}
    maml, anil = qs.MAML(net(), **fields), qs.ANIL(net(), adapts="*", **fields)
    same_meta_gradient(anil, maml, maml.init())


def test_boil_that_holds_nothing_but_a_constant_and_anil_on_the_rest_are_the_same():
    fields: dict[str, Any] = {"lr": 0.3, "steps": 3}
    boil, anil = qs.BOIL(net(), **fields), qs.ANIL(net(), adapts="layer1.*,layer2.*", **fields)
    same_meta_gradient(boil, anil, boil.init())


@pytest.mark.parametrize(("cls", "moved"), [(qs.ANIL, {"head.weight", "head.bias"}), (qs.BOIL, None)])
def test_what_does_not_adapt_is_not_in_phi(cls, moved):
    learner, support = cls(net(), steps=2), one(random_episodes(1)).support
    theta = learner.init()
    phi = learner.adapt(theta, support)
    assert phi.keys() == (moved or theta.keys() - {"head.weight", "head.bias"})
    assert all(not torch.equal(value, theta[name]) for name, value in phi.items())


class _Scaled(nn.Module):
    """A head that is not the end: its output is halved, so that F.linear on its features would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))) / 2


@pytest.mark.parametrize(
    ("build", "shape"),
    [(net, (4,)), (_Scaled, (4,)), (lambda: smooth_conv("batch"), (1, 6, 6))],
    ids=["mlp", "scaled", "batch norm"],
)
@pytest.mark.parametrize("name", ENGINES)
def test_anil_with_features_computed_once_is_anil(build, shape, name):
    """Naming the head by a pattern takes the plain way through the whole model."""
    short = qs.ANIL(build(), lr=0.3, steps=3)
    plain = dataclasses.replace(short, adapts="head.*")
    episodes, theta = random_episodes(3, shape), short.init()
    found, wanted = (meta_gradient(learner, theta, episodes, name) for learner in (short, plain))
    assert_close(found[0], wanted[0], 1e-12)
    assert_close(found[1], wanted[1], 1e-10)


def test_features_below_a_head_that_is_not_the_end_are_not_taken():
    x = torch.randn(2, 4)
    assert below_head(_Scaled(), parameters(_Scaled()), x, "head.") is None
    assert below_head(net(), parameters(net()), x, "head.").shape == (2, 4)


@pytest.mark.parametrize("build", [lambda: qs.ANIL(net(), adapts="haed.*"), lambda: qs.BOIL(net(), stays="haed.*")])
def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(build):
    with pytest.raises(ConfigError, match=r"'haed\.\*'.*layer1\.weight"):
        build()


# --- learned rates and curvature -------------------------------------------------------------------------------------


def test_meta_sgd_with_one_rate_is_maml():
    sgd, maml = qs.MetaSGD(net(), lr=0.3, steps=3), qs.MAML(net(), lr=0.3, steps=3)
    theta = maml.init()
    rates = {f"rate.{name}": torch.full_like(value, 0.3) for name, value in theta.items()}
    assert_close(sgd.init() | theta, theta | rates, 1e-15)
    same_meta_gradient(sgd, maml, theta, rates)


@pytest.mark.parametrize("name", ENGINES)
def test_the_gradient_of_a_rate_is_minus_both_slopes(name):
    """After one step phi = w - a * g, so d L_Q(phi) / d a = -g * grad L_Q(phi), entry by entry."""
    learner = qs.MetaSGD(line(), loss=qs.mse_loss, lr=RATE, steps=1)
    theta = {"weight": torch.tensor(START[None]), "rate.weight": torch.tensor([[0.1, -0.2, 0.0]])}
    wanted = []
    for task in TASKS:
        g = problems.squared_slope(START, task.x, task.y)
        wanted.append(-g * problems.squared_slope(START - theta["rate.weight"][0].numpy() * g, task.xq, task.yq))
    slope = meta_gradient(learner, theta, as_episodes(TASKS), name)[1]["rate.weight"][0].numpy()
    np.testing.assert_allclose(slope, np.mean(wanted, axis=0), rtol=1e-12)


def test_meta_curvature_with_identities_is_maml():
    curved, maml = qs.MetaCurvature(net(), lr=0.3, steps=3), qs.MAML(net(), lr=0.3, steps=3)
    theta = maml.init()
    same_meta_gradient(curved, maml, theta, {n: v for n, v in curved.init().items() if n not in theta})


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 2), ()])
def test_curvature_is_a_kronecker_product(shape):
    """vec MC(G) = (M_0 kron M_1 kron M_2) vec G for row-major vec; the filter's sides are one."""
    slope = torch.randn(shape)
    sides = shape[:2] + ((shape[2] * shape[3],) if len(shape) > 2 else ()) or (1,)
    matrices = {f"g.{i}": torch.randn(n, n) for i, n in enumerate(sides)}
    product = np.eye(1)
    for i in range(len(sides)):
        product = np.kron(product, matrices[f"g.{i}"].numpy())
    found = transformed(slope, matrices, "g")
    np.testing.assert_allclose(found.numpy().reshape(-1), product @ slope.numpy().reshape(-1), rtol=1e-12, atol=1e-12)
    assert found.shape == slope.shape


def test_long_sides_keep_the_identity():
    theta = qs.MetaCurvature(qs.nn.mlp(9, 3, hidden=(4,)), largest=5).init()
    found = {name for name in theta if name.startswith("curvature.layer1.weight")}
    assert found == {"curvature.layer1.weight.0"}  # [4, 9]: the side of 9 has none


@pytest.mark.parametrize("cls", [qs.MetaSGD, qs.MAMLPlusPlus])
def test_a_model_that_takes_the_learners_prefix_is_refused(cls):
    model = nn.Sequential()
    model.add_module("rate", nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"'rate\.weight'"):
        cls(model).init()


# --- MAML++ ----------------------------------------------------------------------------------------------------------

OFF: dict[str, Any] = {
    "multi_step_loss": False,
    "derivative_order": 0.0,
    "per_step_rates": False,
    "per_step_norm": False,
    "per_step_statistics": False,
    "cosine": False,
}


@pytest.mark.parametrize("norm", ["", "batch", "support"])
def test_maml_plus_plus_with_everything_off_is_maml(norm):
    model = smooth_conv(norm) if norm else net()
    plus, maml = qs.MAMLPlusPlus(model, lr=0.3, steps=3, **OFF), qs.MAML(model, lr=0.3, steps=3)
    episodes = random_episodes(3, (1, 6, 6) if norm else (4,))
    assert plus.init().keys() == maml.init().keys() and plus.outer() == maml.outer()
    found, wanted = (qs.meta_gradient(learner, maml.init(), episodes) for learner in (plus.at(0.0), maml))
    assert_close(found[0], wanted[0], 1e-14)
    assert_close(found[1], wanted[1], 1e-13)


def test_maml_plus_plus_at_the_end_of_training_and_with_fresh_rates_is_maml():
    """The weight is on the last step alone, rates are equal, offsets zero, order two."""
    model = smooth_conv("layer")
    plus, maml = qs.MAMLPlusPlus(model, lr=0.3, steps=3), qs.MAML(model, lr=0.3, steps=3)
    episodes, theta = random_episodes(3, (1, 6, 6)), plus.init()
    assert {name.split(".")[0] for name in theta} >= {"rate", "offset"}
    found, wanted = qs.meta_gradient(plus, theta, episodes), qs.meta_gradient(maml, maml.init(), episodes)
    assert_close(found[0], wanted[0], 1e-13)
    assert_close({name: found[1][name] for name in wanted[1]}, wanted[1], 1e-12)


def test_the_weights_of_the_steps_move_to_the_last():
    learner = qs.MAMLPlusPlus(net(), steps=4, anneal=0.5)
    assert learner.at(0.0).weights() == pytest.approx([0.25] * 4)
    assert learner.at(0.25).weights() == pytest.approx([0.125] * 3 + [0.625])
    assert learner.at(0.5).weights() == [0, 0, 0, 1] == learner.weights()
    assert dataclasses.replace(learner, multi_step_loss=False).at(0.0).weights() == [0, 0, 0, 1]


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_without_steps_there_are_no_weights_and_the_loss_is_the_plain_one(progress):
    learner, episode = qs.MAMLPlusPlus(net(), steps=0).at(progress), one(random_episodes(1))
    assert learner.weights() == []
    wanted = F.cross_entropy(call(learner.model, {}, episode.query.x), episode.query.y)
    assert_close(learner.meta_loss(learner.init(), episode), wanted, 1e-12)


def test_the_multi_step_loss_is_the_weighted_sum_over_steps():
    early = qs.MAMLPlusPlus(net(), lr=0.3, steps=3, anneal=1.0, derivative_order=0.0).at(0.4)
    maml, episode = qs.MAML(early.model, lr=0.3, steps=3), one(random_episodes(1))
    theta = early.init()
    each = [dataclasses.replace(maml, steps=k).meta_loss(maml.init(), episode) for k in (1, 2, 3)]
    wanted = sum(w * loss for w, loss in zip(early.weights(), each, strict=True))
    assert_close(early.meta_loss(theta, episode), wanted, 1e-13)


def test_the_first_part_of_training_is_first_order():
    plus = qs.MAMLPlusPlus(net(), lr=0.3, steps=3, **OFF | {"derivative_order": 0.5})
    for progress, first_order in ((0.0, True), (0.49, True), (0.5, False)):
        maml = qs.MAML(plus.model, lr=0.3, steps=3, first_order=first_order)
        same_meta_gradient(plus.at(progress), maml, maml.init())


def test_rates_of_each_step_act_in_their_step():
    """On one parameter with loss w: phi_K = w - sum of the rates; more steps than were trained take the last rate."""
    learner = qs.MAMLPlusPlus(nn.Linear(1, 1, bias=False), loss=lambda o, y: o.mean(), lr=0.5, steps=2)
    theta = {"weight": torch.ones(1, 1), "rate.weight": torch.tensor([0.25, 0.5])}
    support = Batch(torch.ones(1, 1), torch.ones(1, 1))
    for steps, wanted in ((0, 1.0), (1, 0.75), (2, 0.25), (4, -0.75)):
        assert float(dataclasses.replace(learner, steps=steps).adapt(theta, support)["weight"]) == wanted


def test_offsets_of_each_step_act_in_their_step():
    model, support = smooth_conv("batch"), one(random_episodes(1, (1, 6, 6))).support
    learner = qs.MAMLPlusPlus(model, lr=0.0, steps=2)
    theta = learner.init()
    theta["offset.norm1.bias"] = torch.arange(9.0).reshape(3, 3)
    for steps in (0, 1, 2):
        phi = dataclasses.replace(learner, steps=steps).adapt(theta, support)
        assert torch.equal(phi["norm1.bias"], theta["norm1.bias"] + theta["offset.norm1.bias"][steps])


def test_averages_over_tasks_settle_at_what_the_layers_see():
    """The gradient is average - seen, summed over nothing else: one step of rate one lands on the mean over tasks."""
    model, episodes = smooth_conv("support"), random_episodes(4, (1, 6, 6))
    learner = qs.MAMLPlusPlus(model, lr=0.3, steps=1, per_step_statistics=True)
    theta = learner.init()
    slope = qs.meta_gradient(learner, theta, episodes)[1]
    seen = [moments(model, parameters(model), episode.support.x) for episode in mapping.unstack(episodes)]
    for layer in ("norm1", "norm2"):
        mean = torch.stack([s[f"{layer}.mean"] for s in seen]).mean(0)
        log_variance = torch.stack([s[f"{layer}.variance"].log() for s in seen]).mean(0)
        assert_close((theta[f"seen.{layer}.mean"] - slope[f"seen.{layer}.mean"])[0], mean, 1e-12)
        assert_close((theta[f"seen.{layer}.variance"] - slope[f"seen.{layer}.variance"])[0], log_variance, 1e-12)


def test_the_averages_are_handed_in_and_all_else_is_the_derivative():
    learner = qs.MAMLPlusPlus(smooth_conv("batch"), lr=0.3, steps=1, per_step_statistics=True)
    check = qs.check_meta_gradient(learner, one(random_episodes(1, (1, 6, 6))))
    verdicts = {entry.name: entry.verdict for entry in check.entries}
    handed_in = {name for name, verdict in verdicts.items() if verdict == "handed in"}
    assert check.ok and handed_in == {name for name in verdicts if name.startswith("seen.")}


def test_an_inductive_test_normalises_with_the_support_set_or_with_the_averages():
    model, (support, query) = smooth_conv("support"), one(random_episodes(1, (1, 6, 6)))
    learner = qs.MAMLPlusPlus(model, lr=0.3, steps=1, per_step_statistics=True)
    theta = learner.init()
    theta["seen.norm1.variance"] += 1.0
    phi = learner.adapt(theta, support)
    assert_close(phi["norm1.variance"], torch.full((3,), np.e), 1e-12)
    plain = dataclasses.replace(learner, per_step_statistics=False).adapt(theta, support)
    assert_close(plain["norm1.variance"], moments(model, plain, support.x)["norm1.variance"], 1e-12)
    assert_close(learner.predict(theta, phi, query.x), call(model, phi, query.x), 1e-15)


def test_the_training_loop_says_where_in_training_it_is():
    seen: list[float] = []
    learner = _Spy(seen)
    qs.train(learner, clusters(), iterations=4, meta_batch=1, engine="loop", progress=False)
    assert seen == [0.0, 0.25, 0.5, 0.75]


# --- implicit MAML ---------------------------------------------------------------------------------------------------

LAM = 0.7


def implicit(steps: int = 400, **fields: Any) -> qs.IMAML:
    settings: dict[str, Any] = {"lr": RATE, "lam": LAM, "cg_steps": 10, "tolerance": 1e-10}
    return qs.IMAML(line(), loss=qs.mse_loss, steps=steps, **settings | fields)


def ridge(task: problems.Linear) -> tuple[float, np.ndarray]:
    """phi* = (H + lam I)^{-1} (H w_S + lam theta) in closed form, and its meta-gradient (I + H / lam)^{-1} grad L_Q."""
    h = problems.squared_hessian(task.x)
    right = 2 * task.x.T @ task.y / len(task.y) + LAM * START
    phi = np.linalg.solve(h + LAM * np.eye(3), right)
    slope = problems.squared_slope(phi, task.xq, task.yq)
    return problems.squared_loss(phi, task.xq, task.yq), np.linalg.solve(np.eye(3) + h / LAM, slope)


@pytest.mark.parametrize("name", ENGINES)
def test_implicit_maml_on_ridge_regression(name):
    close(on_line(implicit(), name), problems.average([ridge(task) for task in TASKS]), 1e-9)


def test_the_implicit_gradient_is_the_limit_of_the_unrolled_one():
    """Differentiating through 300 steps of the proximal problem on a network that bends."""
    learner = qs.IMAML(net(), lr=0.2, steps=300, lam=1.5, cg_steps=60, tolerance=1e-9)
    theta, episode = learner.init(), one(random_episodes(1))
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}

    def proximal(phi: Theta) -> Tensor:
        pull = sum(((phi[name] - leaves[name]) ** 2).sum() for name in phi)
        return F.cross_entropy(call(learner.model, phi, episode.support.x), episode.support.y) + 0.75 * pull

    phi = descent.descend(proximal, leaves, lr=0.2, steps=300)
    loss = F.cross_entropy(call(learner.model, phi, episode.query.x), episode.query.y)
    wanted = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    found = qs.meta_gradient(learner, theta, Episode(*(Batch(b.x[None], b.y[None]) for b in episode)))
    assert_close(found[0], loss, 1e-12)
    assert_close(found[1], wanted, 1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_an_unsolved_system_is_told(name):
    with pytest.warns(AccuracyWarning, match="cg_steps=1 above its tolerance 1e-10"):
        on_line(implicit(5, cg_steps=1), name)


def test_conjugate_gradient_solves_in_as_many_steps_as_there_are_unknowns():
    a = torch.randn(5, 5)
    a, b = a @ a.T + torch.eye(5), torch.randn(5)
    x, residual = inner.conjugate_gradient(lambda v: {"v": a @ v["v"]}, {"v": b}, steps=5)
    assert_close(x["v"], torch.linalg.solve(a, b), 1e-10)
    assert float(residual) < 1e-10


def test_conjugate_gradient_stops_at_its_tolerance_and_tells_the_true_residual():
    a = torch.diag(torch.linspace(1, 100, 30))
    b, calls = torch.ones(30), []

    def product(v: Theta) -> Theta:
        calls.append(1)
        return {"v": a @ v["v"]}

    x, residual = inner.conjugate_gradient(product, {"v": b}, steps=30, tolerance=0.1)
    assert 1 < len(calls) < 15 and float(residual) <= 0.1
    assert float((a @ x["v"] - b).norm() / b.norm()) == pytest.approx(float(residual), rel=1e-9)


def test_conjugate_gradient_under_vmap_holds_what_is_solved():
    scales = torch.tensor([1.0, 2.0, 3.0])

    def solve(b: Tensor) -> Tensor:
        return inner.conjugate_gradient(lambda v: {"v": scales * v["v"]}, {"v": b}, steps=8, tolerance=1e-12)[0]["v"]

    b = torch.stack([torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), torch.randn(3)])
    assert_close(torch.func.vmap(solve)(b), b / scales, 1e-10)


# --- CAVIA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"context": 0}, {"steps": 0}], ids=["no context", "no steps"])
def test_cavia_without_context_or_steps_is_the_network_itself(fields):
    learner, (support, query) = qs.CAVIA(net(), **{"context": 3, "steps": 2} | fields), one(random_episodes(1))
    theta = learner.init()
    found = learner.predict(theta, learner.adapt(theta, support), query.x)
    assert_close(found, call(learner.model, parameters(learner.model), query.x), 1e-15)


def test_a_shift_of_the_first_layer_is_a_context_joined_to_the_input():
    """W [x, c] = W_x x + W_c c: the paper's network for regression, written out."""
    learner = qs.CAVIA(net(2), loss=qs.mse_loss, lr=0.3, steps=3, context=3, conditioning="shift")
    theta, episode = learner.init(), one(random_episodes(1, ways=None))
    episode = Episode(*(Batch(b.x, b.y.repeat(1, 2)) for b in episode))
    joined = qs.nn.mlp(7, 2, hidden=(5, 4), activation="tanh")
    first = torch.cat([theta["layer1.weight"], theta["context.weight"]], 1)
    params = {name: theta[name] for name in parameters(net(2))} | {"layer1.weight": first}

    def loss(c: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(call(joined, params, torch.cat([batch.x, c.expand(len(batch.x), 3)], 1)), batch.y)

    c = torch.zeros(3)
    for _ in range(3):
        c = c - 0.3 * torch.func.grad(loss)(c, episode.support)
    assert_close(learner.adapt(theta, episode.support)["context"], c, 1e-12)
    assert_close(learner.meta_loss(theta, episode), loss(c, episode.query), 1e-12)


def test_film_scales_and_shifts_each_channel():
    h, scale, shift = torch.randn(2, 3, 4, 4), torch.randn(3), torch.randn(3)
    found = qs.nn.film.film(h, scale, shift)
    for channel in range(3):
        assert_close(found[:, channel], (1 + scale[channel]) * h[:, channel] + shift[channel], 1e-15)


def test_where_a_model_is_conditioned_unless_said():
    assert qs.CAVIA(qs.nn.conv4(1, 5, filters=4))._layer() == "block3.norm"
    assert qs.CAVIA(qs.nn.conv4(1, 5, filters=4, norm="none"))._layer() == "block3.conv"
    assert qs.CAVIA(net())._layer() == "layer1"
    with pytest.raises(ConfigError, match=r"'layer9'; it has flatten, layer1.*Did you mean"):
        qs.CAVIA(net(), layer="layer9")
    with pytest.raises(ConfigError, match="'film' or 'shift'"):
        qs.CAVIA(net(), conditioning="scale")


# --- learners for the tests above ------------------------------------------------------------------------------------


class _Fixed:
    """The same episodes each time."""

    def __init__(self, episodes: Episode) -> None:
        self.episodes = episodes

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        return self.episodes


@dataclasses.dataclass(frozen=True, eq=False)
class _Always(Learner):
    """Another learner that starts from a given theta."""

    other: Any
    theta: Any

    def init(self) -> Theta:
        return self.theta

    def adapt(self, theta: Theta, support: Batch) -> Any:
        return self.other.adapt(theta, support)

    def predict(self, theta: Theta, phi: Any, x: Tensor) -> Tensor:
        return self.other.predict(theta, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return self.other.meta_loss(theta, episode)

    def outer(self) -> qs.Outer:
        return self.other.outer()


@dataclasses.dataclass(frozen=True, eq=False)
class _Spy(Learner):
    """Writes down which points of training it was asked for."""

    seen: Any

    def init(self) -> Theta:
        return {"w": torch.zeros(4, 3)}

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        return theta

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return x @ phi["w"]

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return F.cross_entropy(self.predict(theta, theta, episode.query.x), episode.query.y)

    def at(self, progress: float) -> _Spy:
        self.seen.append(progress)
        return self
