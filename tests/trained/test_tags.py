"""A predictor of tags and masks: labels come back as they were given, and padding teaches nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import assert_close
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.cli import answering
from quickstudy.errors import ConfigError, DataError

NAMES = ("noun", "other", "verb")


def trained(loss: Any = F.cross_entropy, model: nn.Module | None = None) -> qs.Trained:
    torch.manual_seed(0)
    learner = qs.MAML(model or nn.Conv1d(3, 3, 1), loss=loss, lr=5.0, steps=20)
    return qs.Trained(learner, learner.init())


def task(n: int, length: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [n, 3, T] whose largest number says the tag; by default as many positions as classes."""
    x = torch.randn(n, 3, length, generator=torch.Generator().manual_seed(seed))
    return x, x.argmax(1)


def test_numbers_are_outputs_as_in_training_and_come_back_as_lists() -> None:
    x, y = task(12)
    predictor = trained().adapt(x, y)
    xq, yq = task(40, seed=1)
    answers = predictor.predict(xq)
    assert isinstance(answers, list) and np.mean(np.array(answers) == yq.numpy()) > 0.85
    assert predictor.classes == (0, 1, 2)
    p = predictor.predict_proba(xq)
    assert p.shape == (40, 3, 3)
    assert_close(p.sum(1), torch.ones(40, 3), 1e-6)
    without_two = trained().adapt(x, y.masked_fill(y == 2, 1))  # a class that is not shown
    assert without_two.classes == (0, 1, 2)


def test_names_come_back_and_those_without_a_label_teach_nothing() -> None:
    x, y = task(12)
    named = [[NAMES[tag] for tag in row] for row in y.tolist()]
    by_name, by_number = trained().adapt(x, named), trained().adapt(x, y)
    assert by_name.classes == NAMES
    assert by_name.predict(x) == [[NAMES[tag] for tag in row] for row in by_number.predict(x)]
    padded, ignored = [[*row[:2], None] for row in named], y.clone()
    ignored[:, 2] = -100
    a, b = trained().adapt(x, padded), trained().adapt(x, ignored)
    assert_close(a.logits(x), b.logits(x), 0)
    short = trained().adapt(x[:, :, :2], y[:, :2])
    assert_close(a.logits(x), short.logits(x), 1e-5)
    other = trained(nn.CrossEntropyLoss(ignore_index=255)).adapt(x, ignored.masked_fill(ignored < 0, 255))
    assert_close(other.logits(x), b.logits(x), 1e-6)


def test_masks_and_their_outputs_have_the_shape_of_the_picture() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 5, 4)
    predictor = trained(model=nn.Conv2d(2, 2, 1)).adapt(x, x[:, 0] > x[:, 1])  # a switch for each pixel
    assert predictor.classes == (False, True) and predictor.predict_proba(x).shape == (6, 2, 5, 4)
    assert np.mean(np.array(predictor.predict(x)) == (x[:, 0] > x[:, 1]).numpy()) > 0.95


class Last(nn.Conv1d):
    """Classes last: [n, T, classes]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mT


def of_last(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten())


def test_with_a_loss_of_ones_own_the_shapes_tell_where_the_classes_are(tmp_path) -> None:
    x, y = task(12, length=4)
    plain, last = trained().adapt(x, y), trained(of_last, Last(3, 3, 1)).adapt(x, y)
    assert last.predict(x) == plain.predict(x)
    assert_close(last.predict_proba(x), plain.predict_proba(x).mT, 0.05)
    last.save(tmp_path / "last.qs")
    back = qs.load(tmp_path / "last.qs", model=Last(3, 3, 1), loss=of_last)
    assert back.predict(x) == last.predict(x)
    with pytest.raises(ConfigError, match="axis 1 or on the last"):
        trained(of_last, Last(3, 3, 1)).adapt(*task(12))


def test_a_predictor_of_tags_survives_a_file_and_learns_on(tmp_path) -> None:
    x, y = task(12)
    named = [[NAMES[tag] if i else None for i, tag in enumerate(row)] for row in y.tolist()]
    predictor = trained().adapt(x[:8], named[:8])
    predictor.save(tmp_path / "tags.qs")
    back = qs.load(tmp_path / "tags.qs", model=nn.Conv1d(3, 3, 1))
    assert back.predict(x) == predictor.predict(x)
    both = trained().adapt(x, named)
    assert_close(back.updated(x[8:], named[8:]).logits(x), both.logits(x), 0)
    assert_close(both.without(range(8, 12)).logits(x), predictor.logits(x), 0)
    with pytest.raises(DataError, match="by their numbers"):
        back.without(classes=["noun"])


@pytest.mark.parametrize(
    ("loss", "y", "says"),
    [
        (F.cross_entropy, [["a", "b", "c"], ["d", "a", "b"]], "labels must be 0..2, as the model has 3 outputs"),
        (F.cross_entropy, [["a", "a", None]] * 2, "two classes or more"),
        (F.cross_entropy, [["a", "b"], ["a"]], "lists of equal length, with None"),
        (F.cross_entropy, [["a", "b"]] * 2, "cannot read this task|need outputs"),
        (nn.CrossEntropyLoss(ignore_index=0), [["a", "b", "a"]] * 2, "ignores the label 0.*'a'"),
        (F.cross_entropy, [[0, 1, 3], [0, 1, 2]], "labels must be 0..2"),
        (F.cross_entropy, [[-100] * 3] * 2, "no label but -100"),
        (F.mse_loss, [["a", "b", "a"]] * 2, "mse_loss takes numbers"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(loss: Any, y: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        trained(loss).adapt(task(2)[0], y)


def test_of_one_class_for_each_example_none_is_ignored_in_silence() -> None:
    x, y = torch.randn(6, 4), [[0], [1], [2], [0], [1], [2]]  # a column is one class each
    learner = qs.MAML(nn.Linear(4, 3), lr=0.1)
    assert qs.Trained(learner, learner.init()).adapt(x, y).classes == (0, 1, 2)
    for loss, given, says in (
        (nn.CrossEntropyLoss(ignore_index=0), list("abcabc"), "ignores the label 0.*'a'"),
        (nn.CrossEntropyLoss(), [-100, 0, 1, 2, 0, 1], "y holds -100"),
    ):
        learner = qs.MAML(nn.Linear(4, 3), loss=loss, lr=0.1)
        with pytest.raises(DataError, match=says):
            qs.Trained(learner, learner.init()).adapt(x, given)


def test_of_several_labels_the_answer_is_the_probability_of_each() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    predictor = trained(nn.BCEWithLogitsLoss(), nn.Linear(3, 2)).adapt(x, (x[:, :2] > 0).numpy())
    p = predictor.predict(x)
    assert predictor.classes is None and float(((p > 0.5) == (x[:, :2] > 0)).float().mean()) > 0.9
    assert_close(p, predictor(x).sigmoid(), 0)


def test_an_answer_of_several_labels_is_printed_without_one_probability() -> None:
    x, y = task(4)
    predictor = trained().adapt(x, y)
    rows = answering._answers(predictor, x, list("abcd"), reject=False)
    assert [row["label"] for row in rows] == predictor.predict(x) and {row["probability"] for row in rows} == {None}
    assert json.loads(json.dumps(rows)) == rows
