"""Scores: the interval covers, the episodes are the same for all, and no wrong number passes in silence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from problems import assert_close, clusters, cores, random_episodes, smooth_conv, snapshot, tensors_of
from torch import Tensor

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.engine import fitting, mapping
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError, DataError, NonFiniteError, ProtocolError
from quickstudy.evaluation import controls, scoring
from quickstudy.evaluation.score import Difference, Score, half_width
from quickstudy.learner import Batch, Episode, Learner, Theta

PROTOCOL = qs.Protocol("MAML", "glyphs", "test", 5, 1, 15, "accuracy", 600, 1, False, "none")


def ready(learner: Learner) -> Any:
    """A learner as it starts, in the place of a trained one."""
    return SimpleNamespace(learner=learner, theta=learner.init())


def score_of(values: Any, **changes: Any) -> Score:
    return Score(torch.as_tensor(values, dtype=torch.float64), replace(PROTOCOL, episodes=len(values), **changes))


def maml_on_vectors(**fields: Any) -> qs.MAML:
    return qs.MAML(qs.nn.mlp(4, 3, hidden=(8,), activation="tanh"), **{"lr": 0.3, "steps": 2} | fields)


# --- intervals -------------------------------------------------------------------------------------------------------


def coverage(draw: Any, mean: float, repeats: int = 2000) -> float:
    """How often the 95 % interval holds the mean. Its own standard error is 0.005."""
    held = 0
    for i in range(repeats):
        values = torch.from_numpy(draw(np.random.default_rng(i)))
        held += abs(float(values.mean()) - mean) <= half_width(values)
    return held / repeats


@pytest.mark.parametrize("n", [3, 5, 20, 100])
def test_the_interval_covers_the_mean_of_normal_scores(n):
    """Also for five scores, where the normal quantile in place of Student's would cover 88 %."""
    assert 0.93 < coverage(lambda rng: rng.normal(0.3, 2.0, n), 0.3) < 0.97


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda rng: rng.exponential(0.2, 600), 0.2),
        (lambda rng: rng.binomial(5, 0.98, 600) / 5, 0.98),
        (lambda rng: rng.beta(8, 1, 600), 8 / 9),
    ],
    ids=["errors with a long tail", "accuracy near one of five queries", "skewed accuracies"],
)
def test_the_interval_covers_the_mean_of_600_skewed_scores(draw, mean):
    assert 0.93 < coverage(draw, mean) < 0.97


def test_the_interval_is_students():
    values = torch.tensor([0.2, 0.9, 0.4, 0.7])
    low, high = scipy.stats.t.interval(0.95, 3, loc=values.mean().item(), scale=scipy.stats.sem(values.numpy()))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-6)
    assert half_width(values, 0.5) < half_width(values) < half_width(values, 0.99)


def test_one_score_has_no_interval_and_equal_scores_an_empty_one():
    assert half_width(torch.tensor([0.5])) == math.inf
    assert half_width(torch.full((10,), 0.5)) == 0.0


# --- what a score says -----------------------------------------------------------------------------------------------


def test_a_score_prints_its_percentage_first():
    score = score_of([0.96, 0.98, 1.0, 0.94])
    assert str(score).split()[0] == "97.0" and float(str(score).split()[0]) == pytest.approx(100 * score.mean)
    assert str(score) == "97.0 % (88.7 to 99.3) (95 % CI over 4 episodes; 5-way 1-shot, no norm)"
    assert repr(score) == str(score)


def test_an_error_prints_its_value_first():
    score = score_of([0.5, 0.25], metric="mean squared error", ways=None, shots=10)
    assert str(score).split()[0] == "0.375"
    assert str(score).endswith("mean squared error (95 % CI over 2 episodes; 10-shot, no norm)")


def test_mean_and_interval_by_hand():
    values = [0.2, 0.4, 0.9]
    score = score_of(values, metric="reward")
    assert score.mean == pytest.approx(0.5)
    # Student's 0.975 quantile with two degrees of freedom is 4.303.
    assert score.interval == pytest.approx(4.30265 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-5)


def test_a_score_survives_json():
    score = replace(
        score_of([0.2, 0.4, 1 / 3]), controls={"zero_steps": score_of([0.2, 0.2, 0.1], control="zero_steps")}
    )
    again = Score.from_dict(json.loads(json.dumps(score.to_dict())))
    assert str(again) == str(score) and again.protocol == score.protocol
    assert_close(again.values, score.values, 1e-6)
    assert again.controls.keys() == score.controls.keys()
    assert str(again.controls["zero_steps"]) == str(score.controls["zero_steps"])


def test_a_small_error_survives_json_with_its_digits():
    """Mean squared errors of a millionth are ordinary for smooth functions."""
    score = score_of([2.34567e-7, 3.45678e-7, 1.1e-8], metric="mean squared error")
    again = Score.from_dict(json.loads(json.dumps(score.to_dict())))
    assert again.mean == pytest.approx(score.mean, rel=1e-4)
    assert str(again) == str(score)


def test_a_score_is_saved_as_readable_json(tmp_path):
    score = score_of([0.2, 0.4])
    score.save(str(tmp_path / "scores.json"))
    plain = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert plain["text"] == str(score) and plain["protocol"]["shots"] == 1


# --- paired comparison -----------------------------------------------------------------------------------------------


def test_a_paired_comparison_by_hand():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.5, 1, 50)
    b = a - 0.02 + 0.05 * rng.normal(size=50)
    found = qs.compare(score_of(a), score_of(b))
    low, high = scipy.stats.t.interval(0.95, 49, loc=(a - b).mean(), scale=scipy.stats.sem(a - b))
    assert found.mean == pytest.approx((a - b).mean()) and found.interval == pytest.approx((high - low) / 2)
    assert found.decided == (low > 0 or high < 0)


def test_pairing_decides_what_the_two_intervals_cannot():
    """A small constant gain on tasks of very unequal difficulty."""
    a = torch.rand(100, dtype=torch.float64)
    better, plain = score_of(a + 0.01 + 0.001 * torch.randn(100)), score_of(a)
    assert better.mean - better.interval < plain.mean
    assert qs.compare(better, plain).decided


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (
            Difference(0.013, 0.009, 0.017, 0.001, "accuracy"),
            "+1.3 points ± 0.4 (paired, 95 % CI, these trainings alone; decided)",
        ),
        (
            Difference(-0.002, -0.006, 0.002, 0.3, "accuracy", (3, 3)),
            "-0.2 points ± 0.4 (paired, 95 % CI, over 3 trainings; not decided: the interval holds zero)",
        ),
        (
            Difference(-0.5, -0.6, -0.4, 0.0, "mean squared error", (5, 1)),
            "-0.5 ± 0.1 mean squared error (paired, 95 % CI, over 5 against 1 trainings; decided)",
        ),
    ],
)
def test_a_difference_in_words(difference, text):
    assert str(difference) == text


def test_a_comparison_under_unlike_protocols_is_refused_by_field():
    learner = qs.NearestCentroid(3)
    one = qs.evaluate(ready(learner), clusters(), episodes=4)
    for other, name in (
        (qs.evaluate(ready(learner), clusters(shots=1), episodes=4), "shots: 2 against 1"),
        (qs.evaluate(ready(learner), clusters(), episodes=5), "episodes: 4 against 5"),
        (qs.evaluate(ready(learner), clusters(), episodes=4, seed=2), "seed: 1 against 2"),
    ):
        with pytest.raises(ProtocolError, match=name):
            qs.compare(one, other)


def test_two_normalisations_of_one_network_compare_only_when_allowed():
    trained = ready(qs.MAML(smooth_conv("batch")))
    tasks = clusters((1, 6, 6))
    alike = {"episodes": 5, "engine": "loop"}
    batch = qs.evaluate(trained, tasks, **alike)
    support = qs.evaluate(trained, tasks, transductive=False, **alike)
    assert batch.protocol.transductive and not support.protocol.transductive
    assert support.protocol.normalisation == "support"
    with pytest.raises(ProtocolError, match="transductive: True against False"):
        qs.compare(batch, support)
    assert qs.compare(batch, support, allow=("transductive",)).mean == pytest.approx(batch.mean - support.mean)


# --- several trainings -----------------------------------------------------------------------------------------------


def trainings(values: Any, **changes: Any) -> Score:
    """The score of these trainings [trainings, episodes]."""
    return Score.of_trainings([score_of(row, **changes) for row in values])


def test_a_score_of_trainings_is_their_mean_and_survives_json():
    rows = torch.rand(3, 20, dtype=torch.float64)
    score = trainings(rows)
    assert torch.equal(score.values, rows.mean(0))
    assert score.trainings.shape == (3, 20) and score.first(5).trainings.shape == (3, 5)
    again = Score.from_dict(json.loads(json.dumps(score.to_dict())))
    assert again.interval == pytest.approx(score.interval, rel=1e-6) and str(again) == str(score)
    one = trainings(rows[:1])
    assert one.trainings is None and "trainings" not in one.to_dict()


def test_controls_of_trainings_are_joined_where_every_training_has_them():
    both = {"nearest_centroid": score_of([0.3, 0.5])}
    scores = [replace(score_of([0.5, 0.7]), controls=both | {"nil": score_of([0.1, 0.2])}), score_of([0.5, 0.9])]
    assert Score.of_trainings(scores).controls == {}
    joined = Score.of_trainings([scores[0], replace(scores[1], controls=both)])
    assert joined.controls.keys() == both.keys() and joined.controls["nearest_centroid"].mean == pytest.approx(0.4)


def test_trainings_under_unlike_protocols_are_no_one_score():
    with pytest.raises(ProtocolError, match="learner: 'MAML' against 'ProtoNet'"):
        Score.of_trainings([score_of([0.5, 0.7]), score_of([0.5, 0.7], learner="ProtoNet")])
    with pytest.raises(ConfigError, match="got none"):
        Score.of_trainings([])


# --- evaluate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Recording:
    """A task source that remembers what it gave."""

    source: Any
    given: list[Episode]
    ways: int = 3

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        self.given.append(self.source.sample(n, generator))
        return self.given[-1]

    def describe(self) -> dict[str, Any]:
        return self.source.describe()


def recorded(learner: Learner, name: str = "loop", **options: Any) -> list[Episode]:
    tasks = Recording(clusters(), [])
    qs.evaluate(ready(learner), tasks, engine=name, **{"episodes": 30, "seed": 4} | options)
    return tasks.given


def same_episodes(a: list[Episode], b: list[Episode]) -> bool:
    return all(torch.equal(s, t) for s, t in zip(tensors_of(a), tensors_of(b), strict=True))


def test_test_episodes_follow_from_the_seed_alone():
    """The same for every learner, engine, state of torch's generator, and number of episodes."""
    wanted = recorded(maml_on_vectors())
    assert len(wanted) == 30
    torch.manual_seed(123)
    for found in (
        recorded(qs.NearestCentroid(3)),
        recorded(maml_on_vectors(steps=0), "vmap"),
        recorded(maml_on_vectors(), "threads"),
        recorded(maml_on_vectors(), "auto"),
    ):
        assert same_episodes(found, wanted)
    assert same_episodes(recorded(maml_on_vectors(), episodes=7), wanted[:7])
    assert not same_episodes(recorded(maml_on_vectors(), seed=5), wanted)


def test_no_episode_comes_twice():
    given = recorded(qs.NearestCentroid(3), episodes=60)
    assert len({tuple(episode.query.x.flatten().tolist()) for episode in given}) == 60


@pytest.mark.parametrize("name", ["vmap", "threads", "auto"])
def test_engines_and_thread_counts_give_the_loops_score(name):
    trained = ready(maml_on_vectors())
    wanted = qs.evaluate(trained, clusters(), episodes=40, engine="loop")
    with cores(2):
        found = qs.evaluate(trained, clusters(), episodes=40, engine=name)
    assert_close(found.values, wanted.values, 1e-6)
    assert qs.compare(found, wanted).mean == pytest.approx(0, abs=1e-9)


def test_evaluation_changes_nothing():
    trained = ready(qs.MAML(smooth_conv("batch")))
    tasks = clusters((1, 6, 6))
    unchanged, state = snapshot(trained.theta, trained.learner.model, tasks.examples), torch.get_rng_state()
    qs.evaluate(trained, tasks, episodes=5, transductive=False, controls=controls.available(trained.learner, tasks))
    assert unchanged() and torch.equal(torch.get_rng_state(), state)


def test_accuracy_by_hand():
    """The share of right queries of each episode, from a plain loop over episodes and queries."""
    learner, tasks = maml_on_vectors(), clusters(queries=5, spread=1.5)
    trained = ready(learner)
    score = qs.evaluate(trained, tasks, episodes=30, seed=7, engine="loop")
    shares = []
    for i in range(30):
        support, query = (Batch(b.x[0], b.y[0]) for b in tasks.sample(1, seeds.generator(7, "test", i)))
        output = learner.predict(trained.theta, learner.adapt(trained.theta, support), query.x)
        shares.append(sum(int(row.argmax()) == int(y) for row, y in zip(output, query.y, strict=True)) / len(query.y))
    assert_close(score.values, torch.tensor(shares, dtype=torch.float64), 1e-6)
    assert 0 < score.mean < 1 and score.values.dtype == torch.float64


def test_mean_squared_error_by_hand():
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=1)
    trained, tasks = ready(learner), qs.tasks.sinusoid("test", shots=5, queries=4)
    score = qs.evaluate(trained, tasks, episodes=12, seed=7, engine="loop")
    errors = []
    for i in range(12):
        support, query = (Batch(b.x[0], b.y[0]) for b in tasks.sample(1, seeds.generator(7, "test", i)))
        output = learner.predict(trained.theta, learner.adapt(trained.theta, support), query.x)
        errors.append(float(((output - query.y) ** 2).mean().detach()))
    assert_close(score.values, torch.tensor(errors, dtype=torch.float64), 1e-5)
    assert score.protocol.metric == "mean squared error" and score.protocol.ways is None


def test_steps_at_test_are_those_asked_for():
    trained = ready(maml_on_vectors(steps=1))
    more = qs.evaluate(trained, clusters(), episodes=20, steps=7)
    built_so = SimpleNamespace(learner=replace(trained.learner, steps=7), theta=trained.theta)
    assert_close(more.values, qs.evaluate(built_so, clusters(), episodes=20).values, 1e-9)
    assert more.protocol.steps == 7 and trained.learner.steps == 1


def test_ways_at_test_are_those_of_the_tasks():
    """An embedding does not depend on the number of classes it was trained with."""
    trained = ready(qs.ProtoNet(qs.nn.mlp(4, None, hidden=(8,)), ways=3))
    score = qs.evaluate(trained, clusters(ways=5), episodes=10)
    assert score.protocol.ways == 5 and score.mean > 0.5


@pytest.mark.parametrize("episodes", [1, 24, 25, 26, 60])
def test_blocks_do_not_show(episodes):
    done: list[int] = []
    trained = ready(qs.NearestCentroid(3))
    score = qs.evaluate(trained, clusters(spread=1.5), episodes=episodes, progress=done.append)
    whole = qs.evaluate(trained, clusters(spread=1.5), episodes=60)
    assert len(score.values) == score.protocol.episodes == sum(done) == episodes
    assert torch.equal(score.values, whole.values[:episodes])


def test_episodes_are_drawn_as_they_are_needed():
    """600 episodes of 5-way tasks with 84x84 colour images are four gigabytes: a block of them at a time is enough."""
    tasks, drawn = Recording(clusters(), []), []
    qs.evaluate(ready(qs.NearestCentroid(3)), tasks, episodes=100, progress=lambda n: drawn.append(len(tasks.given)))
    assert drawn[0] < 100 == drawn[-1]


def test_training_helps_on_held_out_classes():
    """The whole way: train on some classes, score on others, and beat both chance and the untrained start."""
    learner = qs.MAML(qs.nn.mlp(4, 3, hidden=(16,)), lr=0.3, steps=2)
    trained = qs.train(
        learner,
        clusters(classes=20, seed=1),
        iterations=60,
        meta_batch=8,
        engine="vmap",
        optimizer=lambda values: torch.optim.Adam(values, lr=1e-2),
        progress=False,
    )
    tasks = clusters(classes=12, seed=2)
    after, before = (qs.evaluate(t, tasks, episodes=100, engine="vmap") for t in (trained, ready(learner)))
    gain = qs.compare(after, before)
    assert gain.mean > 0 and gain.decided
    assert after.mean > 1 / 3 + 5 * float(after.values.std()) / 10


# --- controls --------------------------------------------------------------------------------------------------------


def test_shuffled_labels_leave_chance():
    """On tasks that are solved without a flaw otherwise."""
    score = qs.evaluate(ready(qs.NearestCentroid(3)), clusters(spread=0.05), episodes=400, controls=["shuffled_labels"])
    control = score.controls["shuffled_labels"]
    assert score.mean == 1.0
    assert control.mean == pytest.approx(1 / 3, abs=4 * float(control.values.std()) / 20)
    assert control.protocol == replace(score.protocol, control="shuffled_labels")


def test_zero_steps_is_evaluating_with_no_steps():
    trained = ready(maml_on_vectors())
    score = qs.evaluate(trained, clusters(), episodes=30, controls=["zero_steps"])
    none = qs.evaluate(trained, clusters(), episodes=30, steps=0)
    assert torch.equal(score.controls["zero_steps"].values, none.values)
    assert score.controls["zero_steps"].protocol == replace(none.protocol, control="zero_steps")


def test_zero_steps_of_an_untrained_network_is_chance():
    control = qs.evaluate(ready(maml_on_vectors(steps=0)), clusters(queries=5), episodes=300)
    assert control.mean == pytest.approx(1 / 3, abs=4 * float(control.values.std()) / math.sqrt(300))


def test_nearest_centroid_as_a_control_is_the_learner():
    score = qs.evaluate(ready(maml_on_vectors()), clusters(spread=1.5), episodes=30, controls=["nearest_centroid"])
    alone = qs.evaluate(ready(qs.NearestCentroid(3)), clusters(spread=1.5), episodes=30)
    assert torch.equal(score.controls["nearest_centroid"].values, alone.values)


def test_a_linear_probe_solves_linear_tasks():
    score = qs.evaluate(ready(maml_on_vectors()), clusters(spread=0.05), episodes=30, controls=["linear_probe"])
    assert score.controls["linear_probe"].mean > 0.99


@dataclass(frozen=True)
class Lines:
    """Regression tasks y = a x + b, exactly; x in [-width, width]."""

    width: float

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        a, b = torch.randn(2, n, 1, 1, generator=generator)
        x = self.width * (2 * torch.rand(n, 20, 1, generator=generator) - 1)
        y = a * x / self.width + b
        return Episode(Batch(x[:, :10], y[:, :10]), Batch(x[:, 10:], y[:, 10:]))


@pytest.mark.parametrize("width", [0.1, 1.0, 5.0, 100.0])
def test_a_linear_probe_of_lines_leaves_no_error_whatever_the_unit_of_x(width):
    """The answers have variance 1.3. A probe that fails is no bar to beat; one that diverges ends the evaluation."""
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.0, steps=1)
    score = qs.evaluate(ready(learner), Lines(width), episodes=10, controls=["linear_probe"])
    assert score.controls["linear_probe"].mean < 0.05


def test_controls_repeat_themselves_whatever_the_callers_stream_was():
    """New weights are drawn for some of them, and a regression starts from a random head."""
    trained, tasks = ready(qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)), qs.tasks.sinusoid("test")
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scores.append(qs.evaluate(trained, tasks, episodes=4, controls=["from_scratch", "linear_probe"], engine="loop"))
    for name, score in scores[0].controls.items():
        assert torch.equal(score.values, scores[1].controls[name].values)


def test_a_control_that_diverges_is_left_out_with_a_warning():
    """The score itself is not lost with it."""
    x = 1e4 * torch.randn(1, 5, 1)
    tasks = Given(Episode(Batch(x, x), Batch(x, x)))
    trained = ready(qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.0))
    with pytest.warns(UserWarning, match="'from_scratch' diverged"):
        score = qs.evaluate(trained, tasks, episodes=2, controls=["from_scratch", "linear_probe"])
    assert math.isfinite(score.mean) and set(score.controls) == {"linear_probe"}


@pytest.mark.parametrize("build", [maml_on_vectors, lambda: qs.ProtoNet(qs.nn.mlp(4, None, hidden=(8,)), ways=3)])
def test_training_from_scratch_ignores_theta(build):
    """An encoder gets a head of its own; what was learned across tasks does not leak in."""
    learner = build()
    theta = learner.init()
    other = {name: value + 1 for name, value in theta.items()}
    one, two = (
        qs.evaluate(SimpleNamespace(learner=learner, theta=at), clusters(), episodes=10, controls=["from_scratch"])
        for at in (theta, other)
    )
    assert torch.equal(one.controls["from_scratch"].values, two.controls["from_scratch"].values)
    assert one.controls["from_scratch"].mean > 0.6


def test_controls_meet_the_same_episodes():
    tasks = Recording(clusters(), [])
    qs.evaluate(ready(maml_on_vectors()), tasks, episodes=3, engine="loop", controls=["shuffled_labels", "zero_steps"])
    assert len(tasks.given) == 9
    assert same_episodes(tasks.given[:3], tasks.given[3:6]) and same_episodes(tasks.given[:3], tasks.given[6:])


def test_the_mean_of_the_support_answers_is_a_control_for_values():
    tasks, learner = qs.tasks.sinusoid("test", shots=4), qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss)
    found = qs.evaluate(ready(learner), tasks, episodes=3, controls=["support_mean"]).controls["support_mean"]
    for i, value in enumerate(found.values.tolist()):
        (_, y), (_, truth) = unstack(tasks.sample(1, seeds.generator(1, "test", i)))[0]
        assert value == pytest.approx(float(((truth - y.mean()) ** 2).mean()))
    with pytest.raises(ConfigError, match="have classes"):
        qs.evaluate(ready(maml_on_vectors()), clusters(), episodes=3, controls=["support_mean"])


def test_the_controls_that_make_sense_are_offered():
    maml, centroid = maml_on_vectors(), qs.NearestCentroid(3)
    of_texts = {"tf_idf_centroid", "tf_idf_regression"}
    assert set(controls.available(maml, clusters())) == set(controls.CONTROLS) - {"support_mean"} - of_texts
    assert controls.available(centroid, clusters()) == ["shuffled_labels", "nearest_centroid", "linear_probe"]
    offered = controls.available(maml_on_vectors(loss=qs.mse_loss), qs.tasks.sinusoid())
    assert "nearest_centroid" not in offered and "support_mean" in offered
    for learner, tasks in ((maml, clusters()), (centroid, clusters())):
        found = qs.evaluate(ready(learner), tasks, episodes=3, controls=controls.available(learner, tasks)).controls
        assert all(0 <= score.mean <= 1 for score in found.values())


def test_controls_of_a_regression():
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=1)
    tasks = qs.tasks.sinusoid("test")
    found = qs.evaluate(ready(learner), tasks, episodes=5, controls=controls.available(learner, tasks)).controls
    assert set(found) == {
        "zero_steps",
        "shuffled_labels",
        "untrained",
        "support_mean",
        "linear_probe",
        "from_scratch",
    }
    assert all(math.isfinite(score.mean) for score in found.values())


# --- no wrong number in silence --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Breaks(Learner):
    """Gives NaN on the episodes whose first query input is above a bound."""

    bound: float

    def init(self) -> Theta:
        return {"w": torch.zeros(4, 3)}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return theta["w"]

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return torch.where(x[:1, :1] > self.bound, torch.nan, x @ phi)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return self.predict(theta, self.adapt(theta, episode.support), episode.query.x).sum()


@pytest.mark.parametrize("name", ["loop", "vmap", "threads", "auto"])
def test_an_output_that_is_not_finite_is_refused_with_its_episode(name):
    given = recorded(qs.NearestCentroid(3), episodes=40)
    firsts = [float(episode.query.x[0, 0, 0]) for episode in given]
    bound = sorted(firsts)[-2]  # one episode of the forty is above
    bad = firsts.index(max(firsts))
    assert bad > 0
    with pytest.raises(NonFiniteError, match=f"test episode {bad} "):
        qs.evaluate(ready(Breaks(bound)), clusters(), episodes=40, seed=4, engine=name)


def test_theta_that_is_not_finite_is_refused():
    trained = ready(maml_on_vectors())
    trained.theta["head.bias"][0] = torch.nan
    with pytest.raises(NonFiniteError, match="test episode 0 "):
        qs.evaluate(trained, clusters(), episodes=3)


@dataclass(frozen=True)
class Given:
    """A task source of one batch of episodes."""

    episodes: Episode

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        return Episode(*(Batch(*(t[:1] for t in batch)) for batch in self.episodes))


def changed(part: str, **tensors: Tensor) -> Given:
    episodes = random_episodes(1)
    return Given(episodes._replace(**{part: getattr(episodes, part)._replace(**tensors)}))


@pytest.mark.parametrize("part", ["support", "query"])
def test_bad_data_is_refused_by_part(part):
    trained = ready(maml_on_vectors())
    with pytest.raises(DataError, match=f"the {part} inputs hold NaN"):
        qs.evaluate(trained, changed(part, x=torch.full((1, 6, 4), torch.nan)), episodes=1)
    for label in (-1, 3):
        with pytest.raises(DataError, match=r"labels must be 0\.\.2"):
            qs.evaluate(trained, changed(part, y=torch.full((1, 6), label)), episodes=1)
    with pytest.raises(DataError, match=r"\(6, 5\)"):
        qs.evaluate(trained, changed(part, x=torch.zeros(1, 6, 5)), episodes=1)


def test_bad_data_after_the_first_episode_is_refused_too():
    """All episodes of a block are looked at, not only the first."""

    class Later:
        drawn = 0

        def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
            self.drawn += 1
            support, query = random_episodes(1)
            return Episode(support, query._replace(y=query.y + 3 * (self.drawn == 30)))

    with pytest.raises(DataError, match="labels must be"):
        qs.evaluate(ready(maml_on_vectors()), Later(), episodes=40)


def test_answers_of_another_shape_are_not_broadcast():
    """A [n] answer against a [n, 1] output would average over all pairs."""
    flat = Given(Episode(*(Batch(torch.randn(1, 5, 1), torch.randn(1, 5)) for _ in range(2))))
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=lambda output, y: ((output[:, 0] - y) ** 2).mean(), lr=0.01)
    with pytest.raises(DataError, match=r"answers with shape \(5, 1\), but the tasks' y has shape \(5,\)"):
        qs.evaluate(ready(learner), flat, episodes=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"episodes": -3}, "episodes"),
        ({"steps": -1}, "steps"),
        ({"engine": "gpu"}, "engine must be one of"),
        ({"controls": ["shufled_labels"]}, r"Did you mean 'shuffled_labels'"),
        ({"transductive": True}, "'none'"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        qs.evaluate(ready(maml_on_vectors()), clusters(), **{"episodes": 2} | options)


def test_settings_that_a_learner_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="NearestCentroid takes no inner steps, but steps=3"):
        qs.evaluate(ready(qs.NearestCentroid(3)), clusters(), episodes=2, steps=3)
    with pytest.raises(ConfigError, match="no zero_steps control"):
        qs.evaluate(ready(qs.NearestCentroid(3)), clusters(), episodes=2, controls=["zero_steps"])
    with pytest.raises(ConfigError, match="regression"):
        regression = ready(qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01))
        qs.evaluate(regression, qs.tasks.sinusoid(), episodes=2, controls=["nearest_centroid"])


def test_a_wrong_control_is_refused_before_any_work():
    """Not after an hour of evaluation."""
    tasks = Recording(clusters(), [])
    with pytest.raises(ConfigError):
        qs.evaluate(ready(maml_on_vectors()), tasks, episodes=2, controls=["nonsense"])
    assert tasks.given == []


def test_transduction_as_declared_needs_no_change():
    learner = qs.MAML(smooth_conv("batch"))
    assert fitting.for_test(learner, clusters((1, 6, 6)), transductive=True) is learner
    inductive = fitting.for_test(learner, clusters((1, 6, 6)), transductive=False)
    assert fitting.for_test(inductive, None, transductive=True).model is not learner.model  # type: ignore[attr-defined]
    assert fitting.for_test(maml_on_vectors(), None, transductive=False).steps == 2  # type: ignore[attr-defined]


def test_a_source_without_a_description_gets_no_wrong_one():
    """Any object with `sample` is a task source; its sizes show in its episodes. "0-shot" would be a false claim."""
    score = qs.evaluate(ready(maml_on_vectors()), Given(random_episodes(1, queries=4)), episodes=3)
    assert (score.protocol.ways, score.protocol.shots, score.protocol.queries) == (3, 2, 4)
    assert "3-way 2-shot" in str(score)


def test_an_episodes_score_is_a_scalar_under_vmap_too():
    learner, episodes = maml_on_vectors(), random_episodes(4)
    theta = learner.init()

    def one(episode: Episode) -> Tensor:
        return scoring.episode_score(learner, theta, episode)

    assert_close(mapping.map_tasks(one, episodes, "vmap"), mapping.map_tasks(one, episodes, "loop"), 1e-6)
