"""A metric is a value: how its numbers are written, which of two is better, and what of it goes into a file."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import quickstudy as qs
from quickstudy.errors import ConfigError
from quickstudy.evaluation.metric import (
    ACCURACY,
    MEAN_SQUARED_ERROR,
    METRICS,
    PERCENT,
    PLAIN,
    Format,
    Metric,
    metric_for,
)
from quickstudy.evaluation.score import Difference, Score, in_words

REWARD = Metric("reward", True, Format(spec=".0f", spread=".1f", unit=" points"), lambda output, y: output.mean())
PROTOCOL = qs.Protocol("MAML", "navigation", "test", None, 5, 5, "reward", 4, 1, False, "none")


def score(*values: float, metric: Metric = REWARD, **changes: object) -> Score:
    protocol = dataclasses.replace(PROTOCOL, metric=metric.name, episodes=len(values))
    return Score(torch.tensor(values, dtype=torch.float64), protocol, own_metric=metric, **changes)  # type: ignore[arg-type]


def test_values_intervals_and_differences_are_written_in_the_metrics_unit() -> None:
    assert PERCENT(0.9741, 0.0032) == "97.4 % ± 0.3" and PERCENT(0.012, 0.003, points=True) == "1.2 points ± 0.3"
    assert PLAIN(0.1523, 0.0112) == "0.152 ± 0.011" and PERCENT.deviation(0.012) == "1.2 points"
    assert PERCENT.between(0.9741, 0.971, 0.977) == "97.4 % ± 0.3" == PERCENT.between(0.9741, 0.9711, 0.9772)
    assert PERCENT.between(0.999, 0.996, 0.9996) == "99.9 % (99.6 to 100.0)"
    assert PLAIN.between(0.2, 0.1, float("inf")) == "0.2 (0.1 and more)"
    assert PERCENT(0.5, float("inf")) == "50.0 % (one task: no interval)"
    assert (PERCENT.end, PLAIN.end) == (100.0, None)
    assert (ACCURACY.label, MEAN_SQUARED_ERROR.label) == ("accuracy (%)", "mean squared error")
    assert ACCURACY.in_words(0.9741, 0.0032) == in_words(0.9741, 0.0032, "accuracy") == "97.4 % ± 0.3"
    assert in_words(0.152, 0.011, MEAN_SQUARED_ERROR) == "0.152 ± 0.011 mean squared error"
    assert [METRICS[name].short for name in METRICS] == ["accuracy", "error", "error"]


def test_the_better_value_follows_the_direction() -> None:
    assert ACCURACY.best([0.2, 0.9, 0.5]) == 0.9 and MEAN_SQUARED_ERROR.best([0.2, 0.9, 0.5]) == 0.2
    assert (ACCURACY.sign, MEAN_SQUARED_ERROR.sign) == (1, -1)


def test_scores_and_differences_are_written_by_their_own_metric() -> None:
    high, low = score(10.0, 12.0, 11.0, 13.0), score(4.0, 6.0, 5.0, 6.5)
    assert str(high).startswith("12 points ± 2.1 reward (95 % CI over 4 episodes; ")
    assert str(score(10.0)).startswith("10 points (one task: no interval) reward (over 1 episodes; ")
    difference = qs.compare(low, high)
    assert difference.decided and str(difference).startswith("-6 ± 0.4 reward (paired")
    assert difference.signed("−") == "−6 ± 0.4"
    assert Difference(0.012, 0.009, 0.015, 0.0, "accuracy").signed() == "+1.2 points ± 0.3"


def test_a_metric_of_ones_own_survives_a_file_and_its_function_does_not() -> None:
    control = score(1.0, 2.0, 3.0, 4.0)
    plain = json.loads(json.dumps(score(10.0, 12.0, 11.0, 13.0, controls={"zero_steps": control}).to_dict()))
    back = Score.from_dict(plain)
    assert back.metric.higher_is_better and back.metric.format == REWARD.format and back.to_dict() == plain
    assert back.controls["zero_steps"].metric.format == REWARD.format
    with pytest.raises(ConfigError, match="holds no function"):
        back.metric.of(torch.zeros(1), torch.zeros(1))


def test_scores_of_the_librarys_metrics_are_written_as_before() -> None:
    for metric in METRICS.values():
        plain = score(0.1, 0.2, metric=metric).to_dict()
        assert "metric" not in plain and Score.from_dict(plain).metric is metric


def test_a_name_alone_is_read_as_plain_values() -> None:
    for name, better in (("reward", True), ("mean absolute percentage error", False)):
        one = dataclasses.replace(score(1.0, 2.0), protocol=dataclasses.replace(PROTOCOL, metric=name), own_metric=None)
        assert one.metric.higher_is_better is better and one.metric.format == PLAIN


# --- what a metric may be asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "output", "y"),
    [
        ("accuracy", torch.zeros(5, 3), torch.zeros(5, 1)),  # argmax [5] would be held against values [5, 1]
        ("accuracy", torch.zeros(5, 5), torch.zeros(5, 5, dtype=torch.int64)),
        ("accuracy", {"a": torch.zeros(5, 3)}, torch.arange(5)),
        ("mean squared error", torch.zeros(5, 5), torch.arange(5)),  # logits [5, 5] less labels [5] has a mean, too
        ("mean absolute error", torch.zeros(5, 5), torch.arange(5)),
        ("mean squared error", torch.zeros(5, 1), torch.zeros(5)),
        ("mean absolute error", torch.zeros(5, 1), {"a": torch.zeros(5, 1)}),
    ],
)
def test_shapes_that_would_broadcast_to_a_number_are_refused(name: str, output: object, y: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot score outputs .* against answers .*metric="):
        METRICS[name].of(output, y)


def test_a_named_metric_that_does_not_suit_the_tasks_is_refused() -> None:
    sines = qs.tasks.sinusoid("test", 5, 5)
    maml = qs.MAML(torch.nn.Linear(1, 1), loss=qs.mse_loss, lr=0.01)
    protonet = qs.ProtoNet(torch.nn.Flatten())
    for learner, tasks, metric in (
        (maml, sines, "accuracy"),
        (protonet, qs.tasks.glyphs("test", queries=1), "mean squared error"),
    ):
        with pytest.raises(ConfigError, match=f"{metric} cannot score"):
            qs.evaluate(qs.Trained(learner, learner.init()), tasks, episodes=2, metric=metric, engine="loop")


CLASSES, SOFT, VALUES = torch.arange(3), torch.rand(3, 4), torch.rand(3, 1)


@pytest.mark.parametrize(
    ("loss", "ways", "y", "expected"),
    [
        (qs.cross_entropy, None, CLASSES, "accuracy"),
        (torch.nn.CrossEntropyLoss(), None, CLASSES, "accuracy"),
        (qs.mse_loss, 3, CLASSES, "accuracy"),
        (qs.mse_loss, None, VALUES, "mean squared error"),
        (qs.cross_entropy, None, SOFT, None),  # an error of logits would mean nothing
        (torch.nn.functional.binary_cross_entropy_with_logits, None, VALUES, None),
        (torch.nn.BCEWithLogitsLoss(), None, VALUES, None),
        (qs.cross_entropy, 3, CLASSES[:, None], None),  # not one class number for each query
        (qs.mse_loss, None, CLASSES, None),
        (qs.mse_loss, None, {"a": VALUES}, None),
    ],
)
def test_the_default_is_never_guessed(loss: object, ways: int | None, y: object, expected: str | None) -> None:
    learner = qs.MAML(torch.nn.Linear(1, 1), loss=loss, lr=0.1)  # type: ignore[arg-type]
    episode = qs.Episode(qs.Batch(VALUES, y), qs.Batch(VALUES, y))  # type: ignore[arg-type]
    if expected is None:
        with pytest.raises(ConfigError, match="can be scored in several ways"):
            metric_for(learner, ways, episode)
    else:
        assert metric_for(learner, ways, episode).name == expected
