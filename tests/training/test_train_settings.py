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
    scores, thetas = iter((1.0, 3.0, 2.0)), []
    own = Metric("own", higher, Metric.PLAIN, lambda output, y: (output - y).abs().max())

    def scored(trained, tasks, **options):
        thetas.append({name: value.clone() for name, value in trained.theta.items()})
        return SimpleNamespace(mean=next(scores), low=0.0, high=4.0, interval=2.0, metric=own)

    monkeypatch.setattr(curve, "evaluate", scored)
    trained = train(own)
    best = thetas[1 if higher else 0]
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


def test_answers_that_can_be_scored_in_several_ways_train_without_a_score(tmp_path):
    class Grades:
        """Whole numbers under a loss of one's own: classes or amounts, nobody knows."""

        def sample(self, n, generator=None):
            x = torch.randn(n, 8, 1, generator=generator)
            y = (x[..., 0] > 0).long()
            return qs.Episode(qs.Batch(x[:, :4], y[:, :4]), qs.Batch(x[:, 4:], y[:, 4:]))

    learner = qs.MAML(torch.nn.Linear(1, 2), loss=lambda output, y: F.cross_entropy(output, y), lr=0.01)
    qs.train(learner, Grades(), iterations=2, meta_batch=2, engine="loop", out=tmp_path / "run", progress=False)
    assert read_metrics(tmp_path / "run")[-1].keys() == {"iteration", "loss", "seconds"}


def test_an_unknown_metric_is_refused_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match=r"metric must be one of .*'acuracy'.*Did you mean 'accuracy'"):
        train("acuracy", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif("metric" not in inspect.signature(qs.evaluate).parameters, reason="evaluate takes no metric yet")
@pytest.mark.parametrize("metric", [one for one in METRICS if one != "accuracy"])
def test_validation_goes_by_the_metric_that_was_named(tmp_path, metric):
    trained = train(metric, out=tmp_path / "run")
    best = min(line["val"] for line in read_metrics(tmp_path / "run"))
    score = qs.evaluate(trained, qs.tasks.sinusoid("val", 5, 5), episodes=2, seed=1_000_003, metric=metric)  # type: ignore[call-arg]
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


@pytest.mark.parametrize("options", [{"val": Two()}, {"metric": "mean squared error"}])
def test_what_cannot_be_scored_is_refused_before_the_run(tmp_path, options):
    learner = qs.MAML(Both(), loss=both_wrong, lr=0.01)
    settings = {"iterations": 2, "meta_batch": 2, "engine": "loop", "progress": False}
    with pytest.raises(ConfigError, match=r"scored in several ways|cannot score outputs"):
        qs.train(learner, Two(), out=tmp_path / "run", **settings, **options)
    assert not (tmp_path / "run").exists()
    qs.train(learner, Two(), out=tmp_path / "run", **settings)  # without either there is nothing to score
