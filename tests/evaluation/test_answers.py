"""Confidence against accuracy and what is taken for what: closed forms, numpy, and what print, file and report say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.engine.fitting import fitted
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError, FileFormatError, NonFiniteError
from quickstudy.evaluation.measures.confusion import READABLE, Confusion, Pair, confusion_of
from quickstudy.evaluation.measures.probabilities import BINS, calibration_of
from quickstudy.evaluation.predictions import Settings, predictions
from quickstudy.experiments.evaluate_run import evaluate_run
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.report.sections.confusion import section
from quickstudy.report.sections.probabilities import conclusion
from quickstudy.report.writing import write_report

NEAREST = qs.Trained(qs.NearestCentroid(ways=3), {})


@dataclass(frozen=True, eq=False)
class Told(Learner):
    """Answers with the logits that stand in x, times `times`."""

    times: float = 1.0

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return torch.zeros(())

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return self.times * x + theta.get("shift", 0)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return torch.zeros(())


@dataclass(frozen=True, eq=False)
class Logits:
    """Inputs are the logits under which the labels are drawn: `Told` knows the true probabilities."""

    ways: int = 4
    spread: float = 2.0
    queries: int = 30

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        x = self.spread * torch.randn(n, self.queries, self.ways, generator=generator)
        y = torch.multinomial(x.flatten(0, 1).softmax(1), 1, generator=generator).reshape(n, self.queries)
        return Episode(Batch(x, y), Batch(x, y))


@dataclass(frozen=True, eq=False)
class Fixed:
    """The same episode over and over."""

    x: Tensor
    y: Tensor
    ways: int = 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        batch = Batch(self.x.expand(n, *self.x.shape), self.y.expand(n, *self.y.shape))
        return Episode(batch, batch)


def fixed(confidence: float, right: int, of: int = 10) -> Fixed:
    logit = math.log(confidence / (1 - confidence))
    y = (torch.arange(of) >= right).long()
    return Fixed(torch.tensor([logit, 0.0], dtype=torch.float64).expand(of, 2), y)


# --- confidence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("confidence", "right"), [(0.9, 9), (0.9, 6), (0.6, 10), (1 - 1e-9, 5)])
def test_one_confidence_has_a_closed_form(confidence, right):
    found = qs.classification_calibration(qs.Trained(Told(), {}), fixed(confidence, right), episodes=30)
    share, p = right / 10, confidence
    assert found.ece == pytest.approx(abs(p - share)) and found.excess.mean == pytest.approx(p - share)
    assert found.negative_log_likelihood.mean == pytest.approx(
        -share * math.log(p) - (1 - share) * math.log(1 - p), rel=1e-6
    )
    assert found.brier.mean == pytest.approx(2 * (share * (1 - p) ** 2 + (1 - share) * p**2))
    (one,) = found.bins
    assert (one.queries, one.accuracy) == (300, share) and one.confidence == pytest.approx(p)
    assert one.low < p <= one.high and one.high - one.low == pytest.approx(1 / BINS)
    assert found.excess.interval == pytest.approx(0, abs=1e-12)  # the episodes are all alike


def test_one_who_knows_the_probabilities_is_calibrated():
    tasks = Logits()
    found = qs.classification_calibration(qs.Trained(Told(), {}), tasks, episodes=300)
    assert abs(found.excess.mean) < 2 * found.excess.interval and found.excess.interval < 0.02
    x = 2 * torch.randn(100_000, 4, dtype=torch.float64)
    entropy, error = -(x.softmax(1) * x.log_softmax(1)).sum(1).mean(), (1 - (x.softmax(1) ** 2).sum(1)).mean()
    assert found.negative_log_likelihood.mean == pytest.approx(
        float(entropy), abs=2 * found.negative_log_likelihood.interval
    )
    assert found.brier.mean == pytest.approx(float(error), abs=2 * found.brier.interval)
    # In each bin accuracy is a share of n draws: the mean distance of 15 such is below this.
    assert found.ece < sum(math.sqrt(one.queries) for one in found.bins) / (300 * 30)
    bold, shy = (qs.classification_calibration(qs.Trained(Told(t), {}), tasks, episodes=300) for t in (3.0, 0.3))
    assert bold.excess.mean > 5 * bold.excess.interval and shy.excess.mean < -5 * shy.excess.interval
    assert bold.accuracy == shy.accuracy == found.accuracy
    assert found.negative_log_likelihood.mean < min(bold.negative_log_likelihood.mean, shy.negative_log_likelihood.mean)


def by_hand(trained: Any, tasks: Any, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All queries' probabilities [n, ways] and labels [n], one episode after the other."""
    p, y = [], []
    for i in range(episodes):
        episode = unstack(tasks.sample(1, seeds.generator(seed, "test", i)))[0]
        p.append(trained.learner.predict({}, trained.learner.adapt({}, episode.support), episode.query.x))
        y.append(episode.query.y)
    return torch.cat(p).double().softmax(1).numpy(), torch.cat(y).numpy()


@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
def test_the_numbers_are_those_of_numpy(engine):
    tasks = qs.tasks.glyphs("test", ways=3, queries=5)
    found = qs.classification_calibration(NEAREST, tasks, episodes=30, seed=4, engine=engine)
    p, y = by_hand(NEAREST, tasks, 30, 4)
    sure, right = p.max(1), p.argmax(1) == y
    edges = np.linspace(0, 1, BINS + 1)
    inside = [(sure > low) & (sure <= high) for low, high in itertools.pairwise(edges)]
    ece = sum(part.mean() * abs(right[part].mean() - sure[part].mean()) for part in inside if part.any())
    assert found.ece == pytest.approx(ece) and [one.queries for one in found.bins] == [
        n for i in inside if (n := i.sum())
    ]
    assert found.negative_log_likelihood.mean == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean())
    assert found.brier.mean == pytest.approx(((p - np.eye(3)[y]) ** 2).sum(1).mean())
    score = qs.evaluate(NEAREST, tasks, episodes=30, seed=4)
    assert (found.accuracy.mean, found.accuracy.interval) == (pytest.approx(score.mean), pytest.approx(score.interval))


def test_steps_at_test_are_those_asked_for():
    torch.manual_seed(0)
    learner = qs.MAML(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), lr=0.5, steps=1)
    tasks = qs.tasks.glyphs("test", ways=3, queries=5)
    asked, plain, built = (
        qs.classification_calibration(qs.Trained(one, learner.init()), tasks, episodes=10, **steps).surprise.mean
        for one, steps in ((learner, {"steps": 4}), (learner, {}), (dataclasses.replace(learner, steps=4), {}))
    )
    assert asked == pytest.approx(built, rel=1e-6) and asked != pytest.approx(plain, rel=1e-2)


def test_checkpoints_that_answer_together_are_scored_together():
    thetas = tuple({"shift": torch.tensor([shift, 0.0, 0.0, 0.0])} for shift in (3.0, -3.0))
    trained = qs.Trained(Told(), thetas[0], best=thetas)
    one, both = (qs.classification_calibration(trained, Logits(), episodes=20, ensemble=n) for n in (1, 2))
    assert both.accuracy.mean == pytest.approx(qs.evaluate(trained, Logits(), episodes=20, ensemble=2).mean)
    assert both.protocol.ensemble == 2 and both.accuracy != one.accuracy
    episodes = [Logits().sample(1, seeds.generator(1, "test", i)) for i in range(20)]
    x, y = (torch.cat([getattr(e.query, name)[0] for e in episodes]) for name in ("x", "y"))
    p = sum((x + theta["shift"]).double().softmax(1) for theta in thetas) / 2
    assert both.negative_log_likelihood.mean == pytest.approx(float(-p[range(len(y)), y].log().mean()))


def test_progress_and_wrong_settings():
    done: list[int] = []
    qs.classification_calibration(qs.Trained(Told(), {}), Logits(), episodes=30, progress=done.append)
    assert sum(done) == 30
    with pytest.raises(ConfigError, match="interval_coverage"):
        learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
        qs.classification_calibration(qs.Trained(learner, learner.init()), qs.tasks.sinusoid("test"))
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        qs.classification_calibration(qs.Trained(Told(), {}), Logits(), episodes=0)
    with pytest.raises(NonFiniteError, match="episode 0"):
        qs.classification_calibration(qs.Trained(Told(math.inf), {}), Logits(), episodes=2)


# --- confusion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Renumbered:
    """The same tasks, their classes numbered the other way round."""

    source: Any

    @property
    def ways(self) -> int:
        return self.source.ways

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        episodes = self.source.sample(n, generator)
        return Episode(*(batch._replace(y=self.ways - 1 - batch.y) for batch in episodes))

    def told(self, generator: torch.Generator | None = None) -> dict[str, Any]:
        return {"classes": self.source.told(generator)["classes"][::-1]}


def test_class_numbers_do_not_change_the_rates_by_name():
    tasks = qs.tasks.glyphs("test", ways=3, queries=5)
    one, other = (qs.classification_calibration(NEAREST, source, episodes=40) for source in (tasks, Renumbered(tasks)))
    assert one.confusion == other.confusion is not None and one.confusion.confused
    assert one.ece == pytest.approx(other.ece)
    right = sum(pair.answered for pair in one.confusion.pairs if pair.truth == pair.answer)
    assert right == round(40 * 15 * one.accuracy.mean)


def test_arrays_tell_no_names():
    assert qs.classification_calibration(qs.Trained(Told(), {}), Logits(), episodes=2).confusion is None


@pytest.fixture
def clinics() -> Any:
    """Tasks of three named classes, of which some clinics lack one, with few rows."""
    generator = np.random.default_rng(0)
    rows = [
        {"clinic": f"clinic {c:02}", "age": generator.normal(2 * k, 1.5), "weight": generator.normal(-k), "found": kind}
        for c in range(40)
        for k, kind in enumerate(("cold", "flu", "none"))
        if c % 4 != k
        for _ in range(3 + c % 3)
    ]
    return qs.tasks.from_table(pandas.DataFrame(rows), "test", task="clinic", target="found", shots=1, queries=3)


def test_tasks_that_lack_a_class_keep_the_names(clinics):
    found = qs.classification_calibration(NEAREST, clinics, episodes=40, seed=2)
    score = qs.evaluate(NEAREST, clinics, episodes=40, seed=2)
    assert (found.accuracy.mean, found.accuracy.interval) == (pytest.approx(score.mean), pytest.approx(score.interval))
    answered, asked, met = Counter(), Counter(), Counter()
    for i in range(40):
        drawn = unstack(clinics.sample(1, seeds.generator(2, "test", i)))[0]
        names = [clinics.classes[k] for k in drawn.support.y.unique().tolist()]
        learner, episode = fitted(NEAREST.learner, drawn)
        answers = learner.predict({}, learner.adapt({}, episode.support), episode.query.x).argmax(1)
        truths = [clinics.classes[k] for k in drawn.query.y.tolist()]
        answered.update(zip(truths, (names[a] for a in answers.tolist()), strict=True))
        asked.update((truth, name) for truth in truths for name in names)
        met.update((truth, name) for truth in set(truths) for name in names)
    assert found.confusion is not None and len(met) == 9
    for pair in found.confusion.pairs:
        key = (pair.truth, pair.answer)
        assert (pair.answered, pair.asked, pair.episodes) == (answered[key], asked[key], met[key])
        assert found.confusion[key].rate == answered[key] / asked[key]


def test_answers_outside_of_the_task_belong_to_no_pair():
    table = torch.tensor([[2, 1, 1], [0, 4, 0], [0, 0, 0]])
    found = confusion_of([(("a", "b"), table)])
    assert [(p.truth, p.answer, p.answered, p.asked) for p in found.pairs] == [
        ("a", "a", 2, 4), ("a", "b", 1, 4), ("b", "a", 0, 4), ("b", "b", 4, 4)
    ]  # fmt: skip
    assert found.names == ("a", "b")


def test_of_many_classes_only_what_was_confused_is_kept():
    names = [f"{i:03}" for i in range(READABLE + 1)]
    table = 5 * torch.eye(len(names))
    table[3, 4], table[0, 0] = 2, 0
    table[0, 1] = 5
    kept = {(p.truth, p.answer) for p in confusion_of([(names, table)]).pairs}
    assert kept == {(name, name) for name in names} | {("003", "004"), ("000", "001")}
    assert len(confusion_of([(names[1:], table[1:, 1:])]).pairs) == READABLE**2


def test_a_rate_of_many_episodes_comes_before_a_larger_one_of_one():
    n, p, z = 50, 0.4, 1.96
    often = Pair("seal", "otter", 300, 750, 50)
    middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * math.sqrt(p * 0.6 / n + z**2 / 4 / n**2)
    assert often.at_least == pytest.approx(middle - half)
    once = Pair("ant", "bee", 12, 15, 1)
    never = Pair("bee", "ant", 0, 15, 1)
    found = Confusion((once, never, often, Pair("ant", "ant", 3, 15, 1)))
    assert found.confused == [often, once]
    assert str(found).splitlines()[1].split() == ["seal", "otter", "40.0", "%", "300", "of", "750", "50"]
    assert str(Confusion(())) == "no class was taken for another"


# --- the value -------------------------------------------------------------------------------------------------------


@pytest.fixture
def one() -> qs.Answers:
    found = qs.classification_calibration(NEAREST, qs.tasks.glyphs("test", ways=3, queries=5), episodes=20)
    return found


def test_answers_survive_json_and_print(one):
    assert qs.Answers.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one
    nameless = dataclasses.replace(one, confusion=None)
    assert qs.Answers.from_dict(json.loads(json.dumps(nameless.to_dict()))) == nameless
    alone = qs.classification_calibration(qs.Trained(Told(), {}), Logits(), episodes=1)
    assert qs.Answers.from_dict(json.loads(json.dumps(alone.to_dict(), allow_nan=False))) == alone
    lines = str(one).splitlines()
    assert f"{one.ece:.4f}" in lines[0] and f"{one.excess.mean:.4f} ±" in lines[5] and "20 episodes; 3-way" in lines[6]
    wrong = one.to_dict()["confusion"] | {"asked": [0] * len(one.confusion.pairs)}
    for broken in ({"bins": []}, {"confusion": wrong}):
        with pytest.raises(ValueError, match="queries"):
            qs.Answers.from_dict(one.to_dict() | broken)


def test_the_figures_are_written(one, tmp_path):
    pair = Confusion((Pair("$x^2$", "$x^2$", 4, 5, 1), Pair("$x^2$", "b", 1, 5, 1), Pair("b", "$x^2$", 0, 5, 1)))
    for name, plot in (("reliability", one.plot), ("confusion", pair.plot)):
        plot(tmp_path / f"{name}.png")
        plot(tmp_path / f"{name}.svg")
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 5
    drawn = (tmp_path / "confusion.svg").read_text()
    assert "$x^2$" in drawn and "80" in drawn
    with pytest.raises(ConfigError, match=r"\.png"):
        one.plot(tmp_path / "figure.docx")


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (6, "a probability of 80.0 % and is right in 60.0 %: over-confident by 20.0 points"),
        (9, "right in 90.0 %: under-confident by 10.0 points"),
        (8, "neither over- nor under-confident"),
    ],
)
def test_the_conclusion_follows_the_numbers(right, said):
    found = qs.classification_calibration(qs.Trained(Told(), {}), fixed(0.8, right), episodes=30)
    assert said in conclusion(found)


def test_few_tasks_are_not_concluded_from():
    alone = qs.classification_calibration(qs.Trained(Told(), {}), fixed(0.8, 6), episodes=1)
    assert "too few tasks to tell" in conclusion(alone)


# --- in a run --------------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_answers_and_the_report_shows_them(clinics, tmp_path):
    trained = qs.train(qs.NearestCentroid(3), clinics, iterations=1, out=tmp_path, progress=False)
    scores = evaluate_run(tmp_path, trained, clinics, episodes=20, engine="loop", progress=False, names=[])
    kept = qs.Answers.from_dict(json.loads((tmp_path / "answers.json").read_text()))
    assert kept.accuracy.mean == pytest.approx(scores[0].mean) and kept.confusion is not None
    page = write_report([tmp_path]).read_text()
    assert "Are the probabilities calibrated?" in page and conclusion(kept).split(":")[0] in page
    shown = section(kept.confusion)
    assert "What is taken for what" in page and shown.conclusion in page
    assert page.count('<td class="cell') == 9 and f">{100 * kept.confusion['flu', 'flu'].rate:.0f}</td>" in page
    (tmp_path / "answers.json").write_text('{"bins": []}')
    with pytest.raises(FileFormatError, match=r"answers.json.*quickstudy evaluate"):
        write_report([tmp_path])


# --- the bias of the calibration error -------------------------------------------------------------------------------


def errors(times: float, episodes: int, draws: int) -> tuple[float, float, float]:
    """The mean ECE and debiased error of draws of so many episodes of 15 queries, and the latter's standard error."""
    trained = qs.Trained(Told(times), {})
    tasks = Logits(ways=5, spread=1.5, queries=15)
    settings = {"episodes": episodes, "engine": "vmap"}
    found = [qs.classification_calibration(trained, tasks, seed=seed, **settings) for seed in range(draws)]
    plain, debiased = (np.array([getattr(one, name) for one in found]) for name in ("ece", "debiased_ece"))
    return plain.mean(), debiased.mean(), debiased.std(ddof=1) / math.sqrt(draws)


def test_the_error_of_a_calibrated_learner_is_chance_and_none_of_it_is_left():
    plain, debiased, standard = errors(1.0, episodes=25, draws=60)
    assert 0.05 < plain < 0.07  # of 375 queries
    assert abs(debiased) < 3 * standard < 0.012
    plain, debiased, standard = errors(1.0, episodes=600, draws=4)
    assert plain > 0.01 and abs(debiased) < 0.006  # of 9,000: its standard deviation is 0.005


@pytest.mark.parametrize(("times", "kept"), [(0.5, 0.9), (2.0, 0.88), (3.0, 0.93)])
def test_a_miscalibrated_learner_keeps_its_error(times, kept):
    true = errors(times, episodes=600, draws=4)
    assert true[1] == pytest.approx(true[0], rel=0.01)  # of 9,000 queries chance makes next to nothing
    plain, debiased, standard = errors(times, episodes=25, draws=30)
    assert kept * true[0] - 3 * standard < debiased < true[0] + 3 * standard  # in expectation it is never too high
    assert plain > debiased


def test_the_debiased_error_is_the_sum_over_tasks_as_the_others_see_them(clinics):
    """Its formula by hand; a clinic that comes several times is one task, which cannot confirm itself."""
    made = predictions(NEAREST, clinics, Settings(40, 2, "accuracy", "loop"))
    away: dict[tuple[str, int], float] = Counter()
    for output, y, task in zip(made.outputs, made.truths, made.tasks, strict=True):
        sure, answer = output.double().softmax(1).max(1)
        for confidence, right in zip(sure.tolist(), (answer == y).tolist(), strict=True):
            away[task, math.ceil(BINS * confidence)] += confidence - right
    total = 0.0
    for (task, place), own in away.items():
        others = [value for (t, b), value in away.items() if b == place and t != task]
        if spread := math.sqrt(sum(value**2 for value in others)):
            total += own * max(-1.0, min(1.0, sum(others) / spread))
    assert len(set(made.tasks)) < 40
    queries = sum(len(y) for y in made.truths)
    assert calibration_of(made, clinics).debiased_ece == pytest.approx(total / queries)


def test_one_task_has_no_debiased_error_and_earlier_files_have_none(one):
    alone = qs.classification_calibration(qs.Trained(Told(), {}), Logits(), episodes=1)
    assert alone.debiased_ece is None and "bias" not in str(alone) and "chance" not in conclusion(alone)
    earlier = one.to_dict()
    assert f"{earlier.pop('debiased_ece'):.4f}" in str(one).splitlines()[1]
    assert qs.Answers.from_dict(earlier) == dataclasses.replace(one, debiased_ece=None)
    assert "without what chance alone makes of so many queries" in conclusion(one)
    assert "nothing is left" in conclusion(dataclasses.replace(one, debiased_ece=-0.004))
