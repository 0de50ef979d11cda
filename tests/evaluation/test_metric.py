"""A metric is a value: how its numbers are written, which of two is better, and what of it goes into a file."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
)
from quickstudy.evaluation.metric_of_loss import chosen_metric, metric_for
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
    assert [METRICS[name].short for name in METRICS] == ["accuracy", "label accuracy", "error", "error"]


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


CLASSES, VALUES = torch.arange(3), torch.tensor([[0.25], [-3.0], [7.5]])
SOFT, LABELS = torch.tensor([[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])


def own_ranking(output: Any, y: Any) -> Tensor:
    return (output - y).abs().max()


class Focal(torch.nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) ** 2


@pytest.mark.parametrize(
    ("loss", "ways", "y", "expected"),
    [
        (F.cross_entropy, None, CLASSES, "accuracy"),
        (nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=0), None, CLASSES, "accuracy"),
        (functools.partial(F.cross_entropy, weight=torch.ones(3)), None, CLASSES, "accuracy"),
        (F.nll_loss, None, CLASSES, "accuracy"),
        (nn.MultiMarginLoss(), None, CLASSES, "accuracy"),
        (F.mse_loss, 3, CLASSES, "accuracy"),  # the tasks say that these are classes
        (F.cross_entropy, None, CLASSES.reshape(1, 3), "accuracy"),  # a tag for each position
        (F.cross_entropy, None, SOFT, "accuracy"),  # probabilities of classes
        (F.binary_cross_entropy_with_logits, None, LABELS, "label accuracy"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), None, LABELS, "label accuracy"),
        (functools.partial(nn.BCELoss(), weight=None), None, SOFT, "label accuracy"),
        (nn.MultiLabelSoftMarginLoss(), None, LABELS, "label accuracy"),
        (nn.SoftMarginLoss(), None, 2 * LABELS - 1, "label accuracy"),
        (F.mse_loss, None, VALUES, "mean squared error"),
        (nn.MSELoss(reduction="sum"), None, VALUES, "mean squared error"),
        (F.l1_loss, None, VALUES, "mean absolute error"),
        (functools.partial(F.huber_loss, delta=0.1), None, VALUES, "mean absolute error"),
        (nn.SmoothL1Loss(beta=2.0), None, VALUES, "mean absolute error"),
        (F.poisson_nll_loss, None, VALUES, "poisson nll loss"),
        (own_ranking, None, VALUES, "own ranking"),
        (own_ranking, None, {"a": VALUES}, "own ranking"),
        (Focal(), None, CLASSES, "Focal"),  # what it does with outputs is its own affair
        (lambda output, y: (output - y).mean(), None, VALUES, "loss"),
    ],
)
def test_the_default_follows_the_loss(loss: Any, ways: int | None, y: Any, expected: str) -> None:
    found = metric_for(*case(loss, y, ways))
    assert found.name == expected and found.higher_is_better is expected.endswith("accuracy")


@pytest.mark.parametrize(
    ("loss", "ways", "y", "says"),
    [
        (F.cross_entropy, None, VALUES, "probabilities of two classes"),  # an error of logits would mean nothing
        (F.cross_entropy, None, torch.ones(3, 1), "probabilities of two classes"),  # of one class it is always 0
        (F.nll_loss, None, SOFT, "nll_loss takes class numbers"),
        (F.binary_cross_entropy_with_logits, None, VALUES, "labels from 0 to 1"),
        (F.mse_loss, None, CLASSES, "give y as floats.*metric='accuracy'"),
        (F.mse_loss, None, {"a": VALUES}, "takes one tensor"),
        (None, None, {"a": VALUES}, r"no field `loss`.*qs\.Metric"),
    ],
)
def test_where_not_even_the_loss_fits_it_is_asked_for(loss: Any, ways: int | None, y: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=f"no metric is certain.*{says}"):
        metric_for(*case(loss, y, ways))


def case(loss: Any, y: Any, ways: int | None) -> tuple[Any, int | None, qs.Episode]:
    learner = qs.MAML(nn.Linear(1, 1), loss=loss, lr=0.1) if loss else qs.NearestCentroid()
    return learner, ways, qs.Episode(*2 * [qs.Batch(torch.zeros(3, 1), y)])


def test_a_loss_named_like_a_metric_does_not_pass_for_it() -> None:
    def accuracy(output: Tensor, y: Tensor) -> Tensor:
        return -output.mean()

    found = metric_for(*case(accuracy, VALUES, None))
    assert found.name == "accuracy loss" and not found.higher_is_better


# --- outputs and labels as the loss reads them -----------------------------------------------------------------------


def scored(loss: Any, output: Tensor, y: Tensor, metric: str | None = None) -> float:
    """The default metric's value, or the named one's, of these answers under this loss."""
    learner, ways, episode = case(loss, y, None)
    return float(chosen_metric(metric, learner, ways, episode).of(output, y))


def test_of_labels_each_counts_at_its_own_threshold() -> None:
    logits = torch.tensor([[-3.0, 0.2], [0.1, -0.1], [-9.0, 0.3]])  # right, right; right, wrong; right, wrong
    for loss, output, y in (
        (F.binary_cross_entropy_with_logits, logits, LABELS),
        (nn.BCELoss(), logits.sigmoid(), LABELS),
        (nn.SoftMarginLoss(), logits, 2 * LABELS - 1),
        (F.multilabel_soft_margin_loss, logits, 0.8 * LABELS + 0.1),  # soft labels: the likelier answer
    ):
        assert scored(loss, output, y) == pytest.approx(4 / 6)
    assert scored(F.binary_cross_entropy, torch.tensor([[0.2, 0.9]]), torch.full((1, 2), 0.5)) == 1.0


def test_a_label_accuracy_by_name_needs_a_loss_that_tells_logits_from_probabilities() -> None:
    with pytest.raises(ConfigError, match="logits or probabilities follows from the loss"):
        scored(own_ranking, LABELS, LABELS, "label accuracy")


def test_of_class_probabilities_the_most_probable_is_right() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])  # right; a tie, right; wrong
    assert scored(nn.CrossEntropyLoss(), logits, SOFT) == pytest.approx(2 / 3)


TRUTH = torch.tensor([[0, 1, 2, 1], [2, 0, -100, 1]])
TAGS = F.one_hot(TRUTH.clamp(min=0), 3).double()  # the logits of who is always right, classes last: [2, 4, 3]


@pytest.mark.parametrize("ignored", [-100, 1, 255])
def test_the_tag_of_every_position_counts_except_where_the_loss_ignores_it(ignored: int) -> None:
    y, output = TRUTH.masked_fill(TRUTH == -100, ignored), TAGS.movedim(-1, 1)
    for loss in (
        nn.CrossEntropyLoss(ignore_index=ignored),
        functools.partial(F.cross_entropy, ignore_index=ignored),
        nn.NLLLoss(ignore_index=ignored),
    ):
        assert scored(loss, output, y) == 1.0
        wrong = output.clone()
        wrong[0, :, 0] = torch.tensor([0.0, 9.0, 0.0])
        assert scored(loss, wrong, y) == pytest.approx(1 - 1 / int((y != ignored).sum()))


def test_masks_have_their_classes_on_axis_one_as_in_torch() -> None:
    y = torch.randint(0, 5, (2, 5, 5))  # as many rows and columns as classes: only the rule tells the axis
    right = F.one_hot(y, 5).double().movedim(-1, 1)
    assert scored(F.cross_entropy, right, y) == 1.0 == 1 - float(F.cross_entropy(1e3 * right, y))
    assert scored(F.cross_entropy, right.movedim(1, -1), y) < 0.6
    with pytest.raises(ConfigError, match=r"need logits \[2, classes, 4\]"):
        scored(F.cross_entropy, TAGS, TRUTH)


def test_with_a_loss_of_ones_own_the_shapes_tell_the_axis_or_nothing_is_guessed() -> None:
    def last(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, -2), y.flatten())

    assert scored(last, TAGS, TRUTH, "accuracy") == 1.0 == scored(last, TAGS.movedim(-1, 1), TRUTH, "accuracy")
    assert scored(last, 50 * TAGS, TRUTH) == pytest.approx(0.0, abs=1e-9)  # the loss itself
    with pytest.raises(ConfigError, match="axis 1 or on the last"):
        scored(last, torch.zeros(2, 3, 3), TRUTH[:, :3], "accuracy")


def test_a_refusal_names_what_would_fit() -> None:
    for name, output, y, says in (
        ("accuracy", VALUES, VALUES, "metric='mean squared error' or 'mean absolute error'"),
        ("mean squared error", torch.zeros(3, 4), CLASSES, "metric='accuracy'"),
        ("accuracy", torch.zeros(2, 5, 6), TRUTH, r"\[2, classes, 4\]"),
        ("mean squared error", {"a": VALUES}, VALUES, "None of ours"),
    ):
        with pytest.raises(ConfigError, match=says):
            METRICS[name].of(output, y)


def test_metrics_are_equal_where_their_values_read_alike() -> None:
    bound = chosen_metric(None, *case(nn.CrossEntropyLoss(ignore_index=1), CLASSES, None))
    assert bound == ACCURACY and bound.of is not ACCURACY.of
    made = score(0.5, 0.7, metric=bound)
    assert "metric" not in made.to_dict() and Score.from_dict(made.to_dict()).metric is ACCURACY
