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
from quickstudy.engine.mapping import ENGINES
from quickstudy.engine.numerics import PRECISIONS
from quickstudy.errors import ConfigError
from quickstudy.evaluation.metric import METRICS, Metric
from quickstudy.experiments.request import Request
from quickstudy.training import TrainSettings, curve, session
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.training.checkpoint import read_metrics

SETTINGS = {one.name: one for one in dataclasses.fields(TrainSettings)}
ELSEWHERE = set(
    ["learner", "tasks", "out", "val", "compile", "optimizer", "scheduler", "resume", "device", "progress", "about"]
)


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

    def scored(trained, tasks, **options):
        thetas.append({name: value.clone() for name, value in trained.theta.items()})
        return SimpleNamespace(mean=next(scores), interval=0.1, protocol=SimpleNamespace(metric="own"))

    monkeypatch.setattr(curve, "evaluate", scored)
    trained = train(Metric("own", higher, Metric.PLAIN, lambda output, y: (output - y).abs().max()))
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


<<<<<<< HEAD
@pytest.mark.skipif("metric" not in inspect.signature(qs.evaluate).parameters, reason="evaluate takes no metric yet")
@pytest.mark.parametrize("metric", [one for one in METRICS if one != "accuracy"])
def test_validation_goes_by_the_metric_that_was_named(tmp_path, metric):
    trained = train(metric, out=tmp_path / "run")
    best = min(line["val"] for line in read_metrics(tmp_path / "run"))
    score = qs.evaluate(trained, qs.tasks.sinusoid("val", 5, 5), episodes=2, seed=1_000_003, metric=metric)  # type: ignore[call-arg]
    assert score.mean == pytest.approx(best)
=======
def test_settings_reach_the_protocol_and_the_timing(tmp_path):
    qs.train(maml(), sines(), iterations=3, meta_batch=2, precision="bf16", out=tmp_path / "run", **QUIET)
    training = json.loads((tmp_path / "run" / "protocol.json").read_text())["training"]
    assert (training["iterations"], training["meta_batch"], training["precision"]) == (3, 2, "bf16")
    assert training["optimizer"]["name"] == "Adam" and training["optimizer"]["lr"] == 1e-3
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["processor"] > 0 and timing["computing"] > 0 and timing["sampling"] > 0
    assert timing["engine"] == "loop"


def test_bf16_reaches_the_meta_loss():
    """Autocast rounds the matrix products to 8 bits: theta moves elsewhere, by about a hundredth of its way."""
    learner = maml()
    start = learner.init()
    common = {"iterations": 1, "meta_batch": 4, "optimizer": descent(0.1), **QUIET}
    exact, rounded = (
        moved(qs.train(learner, OneTask(), precision=precision, **common), start) for precision in ("float32", "bf16")
    )
    apart = float((rounded - exact).norm() / exact.norm())
    assert 1e-4 < apart < 0.1


# --- what runs together, and how it lies in memory -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Counting(Learner):
    """A learner that counts how often its meta-loss is called and keeps the layout of what it is given."""

    inner: Learner
    seen: list[bool] = field(default_factory=list)  # for each call: whether the images' channels lie last

    def init(self) -> Theta:
        return self.inner.init()

    def adapt(self, theta: Theta, support: Batch) -> Any:
        return self.inner.adapt(theta, support)

    def predict(self, theta: Theta, phi: Any, x: torch.Tensor) -> torch.Tensor:
        return self.inner.predict(theta, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> torch.Tensor:
        self.seen.append(
            episode.query.x.dim() == 4 and episode.query.x.is_contiguous(memory_format=torch.channels_last)
        )
        return self.inner.meta_loss(theta, episode)


@pytest.mark.parametrize(("chunk", "calls"), [(None, 1), (5, 1), (2, 3), (1, 5)])
def test_a_chunk_is_the_most_tasks_that_one_call_of_the_meta_loss_serves(chunk, calls):
    """Five tasks under vmap: one call for all, or one for each chunk. The mean gradient stays the same."""
    learner, episodes = Counting(maml()), sines().sample(5, torch.Generator().manual_seed(0))
    theta = learner.init()
    _, wanted = qs.meta_gradient(learner.inner, theta, episodes)
    _, found = qs.meta_gradient(learner, theta, episodes, engine="vmap", chunk=chunk)
    assert len(learner.seen) == calls
    torch.testing.assert_close(found, wanted)


def test_training_takes_its_tasks_in_chunks():
    """Two iterations more are two times as many calls more as there are chunks."""

    def calls(iterations: int, chunk: int | None) -> int:
        learner = Counting(maml())
        qs.train(
            learner, sines(), iterations=iterations, meta_batch=6, engine="vmap", chunk=chunk, progress=False, seed=0
        )
        return len(learner.seen)

    assert calls(3, 2) - calls(1, 2) == 2 * 3
    assert calls(3, 6) - calls(1, 6) == 2 * 1


def test_channels_last_is_how_images_and_kernels_lie():
    def learner() -> Counting:
        torch.manual_seed(0)
        return Counting(qs.ProtoNet(qs.nn.conv4(channels=3, filters=4, size=16, norm="none"), ways=3))

    tasks, common = clusters((3, 16, 16)), {"iterations": 2, "meta_batch": 2, "optimizer": descent(0.1), **QUIET}
    plain, changed = learner(), learner()
    first = qs.train(plain, tasks, **common)
    second = qs.train(changed, tasks, channels_last=True, **common)
    assert not any(plain.seen)
    assert all(changed.seen[-4:])  # before those, both layouts are compared
    kernels = [value for value in second.theta.values() if value.dim() == 4]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    torch.testing.assert_close(dict(second.theta), dict(first.theta), rtol=1e-4, atol=1e-5)


def test_of_accuracies_the_highest_validation_is_kept(tmp_path):
    """Climbing the loss of a classifier: its first validation is its best, and that theta is returned."""
    tasks = clusters(spread=0.2)
    torch.manual_seed(0)
    trained = qs.train(
        qs.ProtoNet(qs.nn.mlp(4, None, hidden=(8,)), ways=3),
        tasks,
        iterations=6,
        meta_batch=4,
        val=tasks,
        val_every=1,
        val_episodes=10,
        optimizer=lambda values: torch.optim.SGD(values, lr=0.3, maximize=True),
        out=tmp_path / "run",
        **QUIET,
    )
    values = [line["val"] for line in read_metrics(tmp_path / "run")]
    assert max(values) > values[-1]
    assert qs.evaluate(trained, tasks, episodes=10, seed=1_000_003).mean == pytest.approx(max(values))


def test_resuming_writes_no_iteration_twice(tmp_path):
    """Lines that were written after the last checkpoint belong to iterations that run again."""
    common = {"meta_batch": 2, "out": tmp_path / "run", **QUIET}
    qs.train(maml(), sines(), iterations=20, **common)
    path = tmp_path / "run" / "metrics.jsonl"
    kept = path.read_text()
    path.write_text(kept + json.dumps({"iteration": 40, "loss": 1e9, "seconds": 1.0}) + "\n")
    qs.train(maml(), sines(), iterations=60, resume=True, **common)
    lines = read_metrics(tmp_path / "run")
    assert path.read_text().startswith(kept)
    assert [line["iteration"] for line in lines] == [20, 40, 60]
    assert max(line["loss"] for line in lines) < 1e9


def test_losses_before_a_cut_count_in_the_line_after_it(tmp_path, monkeypatch):
    """A line holds the mean loss since the line before it, also where a checkpoint came between them."""
    common = {"meta_batch": 2, **QUIET}
    qs.train(maml(), sines(), iterations=40, out=tmp_path / "whole", **common)

    class Cut(Exception):
        pass

    class Cutting:
        """Fails when the tasks of iteration 31 are drawn."""

        drawn = 0

        def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
            self.drawn += 1
            if self.drawn > 31:
                raise Cut
            return sines().sample(n, generator)

        def describe(self):
            return sines().describe()

    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Cut):
        qs.train(maml(), Cutting(), iterations=40, out=tmp_path / "cut", **common)
    qs.train(maml(), sines(), iterations=40, out=tmp_path / "cut", resume=True, **common)
    whole, cut = (
        [(line["iteration"], line["loss"]) for line in read_metrics(tmp_path / run)] for run in ("whole", "cut")
    )
    assert cut == whole and [iteration for iteration, _ in whole] == [20, 40]
>>>>>>> mutants
