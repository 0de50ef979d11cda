"""Labels of other shapes than one class for each example: tags, masks, several labels. Training, scores and pages."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.cli import main
from quickstudy.errors import ConfigError, DataError
from quickstudy.evaluation import controls
from quickstudy.evaluation.scoring import episode_score
from quickstudy.experiments.evaluate_run import evaluate_run
from quickstudy.experiments.run import read_run
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.report.writing import write_report

WAYS = 3


@dataclass(frozen=True, eq=False)
class Tags:
    """Sequences [2, T] whose tags follow from the largest of three fixed mixtures, in an order that the task changes.

    A fifth of the positions have the label `ignored`, and a random input, from which nothing can be learned.
    """

    length: int = WAYS  # as many positions as classes: only the rule tells which axis is which
    ignored: int = -100
    masks: bool = False

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        places = (self.length, self.length) if self.masks else (self.length,)
        x = torch.randn(n, 14, 2, *places, generator=generator)
        mixtures = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
        order = torch.stack([torch.randperm(WAYS, generator=generator) for _ in range(n)])
        y = torch.einsum("cd,nkd...->nkc...", mixtures, x).argmax(2)
        y = order.gather(1, y.flatten(1)).reshape(y.shape)
        y = y.masked_fill(torch.rand(y.shape, generator=generator) < 0.2, self.ignored)
        return Episode(Batch(x[:, :8], y[:, :8]), Batch(x[:, 8:], y[:, 8:]))


def tagger(ignored: int = -100, masks: bool = False, **fields: Any) -> qs.MAML:
    torch.manual_seed(0)
    model = nn.Conv2d(2, WAYS, 1) if masks else nn.Conv1d(2, WAYS, 1)
    usual = {"loss": nn.CrossEntropyLoss(ignore_index=ignored), "lr": 2.0, "steps": 8}
    return qs.MAML(model, **(usual | fields))


def right_of(learner: Learner, theta: Theta, tasks: Any, episodes: int) -> tuple[float, int]:
    """The mean share of right positions by hand, and how many positions count, one episode and position at a time."""
    shares, total = [], 0
    for i in range(episodes):
        drawn = tasks.sample(1, seeds.generator(1, "test", i))
        support, query = (Batch(*(t[0] for t in batch)) for batch in drawn)
        output = learner.predict(theta, learner.adapt(theta, support), query.x)
        assert output.shape[:2] == (6, WAYS)
        counted = [tuple(place) for place in (query.y != tasks.ignored).nonzero().tolist()]
        answers = [int(output[(place[0], slice(None), *place[1:])].argmax()) for place in counted]
        shares.append(sum(a == int(query.y[p]) for a, p in zip(answers, counted, strict=True)) / len(counted))
        total += len(counted)
    return sum(shares) / episodes, total


@pytest.mark.parametrize("engine", ["loop", "vmap", "replay"])
@pytest.mark.parametrize(("ignored", "masks"), [(-100, False), (255, False), (-100, True)])
def test_positions_are_trained_scored_and_calibrated_along_the_axis_of_classes(
    engine: str, ignored: int, masks: bool
) -> None:
    tasks, learner = Tags(ignored=ignored, masks=masks), tagger(ignored, masks)
    trained = qs.train(learner, tasks, iterations=3, meta_batch=4, engine=engine, val=tasks, progress=False)
    score = qs.evaluate(trained, tasks, episodes=20, engine="vmap" if engine == "vmap" else "loop")
    by_hand, counted = right_of(learner, trained.theta, tasks, 20)
    assert score.protocol.metric == "accuracy" and score.mean == pytest.approx(by_hand)
    assert score.mean > 0.8 and (score.protocol.ways, score.protocol.shots, score.protocol.queries) == (None, 8, 6)
    found = qs.classification_calibration(trained, tasks, episodes=20)
    assert sum(one.queries for one in found.bins) == counted and found.accuracy.mean == pytest.approx(by_hand)


def test_of_tags_the_two_ways_of_saying_the_loss_agree() -> None:
    learner, tasks = tagger(), Tags()
    theta = learner.init()
    scores = [
        qs.evaluate(qs.Trained(tagger(loss=loss), theta), tasks, episodes=5).values
        for loss in (F.cross_entropy, functools.partial(F.cross_entropy, label_smoothing=0.0), nn.CrossEntropyLoss())
    ]
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])
    one = Episode(*(Batch(*(t[0] for t in batch)) for batch in tasks.sample(1)))
    assert 0 <= float(episode_score(learner, theta, one)) <= 1


def test_wrong_labels_and_wrong_axes_are_refused_before_anything_is_computed() -> None:
    learner = tagger()
    theta = learner.init()
    for tasks, says in (
        (
            Tags(ignored=7),
            r"labels must be 0..2, as the model has 3 outputs \(or -100, which counts nowhere\); got 0..7",
        ),
        (Tags(ignored=-1), r"labels must be 0..2.*got -1..2"),
    ):
        with pytest.raises(DataError, match=says):
            qs.evaluate(qs.Trained(learner, theta), tasks, episodes=2)
    last = qs.MAML(nn.Sequential(nn.Conv1d(2, WAYS, 1), Swap()), lr=0.1)  # its classes are last
    with pytest.raises(DataError, match=r"labels \[6, 4\] need outputs \[6, classes, 4\].*movedim"):
        qs.evaluate(qs.Trained(last, last.init()), Tags(length=4), episodes=2)
    hidden = Episode(*(Batch(b.x, torch.full_like(b.y, -100)) for b in Tags().sample(2)))
    with pytest.raises(DataError, match="no label but -100"):
        qs.evaluate(qs.Trained(learner, theta), Given(hidden), episodes=2)


class Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


@dataclass(frozen=True, eq=False)
class Given:
    episodes: Episode

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        return Episode(*(Batch(*(t[:1].expand(n, *t.shape[1:]) for t in batch)) for batch in self.episodes))


def test_arrays_hold_tags_too() -> None:
    drawn = Tags().sample(6)
    tasks = qs.tasks.from_arrays(
        [
            {"support": xs, "support_labels": ys, "query": xq, "query_labels": yq}
            for xs, ys, xq, yq in zip(*drawn.support, *drawn.query, strict=True)
        ]
    )
    learner = tagger()
    score = qs.evaluate(qs.Trained(learner, learner.init()), tasks, episodes=5)
    assert score.protocol.metric == "accuracy" and (score.protocol.ways, score.protocol.shots) == (None, 8)


def test_a_run_on_tags_has_its_controls_and_its_page(tmp_path: Path) -> None:
    tasks = Tags(length=4)
    trained = qs.train(
        tagger(), tasks, iterations=4, meta_batch=4, val=tasks, val_every=2, val_episodes=4, out=tmp_path,
        engine="loop", progress=False,
    )  # fmt: skip
    scores = evaluate_run(tmp_path, trained, tasks, episodes=6, engine="loop", progress=False)
    made = scores[0].controls
    assert set(made) == {"zero_steps", "shuffled_labels", "untrained", "from_scratch"}  # a mean of tags means nothing
    assert scores[0].mean > made["shuffled_labels"].mean and made["from_scratch"].mean > 1 / WAYS
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["confusion"] is None and answers["accuracy"]["mean"] == pytest.approx(scores[0].mean)
    assert read_run(tmp_path).metric.name == "accuracy" and not (tmp_path / "examples.safetensors").exists()
    page = write_report([tmp_path], csv=True).read_text("utf-8")
    assert "Are the probabilities calibrated?" in page and "of the labels in unseen tasks answered right" not in page
    assert "of the labels in tasks answered right, after 8 support examples." in page
    assert main.run(["report", str(tmp_path)]) == 0


def test_measures_of_one_class_per_example_say_that_tags_are_none() -> None:
    trained = qs.Trained(qs.NearestCentroid(WAYS), {})
    with pytest.raises(ConfigError, match="do not ask for one class of each"):
        qs.scoped(trained, Tags())


# --- several labels of an example ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Several:
    """Two labels of each example: which side of two lines through the middle it is on; most have the first one."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        x = torch.randn(n, 30, 3, generator=generator)
        lines = torch.randn(n, 1, 3, 2, generator=generator)
        y = (x[..., None] * lines).sum(2) + torch.tensor([2.0, 0.0]) > 0
        return Episode(Batch(x[:, :10], y[:, :10].float()), Batch(x[:, 10:], y[:, 10:].float()))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss()])
def test_controls_of_labels_answer_in_logits_too(loss: nn.Module) -> None:
    """A constant answer is right where it says of each label what most support examples say."""
    torch.manual_seed(0)
    learner = qs.MAML(nn.Linear(3, 2), loss=loss, lr=1.0, steps=20)
    names = ["support_mean", "linear_probe", "from_scratch", "zero_steps"]
    assert set(names) <= set(controls.available(learner, Several()))
    score = qs.evaluate(qs.Trained(learner, learner.init()), Several(), episodes=40, controls=names)
    assert score.protocol.metric == "label accuracy"
    made = {name: one.mean for name, one in score.controls.items()}
    majority, linear = [], []
    for i in range(40):
        (x, y), (xq, yq) = (Batch(*(t[0] for t in b)) for b in Several().sample(1, seeds.generator(1, "test", i)))
        majority.append(float(((y.mean(0) > 0.5).float() == yq).float().mean()))
        weights = torch.linalg.lstsq(torch.cat([x, torch.ones(10, 1)], 1), y).solution
        linear.append(float(((torch.cat([xq, torch.ones(20, 1)], 1) @ weights > 0.5).float() == yq).float().mean()))
    assert made["support_mean"] == pytest.approx(sum(majority) / 40, abs=0.02)  # ties are either
    assert made["linear_probe"] > sum(linear) / 40 - 0.03 > made["support_mean"]
    assert made["from_scratch"] > made["support_mean"] - 0.1


def test_of_outputs_that_nobody_can_read_no_mean_is_made_a_control() -> None:
    learner = qs.MAML(nn.Linear(3, 2), loss=F.poisson_nll_loss, lr=0.1)  # its outputs are logarithms
    assert not {"support_mean", "linear_probe"} & set(controls.available(learner, Several()))


def test_a_page_of_labels_shows_their_accuracy_and_no_squared_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = qs.MAML(nn.Linear(3, 2), loss=nn.BCEWithLogitsLoss(), lr=1.0, steps=5)
    trained = qs.train(learner, Several(), iterations=2, out=tmp_path, engine="loop", progress=False)
    score = evaluate_run(tmp_path, trained, Several(), episodes=4, engine="loop", progress=False, names=[])[0]
    page = write_report([tmp_path]).read_text("utf-8")
    assert f"label accuracy {100 * float(score.values[0]):.1f} %" in page and "squared error" not in page
    shown = read_run(tmp_path).examples[0]  # probabilities beside labels, not logits
    assert 0 <= float(shown.output.min()) <= float(shown.output.max()) <= 1
    assert float(((shown.output > 0.5) == (shown.query_y > 0.5)).float().mean()) == pytest.approx(
        float(score.values[0])
    )
