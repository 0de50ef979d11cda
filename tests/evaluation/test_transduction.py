"""Learners whose answers to the queries of a task depend on each other: declared, seen, and what follows from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from problems import clusters
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.errors import ConfigError
from quickstudy.experiments.evaluate_run import evaluate_run
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.report import words


def refined(means: Tensor, x: Tensor) -> Tensor:
    """Class means moved towards the queries nearest to them, as in soft k-means: every query has a part in them."""
    weights = (-torch.cdist(x, means).square()).softmax(1)
    return (means + weights.T @ x) / (1 + weights.sum(0)[:, None])


def of_means(means: Tensor, x: Tensor) -> Tensor:
    return -torch.cdist(x, means).square()


@dataclass(frozen=True, eq=False)
class Refining(Learner):
    """Nearest class means, moved by the queries unless `plain`."""

    ways: int = 3
    plain: bool = False

    @property
    def transductive(self) -> bool:  # type: ignore[override]
        return not self.plain

    def inductive(self) -> Learner:
        return dataclasses.replace(self, plain=True)

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return torch.stack([support.x[support.y == k].mean(0) for k in range(self.ways)])

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return of_means(phi if self.plain else refined(phi, x), x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return F.cross_entropy(
            self.predict(theta, self.adapt(theta, episode.support), episode.query.x), episode.query.y
        )


class AlwaysRefining(Learner):
    """The same without another form."""

    transductive: ClassVar[bool] = True

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return Refining().adapt(theta, support)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return of_means(refined(phi, x), x)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return Refining().meta_loss(theta, episode)


@dataclass(frozen=True, eq=False)
class Declared(AlwaysRefining):
    pass


@dataclass(frozen=True, eq=False)
class Undeclared(AlwaysRefining):
    transductive: ClassVar[bool] = False


ALIKE = {"episodes": 20, "engine": "loop"}


def ready(learner: Learner) -> qs.Trained:
    return qs.Trained(learner, learner.init())


def test_a_score_of_a_learner_that_declares_it_is_transductive():
    both, alone = (qs.evaluate(ready(Refining()), clusters(spread=1.5), transductive=t, **ALIKE) for t in (None, False))
    assert both.protocol.transductive and not alone.protocol.transductive
    assert both.protocol.describe() == "3-way 2-shot, no norm, transductive"
    assert "Transductive: the queries of a task were answered together" in words.under(both)
    plain = qs.evaluate(ready(Refining(plain=True)), clusters(spread=1.5), **ALIKE)
    assert torch.equal(alone.values, plain.values) and not torch.equal(alone.values, both.values)


def test_a_learner_without_another_form_is_refused_where_that_is_asked_for():
    trained, (x, y) = ready(Declared()), random_support()
    assert qs.evaluate(trained, clusters(), **ALIKE).protocol.transductive
    for ask in (lambda: qs.evaluate(trained, clusters(), transductive=False, **ALIKE), lambda: trained.adapt(x, y)):
        with pytest.raises(ConfigError, match="no form that answers each by itself"):
            ask()
    assert len(trained.adapt(x, y, transductive=True).predict(x)) == 6
    assert ready(Refining()).adapt(x, y).learner.plain  # type: ignore[attr-defined]


def random_support() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4), torch.arange(6) % 3


def test_what_nothing_declares_is_seen():
    """A score that looked inductive would be compared with those of learners that answer one query at a time."""
    with pytest.warns(UserWarning, match="changes with the other queries, which nothing declares"):
        score = qs.evaluate(ready(Undeclared()), clusters(), **ALIKE)
    assert score.protocol.transductive


class Centring(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_a_network_that_mixes_the_rows_of_a_batch_is_seen():
    learner = qs.ProtoNet(nn.Sequential(nn.Linear(4, 3), Centring()), ways=3)
    with pytest.warns(UserWarning, match="ProtoNet"):
        assert qs.evaluate(ready(learner), clusters(), **ALIKE).protocol.transductive


@pytest.mark.parametrize("learner", [Declared(), Undeclared()], ids=["declared", "seen"])
def test_a_comparison_of_answers_to_one_query_at_a_time_refuses_it_before_it_trains(learner, tmp_path):
    with pytest.raises(ConfigError, match=r"by itself|one query at a time"):
        qs.compare_learners({"it": lambda: learner}, clusters(), clusters(), out=tmp_path / "x", minutes=1.0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("learner", "scores"), [(Refining(), 2), (Declared(), 1)], ids=["both forms", "one form"])
def test_a_run_is_scored_in_each_form_that_there_is(learner, scores, tmp_path):
    found = evaluate_run(tmp_path, ready(learner), clusters(), episodes=6, names=[], engine="loop", progress=False)
    assert [score.protocol.transductive for score in found] == [True, False][:scores]
