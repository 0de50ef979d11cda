"""One pass over the test episodes: everything measured of the answers comes from it, whoever computes it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import assert_close, clusters, cores, random_episodes
from torch import Tensor

import quickstudy as qs
from quickstudy.base import files, timing
from quickstudy.engine import mapping
from quickstudy.engine.fitting import fitted
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError, NonFiniteError
from quickstudy.evaluation import choosing, controls, passes
from quickstudy.evaluation.ensemble import mean_answer
from quickstudy.evaluation.metric import MEAN_ABSOLUTE_ERROR, MEAN_SQUARED_ERROR, Metric
from quickstudy.evaluation.predictions import Settings, predictions
from quickstudy.experiments.evaluate_run import adaptation_timing, evaluate_run
from quickstudy.experiments.examples import keep_examples
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.report.one_run import controls as rows_of


@dataclass(frozen=True, eq=False)
class Counting(Learner):
    """The nearest class mean; counts its answers and notes where the inputs were."""

    ways: int = 3
    asked: list[str] = field(default_factory=list)

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Any:
        return qs.NearestCentroid(self.ways).adapt({}, support)

    def predict(self, theta: Theta, phi: Any, x: Tensor) -> Tensor:
        self.asked.append(str(x.device))
        return qs.NearestCentroid(self.ways).predict({}, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return torch.zeros(())


@dataclass(frozen=True, eq=False)
class Stepping(Counting):
    """The same, with inner steps that it ignores."""

    steps: int = 1


def asked_by(learner: Any, folder: Any, episodes: int, **options: Any) -> int:
    """How often a learner answers while its run is evaluated."""
    learner.asked.clear()
    quiet = {"progress": False, "engine": "loop"}
    evaluate_run(folder, qs.Trained(learner, {}), clusters(), episodes=episodes, **quiet, **options)
    return len(learner.asked)


def ragged() -> list[Episode]:
    """Tasks of 2 and 3 classes, of unequal sizes."""
    sizes = [(3, 2, 2), (2, 1, 3), (3, 2, 2), (2, 3, 1), (3, 1, 4)]
    drawn = [random_episodes(1, ways=w, shots=s, queries=q, seed=i) for i, (w, s, q) in enumerate(sizes)]
    return [unstack(one)[0] for one in drawn]


@dataclass(frozen=True, eq=False)
class Uneven:
    """These tasks, one after the other."""

    drawn: list[int] = field(default_factory=list)

    def sample(self, n: int, generator: Any = None) -> list[Episode]:
        self.drawn.append(n)
        return [ragged()[(len(self.drawn) - 1) % 5]]


# --- answers once ----------------------------------------------------------------------------------------------------


def test_a_learner_answers_each_test_episode_once(tmp_path):
    """Score, calibration and confusion come from one answer, and the control has one of its own."""
    learner, names = Counting(), ["shuffled_labels"]
    more = asked_by(learner, tmp_path, 60, names=names) - asked_by(learner, tmp_path, 30, names=names)
    assert more == 30 * 2
    assert (tmp_path / "answers.json").exists()


def test_a_curve_over_steps_repeats_no_answer(tmp_path):
    """Of 0, 1, 2, 3, 5 and 10 steps, 1 is the learner's own and 0 is a control."""
    learner, names = Stepping(), ["zero_steps"]
    more = asked_by(learner, tmp_path, 20, names=names) - asked_by(learner, tmp_path, 10, names=names)
    assert more == 10 * 6
    curve = json.loads((tmp_path / "scores.json").read_text())["steps"]
    assert [point["steps"] for point in curve] == [0, 1, 2, 3, 5, 10]


def test_what_a_run_keeps_is_what_each_measure_gives_alone(tmp_path):
    torch.manual_seed(0)
    learner = qs.MAML(qs.nn.mlp(4, 3, hidden=(8,)), lr=0.3, steps=2)
    trained, tasks = qs.Trained(learner, learner.init()), clusters(spread=1.5)
    names = ["zero_steps", "linear_probe"]
    (score,) = evaluate_run(tmp_path, trained, tasks, episodes=30, names=names, engine="loop", progress=False)
    alone = qs.evaluate(trained, tasks, episodes=30, controls=names, engine="loop")
    assert torch.equal(score.values, alone.values)
    assert all(torch.equal(score.controls[name].values, alone.controls[name].values) for name in names)
    answers = qs.Answers.from_dict(json.loads((tmp_path / "answers.json").read_text()))
    assert answers == qs.classification_calibration(trained, tasks, episodes=30, engine="loop")
    for point in json.loads((tmp_path / "scores.json").read_text())["steps"]:
        one = qs.evaluate(trained, tasks, episodes=30, steps=point["steps"], engine="loop")
        assert (point["mean"], point["interval"]) == (pytest.approx(one.mean), pytest.approx(one.interval))


@pytest.mark.parametrize("engine", ["vmap", "threads", "auto"])
def test_tasks_of_unequal_sizes_are_answered_alike_on_every_engine(engine):
    trained = qs.Trained(qs.ProtoNet(qs.nn.mlp(4, 5, hidden=(6,)), ways=3), {})
    trained = dataclasses.replace(trained, theta=trained.learner.init())
    settings = [Settings(7, engine=name) for name in (engine, "loop")]
    with cores(2):
        one, other = (predictions(trained, Uneven(), each) for each in settings)
    assert len({output.shape for output in other.outputs}) > 1
    for a, b in zip(one.outputs, other.outputs, strict=True):
        assert_close(a, b, 1e-5)
    for (_, episode), y in zip((fitted(trained.learner, e) for e in ragged()), other.truths, strict=False):
        assert torch.equal(episode.query.y, y)


def test_results_of_a_list_may_differ_in_shape():
    with cores(2):
        for engine in ("loop", "vmap", "threads"):
            found = mapping.map_each(lambda learner, e: e.query.y, qs.NearestCentroid(3), ragged(), engine)
            assert [len(y) for y in found] == [len(e.query.y) for e in ragged()]


@dataclass(frozen=True, eq=False)
class OnPolicy:
    """Tasks that ask who acts in them."""

    seen: list[Any]
    on_policy: bool = True

    def sample(self, n: int, generator: Any = None, *, learner: Any, theta: Any) -> Episode:
        self.seen.append((learner, theta))
        return clusters().sample(n, generator)


def test_a_source_on_policy_is_given_who_acts():
    seen: list[Any] = []
    learner, theta = qs.NearestCentroid(3), {}
    qs.evaluate(SimpleNamespace(learner=learner, theta=theta), OnPolicy(seen), episodes=30, engine="loop")
    assert len(seen) == 30 and all(pair == (learner, theta) for pair in seen)
    assert controls.available(learner, OnPolicy(seen)) == ["shuffled_labels"]


# --- the engine ------------------------------------------------------------------------------------------------------


def a_pass(episodes: int = 10) -> passes.Pass:
    return passes.begin(qs.NearestCentroid(3), {}, clusters(), episodes, 1)


def test_an_engine_of_a_similar_learner_is_taken_only_where_it_gives_the_loops_results():
    def decides(learner: Learner, episode: Episode) -> Tensor:
        return episode.query.x.sum() if episode.query.x.sum() > 0 else episode.query.x.mean()

    def sums(learner: Learner, episode: Episode) -> Tensor:
        return episode.query.x.sum()

    assert choosing.chosen_engine(a_pass(), sums, "auto", "vmap") == "vmap"
    assert choosing.chosen_engine(a_pass(), decides, "auto", "vmap") != "vmap"
    assert choosing.chosen_engine(a_pass(), sums, "loop", "vmap") == "loop"


def test_costly_tasks_are_not_raced(monkeypatch):
    """One task per thread is right for them, and the race would take longer than it could save."""
    calls: list[int] = []

    def measure(learner: Learner, episode: Episode) -> Tensor:
        calls.append(1)
        return episode.query.x.sum()

    with cores(2):
        monkeypatch.setattr(choosing, "COSTLY", 0.0)
        assert choosing.chosen_engine(a_pass(), measure) == "threads" and not calls
        monkeypatch.setattr(choosing, "COSTLY", 1e9)
        choosing.chosen_engine(a_pass(), measure)
    assert calls


def test_the_first_look_at_a_task_takes_one_thread_and_gives_the_others_back():
    threads: list[int] = []

    @dataclass(frozen=True, eq=False)
    class Noting(Counting):
        def adapt(self, theta: Theta, support: Batch) -> Any:
            threads.append(torch.get_num_threads())
            return super().adapt(theta, support)

    with cores(2):
        passes.begin(Noting(), {}, clusters(), 5, 1)
        assert set(threads) == {1} and torch.get_num_threads() == 2


def test_a_pass_keeps_its_order_and_counts():
    done: list[int] = []
    one = passes.begin(qs.NearestCentroid(3), {}, clusters(), 60, 1)
    found = list(passes.results(one, lambda learner, e: e.query.x, "vmap", done.append))
    drawn = [block.query.x for block in passes.sample_blocks(clusters(), 60, 1, torch.device("cpu"))]
    assert torch.equal(torch.stack(found), torch.cat(drawn)) and done == [25, 25, 10]


# --- metrics ---------------------------------------------------------------------------------------------------------


def waves() -> tuple[Any, Any]:
    torch.manual_seed(0)
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    return SimpleNamespace(learner=learner, theta=learner.init()), qs.tasks.sinusoid("test", shots=5, queries=4)


@dataclass(frozen=True, eq=False)
class InUnits:
    """Tasks whose answers are in tenths."""

    source: Any
    unit: float = 0.1

    def sample(self, n: int, generator: Any = None) -> Episode:
        return self.source.sample(n, generator)


def test_the_metric_is_the_one_asked_for():
    trained, tasks = waves()
    worst = Metric("largest error", False, Metric.PLAIN, lambda output, y: (output - y).abs().max(), power=1)
    made = predictions(trained, tasks, Settings(6, engine="loop"))
    for metric, of in (
        (worst, lambda output, y: (output - y).abs().max()),
        ("mean absolute error", lambda output, y: (output - y).abs().mean()),
        (None, lambda output, y: ((output - y) ** 2).mean()),
    ):
        score = qs.evaluate(trained, tasks, episodes=6, metric=metric, engine="loop", controls=["support_mean"])
        wanted = [float(of(*pair)) for pair in zip(made.outputs, made.truths, strict=True)]
        assert score.values.tolist() == pytest.approx(wanted)
        assert score.controls["support_mean"].protocol.metric == score.protocol.metric
    assert qs.evaluate(trained, tasks, episodes=2, metric=worst).protocol.metric == "largest error"


@pytest.mark.parametrize(("metric", "power"), [(MEAN_SQUARED_ERROR, 2), (MEAN_ABSOLUTE_ERROR, 1)])
def test_errors_are_in_the_targets_own_unit(metric, power):
    trained, tasks = waves()
    plain, scaled = (qs.evaluate(trained, t, episodes=4, metric=metric) for t in (tasks, InUnits(tasks)))
    assert_close(scaled.values, plain.values * 0.1**power, 1e-6)


def test_a_metric_that_gives_no_number_is_refused():
    trained, tasks = waves()
    with pytest.raises(ConfigError, match=r"'all' gives a value of shape \(4, 1\).*\.mean\(\)"):
        qs.evaluate(trained, tasks, episodes=2, metric=Metric("all", False, Metric.PLAIN, lambda a, b: a - b))
    with pytest.raises(ConfigError, match="metric must be one of"):
        qs.evaluate(trained, tasks, episodes=2, metric="acuracy")
    with pytest.raises(NonFiniteError, match="test episode 0"):
        nothing = Metric("nothing", True, Metric.PLAIN, lambda a, b: torch.tensor(float("nan")))
        qs.evaluate(trained, tasks, episodes=2, metric=nothing)


def test_an_ensemble_averages_each_of_several_targets_in_its_own_way():
    """Classes by their probabilities, values as they are."""
    x, y = torch.zeros(1, 1), {"class": torch.tensor([1]), "value": torch.tensor([[2.0]])}

    @dataclass(frozen=True, eq=False)
    class Two(Counting):
        def adapt(self, theta: Theta, support: Batch) -> Theta:
            return theta

        def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Any:
            return {"class": phi["logits"], "value": phi["value"]}

    thetas = [
        {"logits": torch.tensor([[0.0, 3.0]]), "value": torch.tensor([[1.0]])},
        {"logits": torch.tensor([[1.0, 0.0]]), "value": torch.tensor([[4.0]])},
    ]
    mean = mean_answer(Two(), thetas, Episode(Batch(x, y), Batch(x, y)))
    p = sum(theta["logits"].double().softmax(1) for theta in thetas) / 2
    assert_close(mean["class"].exp(), p, 1e-12)
    assert mean["value"].tolist() == [[2.5]]
    with pytest.raises(ConfigError, match="nested as the targets"):
        mean_answer(Two(), thetas, Episode(Batch(x, x), Batch(x, x)))


# --- dear controls ---------------------------------------------------------------------------------------------------


def test_a_dear_control_answers_the_first_episodes_and_is_compared_on_these(monkeypatch):
    monkeypatch.setattr(controls, "PAIRED", 4)
    torch.manual_seed(0)
    learner = qs.MAML(qs.nn.mlp(4, 3, hidden=(8,)), lr=0.3, steps=2)
    trained = qs.Trained(learner, learner.init())
    names = ["from_scratch", "linear_probe"]
    score = qs.evaluate(trained, clusters(spread=1.5), episodes=10, controls=names, engine="loop")
    dear, cheap = (score.controls[name] for name in names)
    assert dear.protocol.episodes == len(dear.values) == 4 and cheap.protocol.episodes == len(cheap.values) == 10
    assert "over 4 episodes" in str(dear)
    few = qs.evaluate(trained, clusters(spread=1.5), episodes=4, controls=names, engine="loop")
    assert torch.equal(few.controls["from_scratch"].values, dear.values)
    difference = score.against(dear)
    assert difference.mean == pytest.approx(float((score.values[:4] - dear.values).mean()))
    assert difference == few.against(dear) and difference.interval != score.against(cheap).interval
    row, other = rows_of(score)
    assert "on the first 4 test tasks" in row["what"] and "Not comparable" not in row["reading"]
    assert "first" not in other["what"]
    with pytest.raises(qs.errors.ProtocolError, match="episodes: 10 against 4"):
        qs.compare(score, dear)


def test_a_score_on_its_first_episodes_keeps_their_tasks():
    protocol = qs.Protocol("MAML", "glyphs", "test", 5, 1, 15, "accuracy", 3, 1, False, "none")
    values = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    few = qs.Score(values, protocol, tasks=("a", "b", "b")).first(2)
    assert few.values.tolist() == [0.2, 0.4] and few.tasks == ("a", "b") and few.protocol.episodes == 2


# --- time and devices ------------------------------------------------------------------------------------------------


def test_timing_waits_for_the_accelerator_before_and_after(monkeypatch):
    events: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", events.append)
    gpu = torch.device("cuda", 0)
    result, seconds = timing.timed(lambda: events.append("work") or 7, gpu)
    assert result == 7 and seconds >= 0 and events == [gpu, "work", gpu]
    events.clear()
    timing.timed(lambda: None, torch.device("cpu"))
    assert events == []


@dataclass(frozen=True, eq=False)
class Somewhere(Learner):
    """Refuses inputs that are not where theta is."""

    asked: list[str] = field(default_factory=list)

    def init(self) -> Theta:
        return {"w": torch.zeros(1, device="meta")}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        assert support.x.device == support.y.device == theta["w"].device
        return theta["w"]

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        self.asked.append(str(x.device))
        return x * phi

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return torch.zeros(())


def test_tasks_are_moved_to_where_theta_is(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device=None: None)
    learner = Somewhere()
    trained = qs.Trained(learner, learner.init())
    assert set(adaptation_timing(trained, qs.tasks.sinusoid("test"))) == {"adapt_seconds", "predict_seconds"}
    assert learner.asked == ["meta"] * 12


def test_examples_are_kept_on_the_cpu(tmp_path):
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    keep_examples(
        tmp_path, qs.Trained(learner, learner.init()), qs.tasks.sinusoid("test"), 1, None, 5, MEAN_SQUARED_ERROR
    )
    tensors, header = files.read_tensors(tmp_path / "examples.safetensors", "examples")
    assert header["episodes"] == 3 and tensors["0.curve.1"].shape == (200, 1)


# --- files of earlier versions ---------------------------------------------------------------------------------------


def test_files_with_the_old_name_of_the_likelihood_are_read():
    found = qs.classification_calibration(qs.Trained(qs.NearestCentroid(3), {}), clusters(spread=1.5), episodes=4)
    plain = found.to_dict()
    old = {"surprise" if key == "negative_log_likelihood" else key: value for key, value in plain.items()}
    assert qs.Answers.from_dict(old) == found and found.surprise == found.negative_log_likelihood
    learner = qs.CNP(torch.nn.Flatten(), width=1, representation=16)
    trained = qs.Trained(learner, learner.init())
    measured = qs.interval_coverage(trained, qs.tasks.sinusoid("test"), episodes=4, points=(5,))
    plain = measured.to_dict()
    plain["sizes"][0]["surprise"] = plain["sizes"][0].pop("negative_log_likelihood")
    assert qs.Calibration.from_dict(plain) == measured and measured[5].surprise == measured[5].negative_log_likelihood


def test_embeddings_with_the_old_name_of_their_fits_are_read():
    learner = qs.CNP(torch.nn.Flatten(), width=1, representation=16)
    found = qs.task_embeddings(qs.Trained(learner, learner.init()), qs.tasks.sinusoid("test"), episodes=12)
    plain = found.to_dict()
    plain["told"] = plain.pop("from_neighbours")
    assert qs.TaskEmbeddings.from_dict(plain).told == found.told == found.from_neighbours
