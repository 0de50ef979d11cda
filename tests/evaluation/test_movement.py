"""How far layers move: closed forms of the numbers, what counts as movement, and what the report says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from problems import (
    as_episodes,
    assert_close,
    clusters,
    linear_tasks,
    map_tasks,
    random_episodes,
    smooth_conv,
    snapshot,
    squared_slope,
)
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError, FileFormatError, NonFiniteError
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.movement import LayerMovement, Movement, episode_movement, moves_layers
from quickstudy.evaluation.measures.similarity import cka, relative_change
from quickstudy.experiments.evaluate_run import evaluate_run
from quickstudy.learner import Batch, Episode, Learner
from quickstudy.nn.hooks import outputs_of
from quickstudy.nn.parameters import parameters
from quickstudy.report.sections.movement import conclusion
from quickstudy.report.writing import write_report

IMAGE = (1, 6, 6)
PROTOCOL = qs.Protocol("MAML", "glyphs", "test", 5, 1, 15, "movement of layers", 100, 1, False, "none", 1)

GRADIENT: dict[str, Callable[..., Learner]] = {
    "maml": qs.MAML,
    "metasgd": qs.MetaSGD,
    "metacurvature": qs.MetaCurvature,
    "mamlplusplus": qs.MAMLPlusPlus,
    "imaml": qs.IMAML,
    "reptile": qs.Reptile,
    "anil": qs.ANIL,
    "boil": qs.BOIL,
}


def ready(learner: Learner) -> Any:
    return SimpleNamespace(learner=learner, theta=learner.init())


@dataclass(frozen=True)
class Given:
    """The episodes of a batch in their order, whatever generator comes; keeps the generators' seeds."""

    episodes: Episode
    asked: list[int]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        assert n == 1 and generator is not None
        self.asked.append(generator.initial_seed())
        i = (len(self.asked) - 1) % len(self.episodes.query.x)
        return Episode(*(Batch(*(t[i : i + 1] for t in batch)) for batch in self.episodes))


# --- similarity ------------------------------------------------------------------------------------------------------


def numpy_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By the features' cross-covariances, as Kornblith 2019 defines it."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n))[0]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("p", "q"), [(3, 3), (4, 9), (30, 2)])
def test_cka_is_kornbliths(p, q):
    x, y = torch.randn(12, p) + 3, torch.randn(12, q)
    assert float(cka(x, y)) == pytest.approx(numpy_cka(x.numpy(), y.numpy()), abs=1e-12)
    assert float(cka(y, x)) == pytest.approx(float(cka(x, y)), abs=1e-12)


@pytest.mark.usefixtures("double")
def test_cka_sees_no_rotation_scale_or_shift_but_sees_other_maps():
    x, y = torch.randn(12, 4), torch.randn(12, 5)
    assert float(cka(x, -3.7 * x @ rotation(4) + 2)) == pytest.approx(1, abs=1e-12)
    assert float(cka(5 * x @ rotation(4) - 1, y)) == pytest.approx(float(cka(x, y)), abs=1e-12)
    assert float(cka(x, x * torch.tensor([9.0, 1, 1, 1]))) < 0.9


@pytest.mark.usefixtures("double")
def test_cka_of_unrelated_and_of_empty_representations():
    basis = torch.linalg.qr(torch.cat([torch.ones(8, 1), torch.randn(8, 4)], 1))[0]  # the others have mean zero
    constant = torch.full((8, 3), 0.3)
    assert float(cka(basis[:, 1:3], basis[:, 3:5])) == pytest.approx(0, abs=1e-12)
    assert float(cka(constant, 2 * constant)) == 1 and float(cka(constant, torch.randn(8, 3))) == 0
    assert float(cka(torch.zeros(8, 3), torch.zeros(8, 3))) == 1


def test_constants_are_seen_through_rounding():
    """In float32 the mean of equal numbers is not always that number."""
    noisy = torch.full((7, 50), 0.1) * 3 + torch.randn(7, 50) * 1e-9
    assert float(cka(noisy, torch.randn(7, 50))) == 0


@pytest.mark.usefixtures("double")
def test_relative_change_by_hand():
    before, after = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])
    assert float(relative_change(before, after)) == pytest.approx(1 / 5)
    assert float(relative_change(0 * before, 0 * before)) == 0
    assert float(relative_change(0 * before, after)) == float("inf")


# --- the outputs of layers -------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """A layer that is called twice, one whose weight is read without calling it, and a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read, self.cell = nn.Linear(4, 4), nn.Linear(4, 4), nn.GRU(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.twice(torch.tanh(self.twice(x)))
        h = F.linear(h, self.read.weight, self.read.bias)
        return self.head(self.cell(h[:, None])[0][:, -1])


def test_outputs_are_those_of_each_call():
    model, x = Branching(), torch.randn(5, 4)
    theta = parameters(model)
    unchanged = snapshot(model, theta, x)
    found = outputs_of(["head", "read", "twice", "cell"], model, theta, x)
    assert list(found) == ["twice", "cell", "head"]  # as they are called
    first = model.twice(x)
    assert_close(found["twice"][0], first, 1e-6)
    assert_close(found["twice"][1], model.twice(torch.tanh(first)), 1e-6)
    assert_close(found["head"][0], model(x), 1e-6)
    assert found["cell"][0].shape == (5, 1, 3) and unchanged()
    assert outputs_of(["head"], model, theta, x).keys() == {"head"}  # no hook is left behind


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_one_step_of_a_linear_model_by_hand():
    """phi = w - lr g: weights lr |g| / |w|, output lr |X g| / |X w|, and CKA of two columns is their r^2."""
    problems, lr = linear_tasks(6), 0.1
    model = nn.Linear(3, 1, bias=False)
    w = model.weight.detach().numpy()[0]
    learner = qs.MAML(model, loss=qs.mse_loss, lr=lr, steps=1)
    moved = qs.layer_movement(ready(learner), Given(as_episodes(problems), []), episodes=6)
    slopes = [squared_slope(w, p.x, p.y) for p in problems]
    expected = {
        "weights": [lr * np.linalg.norm(g) / np.linalg.norm(w) for g in slopes],
        "output": [
            lr * np.linalg.norm(p.xq @ g) / np.linalg.norm(p.xq @ w) for p, g in zip(problems, slopes, strict=True)
        ],
        "representation": [
            1 - np.corrcoef(p.xq @ w, p.xq @ (w - lr * g))[0, 1] ** 2 for p, g in zip(problems, slopes, strict=True)
        ],
    }
    assert [one.name for one in moved.layers] == ["model"]
    for kind, values in expected.items():
        found = getattr(moved["model"], kind)
        assert found.mean == pytest.approx(np.mean(values), rel=1e-10)
        assert found == pytest.approx(Amount.of(torch.tensor(np.array(values)), qs.Metric.ERROR), rel=1e-8)


@pytest.mark.usefixtures("double")
def test_a_layer_moves_with_all_its_parameters_together():
    learner = qs.MAML(qs.nn.mlp(4, 3, hidden=(5,), activation="tanh"), lr=0.3, steps=2)
    theta, episode = learner.init(), mapping.unstack(random_episodes(1))[0]
    phi = learner.adapt(theta, episode.support)
    moved = episode_movement(learner, theta, episode)
    way, length = (
        sum(float((a[f"head.{part}"] ** 2).sum()) for part in ("weight", "bias")) ** 0.5
        for a in ({name: phi[name] - theta[name] for name in theta}, theta)
    )
    assert list(moved) == ["layer1", "head"]
    assert float(moved["head"]["weights"]) == pytest.approx(way / length, rel=1e-12)
    before, after = (learner.predict(theta, p, episode.query.x) for p in (theta, phi))
    assert float(moved["head"]["output"]) == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-12)
    assert float(moved["head"]["representation"]) == pytest.approx(
        1 - numpy_cka(before.numpy(), after.detach().numpy()), abs=1e-12
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["none", "batch", "support"])
@pytest.mark.parametrize("name", GRADIENT)
def test_without_steps_nothing_moves(name, norm):
    """Also where the start is more than theta: a step's offsets, the support set's statistics."""
    learner = GRADIENT[name](smooth_conv(norm))
    theta = {key: value + 0.1 * torch.randn_like(value) for key, value in learner.init().items()}
    trained = SimpleNamespace(learner=learner, theta=theta)
    still = qs.layer_movement(trained, Given(random_episodes(3, IMAGE, queries=4), []), episodes=3, steps=0)
    for one in still.layers:
        assert one.weights == one.output == (0, 0, 0)
        assert one.representation is not None and one.representation.mean == pytest.approx(0, abs=1e-12)
    moving = qs.layer_movement(trained, Given(random_episodes(3, IMAGE, queries=4), []), episodes=3, steps=2)
    assert moving[moving.most].representation.mean > 1e-6


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["none", "batch", "support"])
def test_what_phi_leaves_out_does_not_move(norm):
    """Exactly. BOIL's head keeps its weights, but reads features that have moved."""
    episodes = Given(random_episodes(3, IMAGE, queries=4), [])
    only_head, only_body = (
        qs.layer_movement(ready(build(smooth_conv(norm), lr=0.5, steps=2)), episodes, episodes=3)
        for build in (qs.ANIL, qs.BOIL)
    )
    body = [one.name for one in only_head.layers if one.name != "head"]
    assert body == ["conv1", "conv2"] if norm == "none" else ["conv1", "norm1", "conv2", "norm2"]
    assert all(one.weights == one.output == (0, 0, 0) for one in only_head.layers if one.name in body)
    assert only_head.most == "head" and only_head["head"].weights.mean > 0
    assert only_body["head"].weights == (0, 0, 0) and only_body["head"].representation.mean > 0
    assert all(only_body[name].weights.mean > 0 for name in body if "conv1" in name)


@pytest.mark.usefixtures("double")
def test_extra_meta_parameters_are_no_layers():
    learner = qs.MetaSGD(qs.nn.mlp(4, 3, hidden=(5,)), lr=0.1)
    moved = qs.layer_movement(ready(learner), clusters(), episodes=2)
    assert [one.name for one in moved.layers] == ["layer1", "head"]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["none", "batch", "support"])
@pytest.mark.parametrize("name", ["vmap", "threads"])
def test_every_engine_measures_the_same(name, norm):
    learner, episodes = qs.MAML(smooth_conv(norm), steps=2), random_episodes(4, IMAGE)
    theta = learner.init()
    unchanged = snapshot(learner.model, theta, episodes)
    one, other = (map_tasks(lambda e: episode_movement(learner, theta, e), episodes, n) for n in (name, "loop"))
    assert_close(one, other, 1e-8)
    assert unchanged()


def test_the_episodes_are_those_of_evaluate():
    learner, episodes = qs.MAML(qs.nn.mlp(4, 3)), random_episodes(30)
    asked: dict[str, list[int]] = {"evaluate": [], "movement": []}
    qs.evaluate(ready(learner), Given(episodes, asked["evaluate"]), episodes=30, seed=3, engine="loop")
    moved = qs.layer_movement(ready(learner), Given(episodes, asked["movement"]), episodes=30, seed=3)
    assert asked["movement"] == asked["evaluate"] and len(set(asked["movement"])) == 30
    assert (moved.protocol.episodes, moved.protocol.seed, moved.protocol.learner) == (30, 3, "MAML")


def test_progress_counts_episodes():
    done: list[int] = []
    qs.layer_movement(ready(qs.MAML(qs.nn.mlp(4, 3))), clusters(), episodes=30, progress=done.append)
    assert sum(done) == 30


# --- numbers that there are not --------------------------------------------------------------------------------------


def test_a_layer_that_starts_at_zero_has_no_relative_movement():
    model = qs.nn.mlp(4, 3)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    moved = qs.layer_movement(ready(qs.MAML(model)), clusters(), episodes=3)
    assert moved["head"].weights is None and moved["head"].output is None
    assert moved["head"].representation == (1, 1, 1)  # from no answer at all to one
    assert "-" in str(moved).splitlines()[-2].split()


def test_a_layer_that_is_not_called_shows_its_weights_alone():
    moved = qs.layer_movement(ready(qs.MAML(Branching(), lr=0.1)), clusters(queries=4), episodes=2)
    assert moved["read"].representation is None and moved["read"].output is None
    assert moved["read"].weights.mean > 0 and moved.most != "read"


class Read(nn.Module):
    """Reads its only layer's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.head.weight)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (lambda: qs.ProtoNet(qs.nn.mlp(4, None), ways=3), "ProtoNet has no field `model`"),
        (lambda: qs.NearestCentroid(3), "NearestCentroid has no field `model`"),
        (lambda: qs.CAVIA(qs.nn.mlp(4, 3), context=2), "CAVIA adapts 'context', which is not a parameter"),
        (lambda: qs.FineTune(qs.nn.mlp(4, 6), ways=3, steps=2), r"FineTune gives each task a new 'head\.weight'"),
        (lambda: qs.MAML(Read()), "calls none of its layers"),
    ],
    ids=["protonet", "nearest centroid", "cavia", "finetune", "no layer called"],
)
def test_learners_that_do_not_fit_are_told_why(learner, message):
    trained = ready(learner())
    assert not moves_layers(trained, clusters())
    with pytest.raises(ConfigError, match=message):
        qs.layer_movement(trained, clusters(), episodes=2)


def test_fine_tuning_for_regression_fits():
    learner = qs.FineTune(qs.nn.mlp(1, 1), qs.mse_loss, ways=None, steps=2, lr=0.01)
    trained, tasks = ready(learner), qs.tasks.sinusoid("test")
    assert moves_layers(trained, tasks)
    moved = qs.layer_movement(trained, tasks, episodes=3)
    assert moved["layer1"].weights == (0, 0, 0) and moved["head"].weights.mean > 0


def test_wrong_settings_and_values_are_refused():
    trained = ready(qs.MAML(qs.nn.mlp(4, 3)))
    with pytest.raises(ConfigError, match="episodes must be at least 1"):
        qs.layer_movement(trained, clusters(), episodes=0)
    with pytest.raises(NonFiniteError, match="test episode 0"):
        qs.layer_movement(ready(qs.MAML(qs.nn.mlp(4, 3), lr=1e30, steps=3)), clusters(), episodes=2)


# --- the value -------------------------------------------------------------------------------------------------------


def layer(name: str, change: float, weights: float | None = 0.1, interval: float = 0.01) -> LayerMovement:
    def around(mean: float) -> Amount:
        return Amount(mean, mean - interval, mean + interval)

    return LayerMovement(name, around(change), around(2 * change), None if weights is None else around(weights))


def movement(*layers: LayerMovement) -> Movement:
    return Movement(layers, PROTOCOL)


def test_a_movement_that_is_not_a_number_is_refused():
    plain = movement(layer("conv", 0.1)).to_dict()
    plain["layers"][0]["weights"]["mean"] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        Movement.from_dict(plain)


def test_movement_survives_json():
    one = movement(layer("conv", 0.1, None), LayerMovement("read", None, None, Amount(1 / 3, -math.inf, math.inf)))
    again = Movement.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False)))
    assert again == one and again.most == "conv"


def test_movement_prints_as_a_table():
    lines = str(movement(layer("conv", 0.1234), layer("head", 0.5, None), layer("still", 0, 0, 0))).splitlines()
    assert lines[0].split() == ["layer", "representation", "output", "weights"]
    assert lines[1].split() == ["conv", *("0.123", "±", "0.010"), *("0.247", "±", "0.010"), *("0.100", "±", "0.010")]
    assert lines[2].endswith("-") and lines[3].split() == ["still", "0", "0", "0"]
    assert "95 % CI over 100 episodes; 5-way 1-shot" in lines[4]


def test_the_figure_is_written_as_png_and_svg(tmp_path):
    one = movement(layer("conv", 0.1), layer("a$x^2$", 0.5, None), layer("head", 0.0, 0.0))
    one.plot(tmp_path / "figure.png")
    one.plot(str(tmp_path / "figure.svg"))
    assert np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 5
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("conv", "a$x^2$", "0.10", "no number"))
    with pytest.raises(ConfigError, match=r"\.png"):
        one.plot(tmp_path / "figure.docx")


# --- in words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([layer("conv", 0.03), layer("head", 0.7)], "The head moves most: its representation changes by 0.70"),
        (
            [layer("conv", 0.03), layer("head", 0.7)],
            "features are reused nearly as they are, and the head learns the task",
        ),
        ([layer("conv", 0.4), layer("head", 0.7)], "The body’s features change too"),
        (
            [layer("conv", 0.03), layer("head", 0.7, 0.0)],
            "Its weights do not move: it hands on, enlarged, what changes",
        ),
        ([layer("conv", 0.03), layer("fc", 0.7)], "The last layer (fc) moves most"),
        ([layer("conv", 0.5), layer("head", 0.2)], "The body moves most: the representation of conv changes by 0.50"),
        ([layer("conv", 0.5), layer("head", 0.51)], "The body moves as much as the head"),
        ([layer("conv", 0.004), layer("head", 0.009)], "Adaptation moves nothing to speak of"),
        ([layer("conv", 0.004), layer("head", 0.05)], "The head moves most: its representation changes by 0.05"),
        ([layer("model", 0.5)], "model moves most: its representation changes by 0.50"),
        ([layer("conv", 0.1, 0.0), layer("head", 0.7, 1.5)], "in 1 of 2 layers only, farthest in head: by 150 %"),
        ([layer("conv", 0.1, 0.2), layer("head", 0.7, 0.1)], "Weights move everywhere, farthest in conv: by 20 %"),
        ([layer("conv", 0.0, 0.0), layer("head", 0.0, 0.0)], "No weight moves."),
    ],
)
def test_the_conclusion_follows_the_numbers(layers, said):
    assert said in conclusion(movement(*layers))


# --- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluated run of MAML, whose first layer has a name of HTML."""
    model = nn.Sequential()
    model.add_module("<b>one", nn.Linear(4, 5))
    model.add_module("head", nn.Linear(5, 3))
    quiet: dict[str, Any] = {"engine": "loop", "progress": False}
    trained = qs.train(qs.MAML(model, steps=1), clusters(), iterations=2, meta_batch=2, out=tmp_path / "maml", **quiet)
    evaluate_run(tmp_path / "maml", trained, replace(clusters(), split="test"), episodes=6, names=[], **quiet)
    return tmp_path / "maml"


def test_a_run_keeps_its_movement_and_the_report_shows_it(run):
    kept = Movement.from_dict(json.loads((run / "movement.json").read_text()))
    assert [one.name for one in kept.layers] == ["<b>one", "head"] and kept.protocol.episodes == 6
    page = write_report([run]).read_text()
    assert "What adaptation moves" in page and conclusion(kept).replace("<", "&lt;").replace(">", "&gt;") in page
    assert "<b>one" not in page and page.count("&lt;b&gt;one") >= 2
    (run / "movement.json").unlink()
    assert "What adaptation moves" not in write_report([run]).read_text()


@pytest.mark.parametrize("content", ["{", "[1]", '{"layers": []}', '{"layers": [], "protocol": {}}'])
def test_a_broken_movement_is_named(run, content):
    (run / "movement.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"movement\.json"):
        write_report([run])


def test_learners_without_movement_are_evaluated_all_the_same(tmp_path):
    quiet: dict[str, Any] = {"engine": "loop", "progress": False}
    learner = qs.ProtoNet(qs.nn.mlp(4, None), ways=3)
    trained = qs.train(learner, clusters(), iterations=2, meta_batch=2, out=tmp_path, **quiet)
    evaluate_run(tmp_path, trained, clusters(), episodes=4, names=[], **quiet)
    assert not (tmp_path / "movement.json").exists()


class Reversed(nn.Module):
    """Holds its head first and calls it last."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(8, 1), nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def test_the_head_is_the_layer_that_is_called_last_wherever_the_model_holds_it():
    torch.manual_seed(0)
    learner = qs.ANIL(Reversed(), loss=qs.mse_loss, lr=0.1, steps=3, adapts="head.*")
    found = qs.layer_movement(qs.Trained(learner, learner.init()), qs.tasks.sinusoid("test"), episodes=100)
    assert [one.name for one in found.layers] == ["body", "head"]
    assert conclusion(found).startswith("The head moves most")
