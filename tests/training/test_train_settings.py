"""Each setting of a training is written once, and the metric decides which theta is the best."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import quickstudy as qs
from quickstudy.cli.options import CompareOptions, PlanOptions, TrainOptions
from quickstudy.engine.engines import ENGINES
from quickstudy.engine.numerics import PRECISIONS
from quickstudy.errors import ConfigError, RunError
from quickstudy.evaluation.metric import METRICS, Metric
from quickstudy.experiments.request import Request
from quickstudy.experiments.run import read_run
from quickstudy.learner import Learner
from quickstudy.nn.model import call
from quickstudy.nn.parameters import parameters
from quickstudy.report.writing import write_report
from quickstudy.training import TrainSettings, curve
from quickstudy.training.checkpoint import read_metrics

SETTINGS = {one.name: one for one in dataclasses.fields(TrainSettings)}
ELSEWHERE = {"learner", "tasks", "out", "val", "compile", "optimizer", "scheduler", "resume", "device", "progress"}
ELSEWHERE |= {"about", "budget"}


def train(metric=None, **options):
    torch.manual_seed(0)
    learner = qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), loss=F.mse_loss, lr=0.01)
    tasks, val = (qs.tasks.sinusoid(split, 5, 5) for split in ("train", "val"))
    known = {"iterations": 3, "meta_batch": 2, "val": val, "val_every": 1, "val_episodes": 2, "engine": "loop"}
    return qs.train(learner, tasks, metric=metric, progress=False, **known | options)


def test_train_takes_every_setting_with_its_default():
    parameters = inspect.signature(qs.train).parameters
    assert parameters.keys() - ELSEWHERE == SETTINGS.keys()
    for name, one in SETTINGS.items():
        assert name == "iterations" or parameters[name].default == one.default, name
    assert parameters["iterations"].default is inspect.Parameter.empty


@pytest.mark.parametrize("options", [TrainOptions, PlanOptions])
def test_the_command_line_takes_every_setting_with_its_default(options):
    defaults = {one.name: one.default for one in dataclasses.fields(options)}
    assert {name: defaults[name] for name in SETTINGS} == {name: one.default for name, one in SETTINGS.items()}
    assert defaults.keys() >= {one.name for one in dataclasses.fields(Request)}


def test_no_option_is_written_twice():
    assert not SETTINGS.keys() & {*vars(TrainOptions)["__annotations__"], *vars(PlanOptions)["__annotations__"]}
    requested = {one.name for one in dataclasses.fields(Request)}
    for options in (TrainOptions, PlanOptions, CompareOptions):
        assert not requested & set(vars(options)["__annotations__"])


def test_the_choices_are_those_of_the_engine():
    hints = typing.get_type_hints(TrainSettings)
    assert set(typing.get_args(hints["engine"])) == set(ENGINES)
    assert set(typing.get_args(hints["precision"])) == set(PRECISIONS)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSettings().seed = 1  # type: ignore[misc]


# --- the metric ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
def test_the_metrics_direction_chooses_the_checkpoint(monkeypatch, higher):
    """Three validations score 1, 3, 2: the best theta is the second where more is better, else the first."""
    scores, thetas = iter((0.0, 1.0, 3.0, 2.0)), []  # the first before the training, whether it can be scored
    own = Metric("own", higher, Metric.PLAIN, lambda output, y: (output - y).abs().max())

    def answered(trained, tasks, settings):
        thetas.append({name: value.clone() for name, value in trained.theta.items()})
        return SimpleNamespace(metric=settings.metric)

    def scored(made):
        return SimpleNamespace(mean=next(scores), low=0.0, high=4.0, interval=0.1, metric=made.metric)

    monkeypatch.setattr(curve, "predictions", answered)
    monkeypatch.setattr(curve, "score_of", scored)
    trained = train(own)
    best = thetas[2 if higher else 1]
    assert all(torch.equal(trained.theta[name], best[name]) for name in best)


def test_the_curve_shows_the_metric_that_was_named(tmp_path):
    train("mean absolute error", out=tmp_path / "run", val=None)
    line = read_metrics(tmp_path / "run")[-1]
    assert line.keys() >= {"score", "loss"} and not line.keys() & {"accuracy", "error"}
    train(out=tmp_path / "plain", val=None)
    error = read_metrics(tmp_path / "plain")[-1]["error"]
    assert 0 < line["score"] <= error**0.5 * (1 + 1e-6)  # the mean of |e| is at most the root of the mean of e^2


def test_the_unit_of_the_answers_enters_with_the_metrics_power(tmp_path):
    """Values in units of 10: an absolute error is ten times, a squared one a hundred times as large."""

    class Tens:
        unit = 10.0
        sample = staticmethod(qs.tasks.sinusoid("train", 5, 5).sample)

    for metric, factor in (("mean absolute error", 10.0), ("mean squared error", 100.0)):
        lines = []
        for name, tasks in (("ones", qs.tasks.sinusoid("train", 5, 5)), ("tens", Tens())):
            torch.manual_seed(0)
            learner = qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), loss=F.mse_loss, lr=0.01)
            out = tmp_path / f"{name}-{factor}"
            qs.train(learner, tasks, iterations=1, meta_batch=2, metric=metric, engine="loop", out=out, progress=False)
            lines.append(read_metrics(out)[-1])
        key = "error" if metric == "mean squared error" else "score"
        assert lines[1][key] == pytest.approx(factor * lines[0][key])


class Grades:
    """Whole numbers under a loss of one's own: classes or amounts, nobody knows."""

    def sample(self, n, generator=None):
        x = torch.randn(n, 8, 1, generator=generator)
        y = (x[..., 0] > 0).long()
        return qs.Episode(qs.Batch(x[:, :4], y[:, :4]), qs.Batch(x[:, 4:], y[:, 4:]))


def own_entropy(output, y):
    return F.cross_entropy(output, y)


def test_under_a_loss_of_ones_own_that_loss_is_scored(tmp_path):
    learner = qs.MAML(torch.nn.Linear(1, 2), loss=own_entropy, lr=0.01)
    settings = {"iterations": 2, "meta_batch": 2, "engine": "loop", "val_episodes": 3, "progress": False}
    trained = qs.train(learner, Grades(), out=tmp_path / "run", val=Grades(), **settings)
    line = read_metrics(tmp_path / "run")[-1]
    assert line["score"] > 0 and line["val"] == pytest.approx(
        qs.evaluate(trained, Grades(), episodes=3, seed=1_000_003).mean
    )
    assert read_run(tmp_path / "run").metric.name == "own entropy"
    assert "Own entropy" in write_report([tmp_path / "run"]).read_text("utf-8")


def test_an_unknown_metric_is_refused_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match=r"metric must be one of .*'acuracy'.*Did you mean 'accuracy'"):
        train("acuracy", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", [one for one in METRICS if not one.endswith("accuracy")])
def test_validation_goes_by_the_metric_that_was_named(tmp_path, metric):
    trained = train(metric, out=tmp_path / "run")
    best = min(line["val"] for line in read_metrics(tmp_path / "run"))
    score = qs.evaluate(trained, qs.tasks.sinusoid("val", 5, 5), episodes=2, seed=1_000_003, metric=metric)
    assert score.mean == pytest.approx(best)


PINBALL = Metric("pinball loss", False, Metric.PLAIN, lambda output, y: (output - y).abs().mean())


def test_a_metric_of_the_users_own_keeps_its_direction_in_the_run_folder(tmp_path):
    trained = train(PINBALL, out=tmp_path / "run")
    best = min(line["val"] for line in read_metrics(tmp_path / "run"))
    page = write_report([tmp_path / "run"]).read_text("utf-8")
    assert f"Best validation {best:.3g}" in page
    score = qs.evaluate(trained, qs.tasks.sinusoid("val", 5, 5), episodes=2, seed=1_000_003, metric=PINBALL)
    assert score.mean == pytest.approx(best)


@pytest.mark.parametrize("before", [{"metric": "mean absolute error"}, {"precision": "bf16"}, {"channels_last": True}])
def test_a_run_does_not_go_on_with_another_metric_or_other_numbers(tmp_path, before):
    """Without the setting the scores of the best thetas would be in two units."""
    train(**{"metric": None, "out": tmp_path / "run", "iterations": 2} | before)
    with pytest.raises(RunError, match=next(iter(before))):
        train(out=tmp_path / "run", iterations=3, resume=True)


class Two:
    """Two targets: nothing says which of them counts."""

    def sample(self, n, generator=None):
        x = torch.randn(n, 4, 1, generator=generator)
        return qs.Episode(*2 * [qs.Batch(x, {"a": x, "b": -x})])


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def forward(self, x):
        return {"a": self.a(x), "b": self.b(x)}


def both_wrong(output, y):
    return sum(F.mse_loss(output[name], y[name]) for name in y)


@dataclasses.dataclass(frozen=True, eq=False)
class Silent(Learner):
    """A learner whose loss is no field, so that nobody can read it."""

    model: torch.nn.Module

    def init(self):
        return parameters(self.model)

    def adapt(self, theta, support):
        return theta

    def predict(self, theta, phi, x):
        return call(self.model, phi, x)

    def meta_loss(self, theta, episode):
        return both_wrong(self.predict(theta, theta, episode.query.x), episode.query.y)


@pytest.mark.parametrize("options", [{"val": Two()}, {"metric": "mean squared error"}])
def test_what_cannot_be_scored_is_refused_before_the_run(tmp_path, options):
    settings = {"iterations": 2, "meta_batch": 2, "engine": "loop", "progress": False}
    with pytest.raises(ConfigError, match=r"no metric is certain|cannot score outputs"):
        qs.train(Silent(Both()), Two(), out=tmp_path / "run", **settings, **options)
    assert not (tmp_path / "run").exists()
    qs.train(Silent(Both()), Two(), out=tmp_path / "run", **settings)  # without either there is nothing to score
    assert read_metrics(tmp_path / "run")[-1].keys() == {"iteration", "loss", "seconds"}


class Tagged:
    """Pictures with two labels: the sign of the sum, and of the difference, of two numbers; unequal in their scale."""

    def sample(self, n, generator=None):
        x = torch.randn(n, 20, 2, generator=generator)
        y = torch.stack([x.sum(-1) > 0, x[..., 0] > x[..., 1]], -1).float()
        return qs.Episode(qs.Batch(x[:, :8], y[:, :8]), qs.Batch(x[:, 8:], y[:, 8:]))


def test_validation_of_labels_keeps_the_theta_that_answers_best_and_not_the_smallest_logits(tmp_path):
    """Logits grow as they get surer, and so does their squared distance from 0 and 1."""
    torch.manual_seed(0)
    learner = qs.MAML(torch.nn.Linear(2, 2), loss=torch.nn.BCEWithLogitsLoss(), lr=0.1)
    settings = {"meta_batch": 8, "engine": "loop", "val_every": 20, "val_episodes": 20, "progress": False}
    outer = {"optimizer": lambda values: torch.optim.Adam(values, 0.3)}
    qs.train(learner, Tagged(), iterations=60, val=Tagged(), out=tmp_path / "run", **settings, **outer)
    last = qs.train(learner, Tagged(), iterations=60, **settings, **outer)
    kept = qs.load(tmp_path / "run" / "learner.qs", loss=learner.loss, model=learner.model)
    ours, final = (qs.evaluate(one, Tagged(), episodes=40) for one in (kept, last))
    assert ours.protocol.metric == "label accuracy" and ours.mean >= final.mean - 0.01 and ours.mean > 0.95
    plain = qs.evaluate(kept, Tagged(), episodes=40, metric="mean squared error")
    assert plain.mean > 1  # by which the first theta, which knows nothing, would have been kept
    assert read_run(tmp_path / "run").metric.name == "label accuracy"
    assert "label accuracy (%)" in write_report([tmp_path / "run"]).read_text("utf-8")
