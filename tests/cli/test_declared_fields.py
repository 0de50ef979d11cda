"""What a learner declares of its fields is all that the command line knows of it: none is recognised by its name."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch.nn.functional as F
from torch import Tensor

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.experiments import recipes
from quickstudy.learner import Batch, Encoder, Episode, Learner, Loss, NotAnOption, Theta, Ways, structural_fields
from quickstudy.learners import LEARNERS
from quickstudy.nn.model import call
from quickstudy.nn.parameters import parameters

PLAIN = (int, float, bool, str, type(None), tuple)


@dataclass(frozen=True, eq=False)
class Nearby(Learner):
    """Classify by the nearest class mean: a ProtoNet whose fields have names that nobody knows.

    It stands for a learner that is new.
    """

    body: Encoder  # maps x [n, ...] to embeddings [n, d]
    criterion: Loss = F.cross_entropy  # (output, y) -> scalar
    groups: Ways = 5  # classes in a task
    sharpness: float = 1.0  # factor of the squared distances
    note: NotAnOption[str] = "kept"  # for Python alone

    def init(self) -> Theta:
        return parameters(self.body)

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        members = F.one_hot(support.y, self.groups).to(torch_dtype(theta))
        return members.T @ call(self.body, theta, support.x) / members.sum(0)[:, None]

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return -self.sharpness * ((call(self.body, theta, x)[:, None] - phi) ** 2).sum(-1)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        phi = self.adapt(theta, episode.support)
        return self.criterion(self.predict(theta, phi, episode.query.x), episode.query.y)


def torch_dtype(theta: Theta):
    return next(iter(theta.values())).dtype


@pytest.fixture
def nearby(monkeypatch):
    monkeypatch.setitem(LEARNERS, "nearby", Nearby)


def test_a_new_learner_trains_from_the_command_line(nearby, tmp_path, capsys):
    sizes = ["--iterations", "3", "--meta-batch", "2", "--queries", "2", "--filters", "4", "--val-episodes", "2"]
    argv = ["train", "glyphs", "nearby", *sizes, "--ways", "3", "--sharpness", "0.5", "--engine", "loop"]
    assert main.run([*argv, "--out", str(tmp_path / "run")]) == 0
    fields = json.loads((tmp_path / "run" / "config.json").read_text())["learner"]["fields"]
    assert (fields["groups"], fields["sharpness"], fields["note"]) == (3, 0.5, "kept")
    assert fields["criterion"]["function"] == "cross_entropy" and fields["body"]["network"]["filters"] == 4
    assert isinstance(qs.load(tmp_path / "run" / "learner.qs").learner, Nearby)


def test_its_help_shows_the_options_and_only_these(nearby, capsys):
    with pytest.raises(SystemExit):
        main.run(["train", "glyphs", "nearby", "--help"])
    text = capsys.readouterr().out
    assert "factor of the squared distances (default: 1.0)" in text
    assert not any(f"--{name} " in text for name in ("body", "criterion", "groups", "note"))


def test_only_a_loss_or_outputs_make_a_learner_one_for_values():
    roles = {name: set(structural_fields(cls).values()) for name, cls in LEARNERS.items()}
    waves = qs.tasks.sinusoid("train", 5, 5)
    for name, cls in LEARNERS.items():
        if roles[name] & {"loss", "outputs"}:
            assert isinstance(recipes.build_learner(cls, waves, {}, {}), cls)
        else:
            with pytest.raises(qs.errors.ConfigError, match="is for classification"):
                recipes.build_learner(cls, waves, {}, {})


@pytest.mark.parametrize("name", LEARNERS)
def test_every_field_is_an_option_or_declared(name):
    """A network, a loss or a function that is not declared would become an option that nobody can give."""
    cls = LEARNERS[name]
    hints = get_type_hints(cls)
    for field in recipes.plain_fields(cls):
        assert typed(hints[field.name]), f"{cls.__name__}.{field.name}: declare what it is, see learner.py"
        assert field.default is not MISSING, f"{cls.__name__}.{field.name} is an option and needs a default"
    unknown = set(structural_fields(cls).values()) - {*recipes.ROLES, "not an option"}
    assert not unknown, f"recipes cannot make {unknown}"


def typed(kind: Any) -> bool:
    """Whether a command line can give it: plain values, or what has a name."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return str in parts or all((get_origin(part) or part) in PLAIN for part in parts)


def test_each_learner_has_its_network():
    tasks = qs.tasks.glyphs("train", 3, 1, 2)
    maps = recipes.build_learner(qs.RelationNet, tasks, {}, {"filters": 4})
    assert maps.encoder.architecture["maps"] is True
    flat = recipes.build_learner(qs.ProtoNet, tasks, {}, {"filters": 4})
    assert not flat.encoder.architecture.get("maps")
    pretrained = recipes.build_learner(qs.FineTune, tasks, {}, {"filters": 4})
    assert pretrained.model.architecture["classes"] == len(tasks.classes) and pretrained.ways == 3
    assert recipes.build_learner(qs.MAML, tasks, {}, {"filters": 4}).model.architecture["classes"] == 3
