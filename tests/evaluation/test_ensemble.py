"""Ensembles of checkpoints: the mean is that of a hand computation, and what training keeps survives files and cuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import (
    as_episodes,
    assert_close,
    clusters,
    cores,
    linear_tasks,
    map_tasks,
    random_episodes,
    smooth_conv,
    squared_slope,
)
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import files, seeds
from quickstudy.cli import main
from quickstudy.errors import ConfigError, NonFiniteError
from quickstudy.evaluation.ensemble import mean_answer
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.report.writing import write_report
from quickstudy.training import session
from quickstudy.training.checkpoint import TrainingState, read_metrics

ENGINES = ("loop", "threads", "vmap")
CUT = 13  # the iteration in which a run is cut off


class Stream:
    """Endless tasks: an episode without structure for each generator. Regression when `ways` is None."""

    def __init__(self, ways: int | None = 3) -> None:
        self.ways = ways

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return random_episodes(n, ways=self.ways, shots=4, queries=5, seed=seed)


def linear(seed: int = 0, **fields: Any) -> qs.MAML:
    torch.manual_seed(seed)
    return qs.MAML(nn.Linear(4, 3), **{"lr": 0.5, "steps": 1, **fields})


def thetas_of(build: Callable[[int], qs.MAML], count: int) -> list[Theta]:
    return [build(seed).init() for seed in range(count)]


def together(learner: qs.MAML, thetas: list[Theta]) -> qs.Trained:
    return qs.Trained(learner, thetas[0], best=tuple(thetas))


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def adapted_logits(theta: Theta, episode: Episode, lr: float) -> np.ndarray:
    """One step of a linear classifier by hand: grad W = (softmax(X W^T + b) - Y)^T X / n, for b without X."""
    weight, bias = theta["weight"].numpy(), theta["bias"].numpy()
    x, y, xq = episode.support.x.numpy(), episode.support.y.numpy(), episode.query.x.numpy()
    wrong = softmax(x @ weight.T + bias) - np.eye(3)[y]
    return xq @ (weight - lr * wrong.T @ x / len(x)).T + bias - lr * wrong.mean(0)


# --- the mean of answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_two_linear_classifiers_average_their_probabilities(double, engine):
    learner, episodes = linear(), random_episodes(4, queries=5)
    thetas = thetas_of(linear, 2)
    found = map_tasks(lambda episode: mean_answer(learner, thetas, episode), episodes, engine)
    for i, answer in enumerate(found):
        one = Episode(*(Batch(*(t[i] for t in batch)) for batch in episodes))
        logits = np.stack([adapted_logits(theta, one, learner.lr) for theta in thetas])
        assert_close(answer.exp(), torch.from_numpy(softmax(logits).mean(0)), 1e-12)
        assert not np.allclose(answer.exp(), softmax(logits.mean(0)), atol=1e-3), "these are the mean logits"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_accuracy_is_that_of_the_mean_probabilities(double, engine):
    def build(seed: int) -> qs.MAML:
        return linear(seed, lr=2.0)

    tasks, thetas = Stream(), thetas_of(build, 2)
    expected, alone = [], []
    for i in range(12):
        drawn = tasks.sample(1, seeds.generator(3, "test", i))
        one = Episode(*(Batch(*(t[0] for t in batch)) for batch in drawn))
        odds = softmax(np.stack([adapted_logits(theta, one, 2.0) for theta in thetas]))
        expected.append((odds.mean(0).argmax(1) == one.query.y.numpy()).mean())
        alone.append((odds[0].argmax(1) == one.query.y.numpy()).mean())
    with cores(2):
        score = qs.evaluate(together(build(0), thetas), tasks, episodes=12, seed=3, ensemble=2, engine=engine)
    assert expected != alone
    assert_close(score.values, torch.tensor(expected), 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_error_is_that_of_the_mean_value(double, engine):
    """Two steps of linear regression each, by hand; the mean of the errors would be larger."""
    learner = qs.MAML(nn.Linear(3, 1, bias=False), loss=F.mse_loss, lr=0.05, steps=2)
    thetas = [{"weight": torch.randn(1, 3)} for _ in range(3)]
    expected, apart, episodes = [], [], []
    for task in linear_tasks(5):
        answers = []
        for theta in thetas:
            w = theta["weight"][0].numpy()
            for _ in range(2):
                w = w - 0.05 * squared_slope(w, task.x, task.y)
            answers.append(task.xq @ w)
        expected.append(((np.mean(answers, axis=0) - task.yq) ** 2).mean())
        apart.append(np.mean([((answer - task.yq) ** 2).mean() for answer in answers]))
        episodes.append(as_episodes([task]))
    queue = iter(episodes)
    source = SimpleNamespace(sample=lambda n, generator=None: next(queue))
    with cores(2):
        score = qs.evaluate(together(learner, thetas), source, episodes=5, ensemble=3, engine=engine)
    assert_close(score.values, torch.tensor(expected), 1e-12)
    assert all(a < b for a, b in zip(expected, apart, strict=True))
    assert str(score).endswith(
        "mean squared error (95 % CI over 5 episodes; 7-shot, no norm, 2 inner steps, ensemble of 3)"
    )


def test_sure_answers_that_contradict_each_other_do_not_tie():
    """e^-40 and e^-20 beside 1: in float32 both means would be one half, and the first class would win."""
    learner = linear(steps=0)
    x, y = torch.zeros(1, 4), torch.tensor([1])
    thetas = [{"weight": torch.zeros(3, 4), "bias": torch.tensor(b)} for b in ([0.0, 40.0, 0.0], [20.0, 0.0, 0.0])]
    assert mean_answer(learner, thetas, Episode(Batch(x, y), Batch(x, y))).argmax(1).tolist() == [1]


def test_an_ensemble_of_one_is_the_plain_score():
    trained = together(linear(), thetas_of(linear, 3))
    plain = qs.evaluate(qs.Trained(trained.learner, trained.theta), Stream(), episodes=30)
    one = qs.evaluate(trained, Stream(), episodes=30, ensemble=1)
    assert torch.equal(plain.values, one.values)
    assert one.protocol == plain.protocol and "ensemble" not in str(one)


@pytest.mark.parametrize("ways", [3, None])
def test_copies_of_one_theta_are_the_plain_score(ways):
    learner = linear() if ways else qs.MAML(nn.Linear(4, 1), loss=F.mse_loss, lr=0.1)
    trained = together(learner, [learner.init()] * 4)
    plain, four = (qs.evaluate(trained, Stream(ways), episodes=30, ensemble=n) for n in (1, 4))
    assert torch.equal(plain.values, four.values) if ways else torch.allclose(plain.values, four.values)
    assert "ensemble of 4" in str(four)
    assert four.protocol == replace(plain.protocol, ensemble=4)
    assert qs.compare(four, plain).mean == pytest.approx(0, abs=1e-6), "with and without may be compared"


def test_normalisation_with_the_support_set_reaches_every_theta(double):
    def build(seed: int) -> qs.MAML:
        torch.manual_seed(seed)
        return qs.MAML(smooth_conv("batch"), lr=0.1)

    thetas, tasks = thetas_of(build, 2), clusters((1, 6, 6), queries=5)
    trained = together(build(0), thetas)
    score = qs.evaluate(trained, tasks, episodes=10, ensemble=2, transductive=False)
    as_declared = together(qs.MAML(smooth_conv("support"), lr=0.1), thetas)
    assert torch.equal(score.values, qs.evaluate(as_declared, tasks, episodes=10, ensemble=2).values)
    assert "support norm" in str(score) and "ensemble of 2" in str(score)


def test_controls_are_those_of_the_best_theta_alone():
    trained = together(linear(), thetas_of(linear, 3))
    settings = {"episodes": 10, "controls": ("zero_steps", "shuffled_labels")}
    plain, three = (qs.evaluate(trained, clusters(queries=5, spread=2.0), ensemble=n, **settings) for n in (1, 3))
    assert not torch.equal(plain.values, three.values)
    for name, control in three.controls.items():
        assert torch.equal(control.values, plain.controls[name].values)
        assert control.protocol.ensemble == 1


def test_the_best_are_taken_first_and_none_passes_with_nan():
    thetas = thetas_of(linear, 3)
    broken = {name: value * torch.nan for name, value in thetas[2].items()}
    trained = together(linear(), [*thetas[:2], broken])
    qs.evaluate(trained, Stream(), episodes=4, ensemble=2)
    with pytest.raises(NonFiniteError, match="test episode 0"):
        qs.evaluate(trained, Stream(), episodes=4, ensemble=3)


@pytest.mark.parametrize(("count", "message"), [(4, r"kept 3\. Ask for at most 3.*--keep 4"), (0, "at least 1, got 0")])
def test_as_many_as_were_kept(count, message):
    with pytest.raises(ConfigError, match=message):
        qs.evaluate(together(linear(), thetas_of(linear, 3)), Stream(), episodes=4, ensemble=count)


def test_theta_is_the_first_of_the_best():
    first, second = thetas_of(linear, 2)
    with pytest.raises(ConfigError, match="first of `best`"):
        qs.Trained(linear(), first, best=(second, first))


# --- what training keeps ---------------------------------------------------------------------------------------------


def sines(split: str) -> Any:
    return qs.tasks.sinusoid(split, 5, 5)


def learn(out: Path | None = None, tasks: Any = None, **options: Any) -> qs.Trained:
    """Climbing the loss, slowly: validations get worse one after the other, but not all of them."""
    torch.manual_seed(0)
    learner = qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), loss=F.mse_loss, lr=0.01, steps=1)
    settings = {"iterations": 20, "meta_batch": 2, "val": sines("val"), "val_every": 2, "val_episodes": 6, "keep": 3}
    settings |= {"optimizer": lambda p: torch.optim.SGD(p, lr=0.002, maximize=True), "progress": False}
    settings |= {"engine": "loop", "out": out, **options}
    return qs.train(learner, tasks or sines("train"), **settings)


def same(a: Theta, b: Theta) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def all_same(a: tuple[Theta, ...], b: tuple[Theta, ...]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def test_the_best_validations_are_kept_best_first(tmp_path):
    trained = learn(tmp_path / "run")
    best = sorted(line["val"] for line in read_metrics(tmp_path / "run") if "val" in line)[:3]
    found = [
        qs.evaluate(qs.Trained(trained.learner, theta), sines("val"), episodes=6, seed=1_000_003, engine="loop").mean
        for theta in trained.best
    ]
    assert found == best and len(set(best)) == 3
    assert trained.best[0] is trained.theta
    assert json.loads((tmp_path / "run" / "protocol.json").read_text())["training"]["keep"] == 3


def test_keeping_several_changes_no_theta():
    one, three = learn(keep=1), learn(keep=3)
    assert same(one.theta, three.theta)
    assert one.best == ()


def test_the_earlier_of_two_equals_is_the_better():
    theta = {"w": torch.zeros(1)}
    state = TrainingState(theta, torch.optim.SGD([theta["w"]]), None, keep=2)
    waited = []
    for i, value in enumerate((0.5, 0.7, 0.7, 0.6, 0.8)):
        theta["w"].fill_(i)
        state.remember(value)
        waited.append(state.since_best)
    assert [(value, int(kept["w"])) for value, kept in state.best] == [(0.8, 4), (0.7, 1)]
    assert waited == [0, 0, 1, 2, 0]


def test_saved_and_loaded_bit_for_bit(tmp_path):
    trained = learn(tmp_path / "run")
    loaded = qs.load(tmp_path / "run")
    assert isinstance(loaded, qs.Trained)
    assert all_same(loaded.best, trained.best) and len(loaded.best) == 3
    assert loaded.best[0] is loaded.theta
    loaded.save(tmp_path / "again.qs")
    assert (tmp_path / "again.qs").read_bytes() == (tmp_path / "run" / "learner.qs").read_bytes()
    scores = [qs.evaluate(t, sines("test"), episodes=10, ensemble=3, engine="loop") for t in (trained, loaded)]
    assert torch.equal(scores[0].values, scores[1].values)


def test_one_theta_leaves_the_file_as_it_was(tmp_path):
    learn(tmp_path / "run", keep=1)
    tensors, header = files.read_tensors(tmp_path / "run" / "learner.qs", "trained")
    assert "best" not in header and all(name.startswith("theta.") for name in tensors)
    assert qs.load(tmp_path / "run").best == ()  # type: ignore[union-attr]


# --- resuming --------------------------------------------------------------------------------------------------------


class Cut:
    """A task source that fails when it is asked for the task of iteration CUT."""

    def __init__(self) -> None:
        self.asked = 0

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        self.asked += 1
        if self.asked > CUT:  # one episode is drawn before the first iteration
            raise OSError("the power went out")
        return sines("train").sample(n, generator)

    def describe(self) -> dict[str, Any]:
        return sines("train").describe()


def cut_off(out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A run that was killed with a checkpoint after every iteration."""
    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(OSError, match="power"):
        learn(out, Cut(), **options)
    assert not (out / "learner.qs").exists()


def state_of(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, plain = files.read_tensors(run / "checkpoint.safetensors", "checkpoint")
    return tensors, {name: plain[name] for name in ("best", "keep", "since_best", "iteration", "theta")}


def test_a_run_that_was_cut_keeps_the_same_thetas(tmp_path, monkeypatch):
    whole = learn(tmp_path / "whole")
    cut_off(tmp_path / "cut", monkeypatch)
    resumed = learn(tmp_path / "cut", resume=True)
    assert all_same(resumed.best, whole.best) and len(whole.best) == 3
    (a, plain), (b, other) = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    assert same(a, b) and plain == other
    assert (tmp_path / "whole" / "learner.qs").read_bytes() == (tmp_path / "cut" / "learner.qs").read_bytes()


def test_a_smaller_keep_on_resuming_drops_nothing(tmp_path, monkeypatch):
    whole = learn(tmp_path / "whole")
    cut_off(tmp_path / "cut", monkeypatch)
    assert all_same(learn(tmp_path / "cut", keep=1, resume=True).best, whole.best)
    assert json.loads((tmp_path / "cut" / "protocol.json").read_text())["training"]["keep"] == 3


def test_a_larger_keep_on_resuming_says_what_may_be_missing(tmp_path, monkeypatch):
    cut_off(tmp_path / "cut", monkeypatch, keep=2)
    with pytest.warns(UserWarning, match="kept the 2 best of its validations until now: keep=4") as caught:
        resumed = learn(tmp_path / "cut", keep=4, resume=True)
    assert Path(caught[0].filename).name == "test_ensemble.py", "the warning points elsewhere than at the call of train"
    assert len(resumed.best) == 4


def test_a_larger_keep_in_time_is_as_good_as_from_the_start(tmp_path, monkeypatch):
    """With fewer validations than the run was to keep, nothing is gone."""
    whole = learn(tmp_path / "whole", keep=9)
    cut_off(tmp_path / "cut", monkeypatch, keep=8)
    assert all_same(learn(tmp_path / "cut", keep=9, resume=True).best, whole.best)


def test_a_checkpoint_of_before_is_resumed(tmp_path, monkeypatch):
    """Checkpoints once held one theta and its value."""
    whole = learn(tmp_path / "whole", keep=1)
    cut_off(tmp_path / "cut", monkeypatch, keep=1)
    path = tmp_path / "cut" / "checkpoint.safetensors"
    tensors, plain = files.read_tensors(path, "checkpoint")
    value, theta = files.unpack(plain["best"], tensors)[0]
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("best")}
    old = {name: entry for name, entry in plain.items() if name not in ("keep", "best", "kind", "version")}
    old |= {"best": files.pack(theta, kept, "best"), "best_value": value}
    files.write_tensors(path, "checkpoint", kept, old)
    assert same(learn(tmp_path / "cut", keep=1, resume=True).theta, whole.theta)


@pytest.mark.parametrize(
    ("options", "message"), [({"keep": 0}, "keep must be at least 1"), ({"val": None}, r"\(val\)")]
)
def test_impossible_settings(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        learn(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_keeps_averages_and_reports(tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--iterations", "6", "--meta-batch", "2", "--queries", "2", "--filters", "4", "--val-episodes", "4"]
    assert main.run(["train", "glyphs", "maml", *small, "--keep", "3", "--engine", "loop", "--out", str(out)]) == 0
    few = ["--episodes", "6", "--controls", "zero_steps", "--engine", "loop"]
    assert main.run(["evaluate", str(out), *few, "--ensemble", "3"]) == 0
    assert capsys.readouterr().out.count("ensemble of 3") == 2, "transductive and not"
    plain = json.loads((out / "scores.json").read_text())
    assert [score["protocol"]["ensemble"] for score in plain["scores"]] == [3, 3]
    page = write_report([out], None).read_text()
    assert "ensemble of 3" in page and "by the best checkpoint alone" in page
    assert main.run(["evaluate", str(out), *few, "--ensemble", "4"]) == 2
    assert "an ensemble of 4 needs as many checkpoints, but training kept 3" in capsys.readouterr().err
    assert json.loads((out / "scores.json").read_text()) == plain


# --- other answers than one class ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shifted(Learner):
    """Answers with x + theta["shift"], whatever the support set says."""

    loss: Any

    def init(self) -> Theta:
        return {"shift": torch.zeros(())}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return theta["shift"]

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return x + phi

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return self.loss(self.predict(theta, theta["shift"], episode.query.x), episode.query.y)


def mean_of(loss: Any, x: Tensor, y: Tensor, shifts: tuple[Tensor, Tensor]) -> Tensor:
    return mean_answer(Shifted(loss), [{"shift": shift} for shift in shifts], Episode(*2 * [Batch(x, y)]))


def test_labels_average_their_probabilities_and_amounts_their_values(double):
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6, 3)).double()
    shifts = (torch.tensor(2.0), torch.tensor(-1.0))
    found = mean_of(nn.BCEWithLogitsLoss(), x, y, shifts)
    assert_close(found.sigmoid(), ((x + 2).sigmoid() + (x - 1).sigmoid()) / 2, 1e-12)
    assert_close(mean_of(F.binary_cross_entropy, x, y, shifts), x + 0.5, 1e-12)
    assert_close(mean_of(F.poisson_nll_loss, x, y.long(), shifts), x + 0.5, 1e-12)  # whole numbers that are counts


@pytest.mark.parametrize("last", [False, True])
def test_tags_average_along_their_classes(double, last):
    """As many positions as classes, or one more: with torch's loss the axis is 1, with another the shapes tell."""
    x, y = torch.randn(4, 3, 3 + last), torch.randint(0, 3, (4, 3 + last))
    shifts = (torch.randn(3, 1), torch.randn(3, 1))  # of classes: one common to all would change no probability
    probabilities = sum((x + shift).softmax(1) for shift in shifts) / 2
    found = mean_of(F.cross_entropy, x, y, shifts)
    assert_close(found.exp(), probabilities, 1e-12)
    soft = torch.randn(4, 3, 3 + last).softmax(1)
    assert_close(mean_of(F.cross_entropy, x, soft, shifts).exp(), probabilities, 1e-12)
    if last:
        own = mean_of(lambda output, y: output.sum(), x.mT, y, (shifts[0].mT, shifts[1].mT))
        assert_close(own.exp(), probabilities.mT, 1e-12)
