"""The check of a meta-gradient: right ones pass, and each way of being wrong is found and named."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import random_episodes, smooth_conv
from torch import Tensor, nn

import quickstudy as qs
from benchmarks.layers.measure import ByTransform
from quickstudy.cli import main
from quickstudy.engine import agreement, mapping
from quickstudy.engine.check import finite_differences
from quickstudy.errors import ConfigError, DataError
from quickstudy.learner import Batch, Episode, Learner, Theta


def episode(*shape: int, ways: int | None = 3) -> Episode:
    return mapping.unstack(random_episodes(1, shape, ways))[0]


class Net(nn.Module):
    """[n, 4] -> a linear map, `middle`, tanh, a head for 3 classes. `scale` is what `middle` may use."""

    def __init__(self, middle: Callable[[Tensor, Tensor], Tensor] = lambda z, scale: z * scale) -> None:
        super().__init__()
        self.body, self.scale, self.middle, self.head = (
            nn.Linear(4, 5),
            nn.Parameter(torch.ones(5)),
            middle,
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.body(x), self.scale)))


class Over(nn.Module):
    """A layer that gives a tuple over time [n, 5, 4], averaged and classified."""

    def __init__(self, layer: nn.Module, inputs: int = 1) -> None:
        super().__init__()
        self.layer, self.inputs, self.head = layer, inputs, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(*[x] * self.inputs)[0].mean(1))


def check(model: nn.Module, *shape: int, **fields: Any) -> qs.GradientCheck:
    return qs.check_meta_gradient(qs.MAML(model, **{"lr": 0.3, "steps": 2} | fields), episode(*shape or (4,)))


def works(found: qs.GradientCheck) -> dict[str, bool]:
    return {each.name: each.works for each in found.engines}


def reason(found: qs.GradientCheck, name: str) -> str:
    return next(each.reason for each in found.engines if each.name == name)


# --- right -----------------------------------------------------------------------------------------------------------


def attention() -> nn.Module:
    return Over(nn.MultiheadAttention(4, 2, batch_first=True), inputs=3)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: qs.nn.mlp(4, 3), (4,)),
        (Net, (4,)),
        (lambda: smooth_conv("layer"), (1, 6, 6)),
        (lambda: qs.nn.conv4(channels=1, classes=3, filters=4, size=16), (1, 16, 16)),
        (attention, (5, 4)),
    ],
    ids=["relu mlp", "own module", "conv", "conv4", "attention"],
)
def test_right_networks_pass_on_every_engine(build, shape):
    found = check(build(), *shape)
    assert found.ok and not found.approximate
    assert works(found) == {"loop": True, "threads": True, "vmap": True, "replay": True}
    assert found.difference < 1e-5 and found.cosine > 1 - 1e-9
    assert str(found).startswith("ok: the meta-gradient of MAML is the derivative of its meta-loss")


def test_what_vmap_cannot_do_is_told_with_the_reason():
    found = check(Over(nn.LSTM(4, 4, batch_first=True)), 5, 4)
    assert found.ok
    assert works(found) == {"loop": True, "threads": True, "vmap": False, "replay": True}
    assert "batching rule for nn.LSTM" in reason(found, "vmap")


def test_what_vmap_does_wrongly_is_told():
    """torch's rule for a fused layer norm under vmap is wrong where a transform takes the first derivative."""
    net = Net(lambda z, scale: F.layer_norm(z, (5,), scale))
    found = qs.check_meta_gradient(ByTransform(net), episode(4))
    assert found.ok
    assert not works(found)["vmap"] and "off by" in reason(found, "vmap")
    assert works(found)["replay"]  # which is recorded where torch's rule is right
    assert works(check(net))["vmap"]  # ours is taken on the tape


@pytest.mark.parametrize(
    "drop", [nn.Dropout(0.5), lambda z: F.dropout(z, 0.5)], ids=["a layer, switched off", "a function, repeated"]
)
def test_dropout_is_checked_and_kept_off_threads(drop):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    before = torch.get_rng_state()
    found = check(nn.Sequential(model, drop) if isinstance(drop, nn.Module) else Net(lambda z, scale: drop(z * scale)))
    assert found.ok
    assert works(found) == {"loop": True, "threads": False, "vmap": True, "replay": False}
    assert "random" in reason(found, "threads") and "random" in reason(found, "replay")
    if isinstance(drop, nn.Module):
        assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn from the caller's stream


def test_regression_and_other_learners_pass():
    learners = [
        (qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=3), episode(1, ways=None)),
        (qs.ProtoNet(qs.nn.mlp(4, None), ways=3), episode(4)),
    ]
    for learner, task in learners:
        found = qs.check_meta_gradient(learner, task)
        assert found.ok and all(entry.verdict == "right" for entry in found.entries)
    assert qs.check_meta_gradient(qs.NearestCentroid(ways=3), episode(4)).ok


def test_nothing_given_is_changed():
    learner, task = qs.MAML(Net()), episode(4)
    theta, dtype = learner.init(), torch.get_default_dtype()
    before = [t.clone() for t in (*theta.values(), *learner.model.state_dict().values(), *task.support, *task.query)]
    qs.check_meta_gradient(learner, task, theta)
    after = (*theta.values(), *learner.model.state_dict().values(), *task.support, *task.query)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.get_default_dtype() == dtype


# --- wrong -----------------------------------------------------------------------------------------------------------


class HalfForgotten(torch.autograd.Function):
    """z * scale, with half of the gradient of `scale`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(z, scale)
        return z * scale

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z, scale = ctx.saved_tensors
        return g * scale, (g * z).sum(0) / 2


class OnceOnly(torch.autograd.Function):
    """z * scale with a right gradient that is a constant for the second derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(z, scale)
        return z * scale

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z, scale = (t.detach() for t in ctx.saved_tensors)
        return g * scale, (g * z).sum(0)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_wrong_derivative_is_found_and_named(first_order):
    """Also under a learner that is approximate by design: there the exact derivative is wrong."""
    found = check(Net(HalfForgotten.apply), first_order=first_order)
    assert not found.ok
    assert "scale" in found.named("wrong")
    assert "it begins at: scale (" in str(found)


def test_a_wrong_derivative_without_inner_steps_is_found_in_its_entry_alone():
    found = check(Net(HalfForgotten.apply), steps=0)
    assert found.named("wrong") == ["scale"]
    assert next(e for e in found.entries if e.name == "scale").difference == pytest.approx(0.5, abs=1e-3)
    assert "wrong: scale by 50 %" in str(found)


def test_a_wrong_second_derivative_is_told_from_a_wrong_first():
    found = check(Net(OnceOnly.apply))
    assert not found.ok and found.named("wrong")
    assert "plain gradient is right: look at second derivatives" in str(found)


def test_an_error_across_the_gradient_is_found():
    """Of the right length along g, and wrong at right angles to it: the random directions see it."""

    class Turned(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scale: Tensor) -> Tensor:
            return scale.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            return g + torch.tensor([1e-3, 0, 0, 0, 0]).to(g)

    found = check(Net(lambda z, scale: z * Turned.apply(scale)), steps=0)
    assert found.named("wrong") == ["scale"]


def test_a_gradient_that_is_cut_off_is_found():
    found = check(Net(lambda z, scale: z * scale.detach()))
    assert found.named("cut off") == ["scale"] and not found.ok
    assert "detach()" in str(found)


def test_an_error_that_ones_hide_is_found_nearby():
    """scale^2 with the derivative of 2 scale - 1: equal where scale is 1, as in a fresh layer."""

    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scale: Tensor) -> Tensor:
            return scale**2

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            return 2 * g

    assert check(Net(lambda z, scale: z * Squared.apply(scale)), steps=0).named("wrong") == ["scale"]


def test_nan_is_found_and_the_parameter_named():
    """The square root has no derivative at 0; the head stands after it."""
    found = check(Net(lambda z, scale: z + ((z - z) * scale).sqrt()))
    assert not found.ok
    assert set(found.named("not finite")) >= {"scale", "body.weight", "body.bias"}
    assert "it begins at: scale, body.weight, body.bias (" in str(found)
    assert "in float32 not finite" in str(found)


def test_nan_in_the_second_derivative_alone_is_found():
    """The norm of zero: torch takes 0 for its derivative, and has none for the second."""
    found = check(Net(lambda z, scale: z * scale + (z - z).norm(dim=1, keepdim=True)))
    assert not found.ok and found.named("not finite")
    assert "plain gradient is right" in str(found)


def test_float32_alone_can_overflow():
    found = check(Net(lambda z, scale: z * scale + 0 * (100 + 0 * z).exp()))
    assert not found.ok and not found.named("not finite", "wrong")
    assert "in float32 not finite" in str(found)
    assert "right in float64" in str(found)


# --- told, but no fault ----------------------------------------------------------------------------------------------


def test_first_order_is_an_approximation():
    learner, task = qs.MAML(qs.nn.mlp(4, 3, activation="tanh"), lr=0.5, steps=3, first_order=True), episode(4)
    found = qs.check_meta_gradient(learner, task)
    assert found.ok and found.approximate
    assert {entry.verdict for entry in found.entries} == {"approximate"}
    # Against both gradients, written out.
    exact, double = dataclasses.replace(learner, first_order=False), agreement.to_double(task)
    f, g = (gradient(agreement.in_double(each), double) for each in (exact, learner))
    assert found.difference == pytest.approx(float((f - g).norm() / f.norm()))
    assert found.cosine == pytest.approx(float(f @ g / (f.norm() * g.norm())))
    assert "approximation: differs by" in str(found)


def gradient(learner: Learner, task: Episode) -> Tensor:
    batch = Episode(*(Batch(*(t[None] for t in part)) for part in task))
    return torch.cat([value.flatten() for value in qs.meta_gradient(learner, learner.init(), batch)[1].values()])


@dataclass(frozen=True, eq=False)
class Handing(Learner):
    """A learner that hands in twice the gradient of its quadratic loss, turned by a given angle."""

    approximate: ClassVar[bool] = True

    def init(self) -> Theta:
        return {"w": torch.tensor([3.0, 4.0])}

    def adapt(self, theta: Theta, support: Batch) -> Theta:
        return theta

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return x

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        w = theta["w"]
        turned = torch.stack([w[0] - w[1], w[0] + w[1]]) * 2  # of w: by 45 degrees, sqrt(8) times as long
        return qs.with_gradient((w**2).sum() / 2, theta, {"w": turned})


@dataclass(frozen=True, eq=False)
class Undeclared(Learner):
    """The same without saying so."""

    init, adapt, predict, meta_loss = Handing.init, Handing.adapt, Handing.predict, Handing.meta_loss


def test_a_gradient_handed_in_is_an_approximation_where_declared():
    found = qs.check_meta_gradient(Handing(), episode(4))
    assert found.ok and found.approximate
    assert found.cosine == pytest.approx(0.5**0.5, abs=1e-6)
    assert found.difference == pytest.approx(5**0.5, abs=1e-6)  # |f - g|^2 = |f|^2 (1 + 8 - 2 sqrt(8) cos 45) = 5
    wrong = qs.check_meta_gradient(Undeclared(), episode(4))
    assert wrong.named("wrong") == ["w"] and "approximate = True" in str(wrong)


def test_unused_and_zero_parameters_are_told():
    unused = check(Net(lambda z, scale: z))
    assert unused.ok and unused.named("unused") == ["scale"]
    assert "unused: scale (the meta-loss does not depend on it)" in str(unused)
    cancelled = check(Net(lambda z, scale: scale * (z - z.mean(0))))
    assert cancelled.ok and cancelled.named("zero") == ["body.bias"]


def test_a_kink_under_theta_is_told_from_a_wrong_derivative():
    """relu(0 + b) at b = 0: a black background, a fresh bias. Half of the slope is what differences see."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].bias.zero_()
    task = episode(4)
    dark = Episode(*(Batch(batch.x * (torch.arange(len(batch.x)) > 2)[:, None], batch.y) for batch in task))
    found = qs.check_meta_gradient(qs.MAML(model, lr=0.3, steps=1), dark)
    assert found.ok and found.named("kink") == ["0.bias"]


def test_what_never_settles_is_not_called_right():
    found = check(Net(lambda z, scale: (z * scale).float().to(z.dtype)))
    assert not found.ok and found.named("unsettled")


# --- the mathematics -------------------------------------------------------------------------------------------------


def test_few_directions_measure_the_whole_difference():
    """f and g known, of 400 numbers: |f - g| from directions along and across g."""
    torch.manual_seed(3)
    f = torch.randn(400, dtype=torch.float64)

    @dataclass(frozen=True, eq=False)
    class Plane(Learner):
        init, adapt, predict = Handing.init, Handing.adapt, Handing.predict

        def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
            return (theta["w"] * f).sum()

    g = f + 0.5 * torch.randn_like(f)
    problem = finite_differences.Problem(Plane(), episode(4), 200, 1e-5, 0)
    point = finite_differences.Point({"w": torch.zeros_like(f)}, 0.0, {"w": g})
    found = finite_differences._compare(problem, point, "w")
    assert found.difference == pytest.approx(float((f - g).norm() / g.norm()), rel=0.1)
    assert finite_differences.length(found.gradient) == pytest.approx(float(g.norm()))


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_says_what_was_expected():
    learner, task = qs.MAML(qs.nn.mlp(4, 3)), episode(4)
    with pytest.raises(ConfigError, match=r"qs\.MAML\(network\)"):
        qs.check_meta_gradient(qs.nn.mlp(4, 3), task)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"qs\.Episode"):
        qs.check_meta_gradient(learner, (task.support, task.query))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"(?s)support x \(6, 7\).*without a task axis"):
        qs.check_meta_gradient(learner, episode(7))
    with pytest.raises(DataError, match="an answer per input"):
        qs.check_meta_gradient(learner, task._replace(query=Batch(task.query.x, task.query.y[:-1])))
    with pytest.raises(DataError, match="support set holds NaN"):
        qs.check_meta_gradient(learner, task._replace(support=Batch(task.support.x / 0, task.support.y)))
    with pytest.raises(ConfigError, match="tolerance above 0"):
        qs.check_meta_gradient(learner, task, tolerance=0)


def test_randomness_that_cannot_be_repeated_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="changes from call to call"):
        check(Net(lambda z, scale: z * scale * rng.normal()))


# --- the command -----------------------------------------------------------------------------------------------------

MODULE = """
import torch
import quickstudy as qs
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs=4, outputs=3):
        super().__init__()
        self.body, self.scale, self.head = nn.Linear(inputs, 5), nn.Parameter(torch.ones(5)), nn.Linear(5, outputs)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x) * self.scale))

class Cut(Net):
    def forward(self, x):
        return self.head(torch.tanh(self.body(x) * self.scale.detach()))

def learner():
    return qs.ProtoNet(qs.nn.mlp(4, None), ways=2)

def classifier():
    return qs.MAML(Net(), first_order=True)

def pair():
    batch = qs.Batch(torch.randn(5, 4), torch.randn(5, 3))
    return qs.MAML(Net(), loss=qs.mse_loss), qs.Episode(batch, batch)

def takes(inputs): ...
def number(): return 3
def wrong_pair(): return Net(), None
def fails(): raise RuntimeError("first line\\nno weights here")
word = "text"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a module under a file name and in a package."""
    (tmp_path / "my_model.py").write_text(MODULE)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "models.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "untidy.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "broken", "untidy", "quickstudy_check_")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["my_model.py:Net", "--shape", "4", "--ways", "3"], 0, "5 of 5 entries"),
        (["my_package.models:Net", "--shape", "4"], 0, "5 of 5 entries"),
        (["my_model:learner", "--shape", "4"], 0, "ProtoNet"),
        (["my_model.py:classifier", "--shape", "4"], 0, "approximation"),
        (["my_model.py:pair"], 0, "engine vmap: yes"),
        (["my_model.py:Cut", "--shape", "4", "--ways", "3"], 1, "cut off: scale"),
        (["my_model.py:Cut", "--shape", "4", "--steps", "1"], 1, "NOT OK"),
    ],
)
def test_the_command_exits_with_the_verdict(argv, code, told, folder, capsys):
    path = list(sys.path)
    assert main.run(["check", *argv]) == code
    out = capsys.readouterr().out
    assert (told in out and "body.weight" in out) or "ProtoNet" in told
    assert sys.path == path


def test_the_shape_may_be_written_with_commas(folder, capsys):
    (folder / "image.py").write_text(
        "import quickstudy as qs\ndef make(): return qs.nn.conv4(1, 2, filters=2, size=8)\n"
    )
    outputs = []
    for shape in (["1,8,8"], ["1", "8", "8"]):
        assert main.run(["check", "image.py:make", "--shape", *shape, "--ways", "2", "--steps", "1"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "2x1x3x3" in outputs[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["my_model"], "MODULE:FACTORY"),
        (["nowhere:make"], "there is no module 'nowhere'"),
        (["my_package.nowhere:make"], "there is no module 'my_package.nowhere'"),
        (["nowhere.py:make"], "there is no file 'nowhere.py'"),
        (["broken:make"], "No module named 'not_installed_anywhere'"),
        (["untidy.py:make"], "ZeroDivisionError: division by zero"),
        (["untidy:make"], "ZeroDivisionError: division by zero"),
        (["my_model.py:Nett"], "Did you mean 'Net'?"),
        (["my_model.py:takes"], "takes (inputs): missing a required argument"),
        (["my_model.py:number"], "got int"),
        (["my_model.py:word"], "must be a function or class"),
        (["my_model.py:wrong_pair"], "got a tuple (Net, NoneType)"),
        (["my_model.py:fails"], "RuntimeError: no weights here"),
        (["my_model.py:Net"], "--shape 1 28 28"),
        (["my_model.py:Net", "--shape", "four"], "whole numbers"),
        (["my_model.py:Net", "--shape", "7"], "the model, given x [3, 7], raised RuntimeError"),
        (["my_model.py:Net", "--shape", "4", "--ways", "9"], "IndexError: Target"),
        (["my_model.py:Net", "--shape", "4", "--shots", "0"], "must be 1 or more"),
    ],
)
def test_bad_words(argv, message, folder, capsys):
    assert main.run(["check", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("quickstudy: ") and "Traceback" not in captured.err
    assert message in captured.err
