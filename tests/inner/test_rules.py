"""Update rules as values: torch's optimizers step by step, differentiable, kept in files by maker and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from problems import assert_close, random_episodes
from torch import Tensor

import quickstudy as qs
from quickstudy import inner
from quickstudy.engine import agreement
from quickstudy.errors import ConfigError, FileFormatError
from quickstudy.learner import Theta, describe_learner

pytestmark = pytest.mark.usefixtures("double")

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
TWINS: dict[str, tuple[inner.Rule, Optimizer]] = {
    "sgd": (inner.sgd(), lambda p: torch.optim.SGD(p, lr=0.05)),
    "decay": (inner.sgd(weight_decay=0.3), lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.3)),
    "momentum": (inner.sgd(momentum=0.8), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8)),
    "nesterov": (
        inner.sgd(momentum=0.9, nesterov=True, weight_decay=1e-2),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    ),
    "adam": (inner.adam(), lambda p: torch.optim.Adam(p, lr=0.05)),
    "adam, all": (
        inner.adam(b1=0.7, b2=0.95, eps=1e-3, weight_decay=0.2),
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.2),
    ),
}


def net() -> torch.nn.Module:
    return qs.nn.mlp(4, 3, hidden=(5,), activation="tanh")


@pytest.mark.parametrize("name", TWINS)
def test_twenty_steps_are_those_of_torchs_optimizer(name: str) -> None:
    rule, optimizer_of = TWINS[name]
    start, target = torch.randn(3, 2), torch.randn(3, 2)

    def loss_at(p: Theta) -> Tensor:
        return ((p["w"] - target) ** 4).mean() + p["w"].sin().sum()

    leaf = start.clone().requires_grad_()
    optimizer = optimizer_of([leaf])
    for phi in inner.trajectory(loss_at, {"w": start}, lr=0.05, steps=20, rule=rule):
        optimizer.zero_grad()
        loss_at({"w": leaf}).backward()
        optimizer.step()
        assert_close(phi["w"], leaf, 1e-12)


@pytest.mark.parametrize("name", TWINS)
def test_it_is_differentiated_through_all_steps(name: str) -> None:
    rule, target = TWINS[name][0], torch.randn(4)

    def end(start: Tensor) -> Tensor:
        return inner.descend(lambda p: ((p["w"] - target) ** 4).sum(), {"w": start}, lr=0.02, steps=4, rule=rule)["w"]

    assert torch.autograd.gradcheck(end, torch.randn(4, requires_grad=True), atol=1e-6)


@pytest.mark.parametrize("name", TWINS)
def test_a_gradient_of_zero_has_a_finite_derivative(name: str) -> None:
    start = {"dead": torch.zeros(2, requires_grad=True), "live": torch.ones(2, requires_grad=True)}
    rule = TWINS[name][0]
    end = inner.descend(lambda p: (p["live"] ** 2).sum() + 0 * p["dead"].sum(), start, lr=0.1, steps=3, rule=rule)
    (end["dead"].sum() + end["live"].sum()).backward()
    assert torch.isfinite(start["dead"].grad).all() and torch.isfinite(start["live"].grad).all()  # type: ignore


@pytest.mark.parametrize("engine", ["loop", "vmap", "replay"])
def test_a_learner_takes_a_value_on_every_engine(engine: str) -> None:
    named, own = (qs.MAML(net(), lr=0.1, steps=3, rule=rule) for rule in ("momentum", inner.sgd(momentum=0.9)))
    theta, episodes = named.init(), random_episodes()
    own = dataclasses.replace(own, model=named.model)
    wanted = qs.meta_gradient(named, theta, episodes)
    assert agreement.relative_difference(qs.meta_gradient(own, theta, episodes, engine), wanted) < 1e-10
    other = dataclasses.replace(named, rule=inner.sgd(momentum=0.9, nesterov=True, weight_decay=1e-4))
    assert agreement.relative_difference(qs.meta_gradient(other, theta, episodes, engine), wanted) > 1e-3


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="nesterov=True looks ahead along the momentum"):
        inner.sgd(nesterov=True)
    with pytest.raises(ConfigError, match="momentum of an update rule must be at least 0"):
        inner.sgd(momentum=-0.1)
    with pytest.raises(ConfigError, match=r"b2 of an update rule must be at least 0 and below 1; got 1\.0"):
        inner.adam(b2=1.0)
    with pytest.raises(ConfigError, match="or a value such as"):
        qs.MAML(net(), rule="lion")


# --- in files --------------------------------------------------------------------------------------------------------


def saved(learner: qs.MAML, path: Path) -> Path:
    qs.Trained(learner, learner.init(), {"name": "tasks"}).save(path)
    return path


@pytest.mark.parametrize(
    "rule", [inner.sgd(momentum=0.9, nesterov=True, weight_decay=1e-4), inner.adam(b1=0.0, eps=1e-5)]
)
def test_a_rule_is_kept_by_its_maker_and_settings(rule: inner.Rule, tmp_path: Path) -> None:
    learner = qs.MAML(net(), lr=0.1, steps=3, rule=rule)
    loaded = qs.load(saved(learner, tmp_path / "a.qs"))
    assert isinstance(loaded.learner.rule, inner.Rule)  # type: ignore[attr-defined]
    assert describe_learner(loaded.learner) == describe_learner(learner)
    support = qs.Batch(*(t[0] for t in random_episodes().support))
    assert_close(loaded.learner.adapt(loaded.theta, support), learner.adapt(loaded.theta, support), 1e-15)


def test_a_rule_or_adjoint_by_name_is_kept_by_name(tmp_path: Path) -> None:
    learner = qs.MAML(net(), rule="adam", adjoint=inner.ADJOINTS["remat"])
    fields = describe_learner(learner)["fields"]
    assert fields["rule"] == "adam" and fields["adjoint"] == "remat"
    loaded = qs.load(saved(learner, tmp_path / "a.qs")).learner
    assert (loaded.rule, loaded.adjoint) == ("adam", "remat")  # type: ignore[attr-defined]


def test_a_rule_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    signs = inner.Rule(lambda phi: None, lambda g, state: ({name: v.sign() for name, v in g.items()}, state))
    learner = qs.MAML(net(), lr=0.1, rule=signs)
    path = saved(learner, tmp_path / "a.qs")
    with pytest.raises(FileFormatError, match=r"a rule of your own, which a file cannot hold.*qs\.load\(path, rule="):
        qs.load(path)
    assert qs.load(path, rule=signs).learner.rule is signs  # type: ignore[attr-defined]


def test_a_maker_of_a_later_version_is_named() -> None:
    with pytest.raises(ConfigError, match=r"made by sgd, adam; got 'lion'\. Upgrade"):
        inner.make_rule("lion", {})
    with pytest.raises(ConfigError, match="the update rule sgd has no such settings"):
        inner.make_rule("sgd", {"warmup": 3})


def test_the_command_line_takes_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from quickstudy.cli import main

    common = ["train", "sinusoid", "maml", "--iterations", "1", "--meta-batch", "2", "--engine", "loop"]
    assert main.run([*common, "--rule", "adam", "--adjoint", "remat", "--out", str(tmp_path / "run")]) == 0
    assert qs.load(tmp_path / "run").learner.rule == "adam"  # type: ignore[attr-defined]
    capsys.readouterr()
    assert main.run([*common, "--rule", "adm", "--out", str(tmp_path / "other")]) == 2
    assert "Did you mean 'adam'" in capsys.readouterr().err
