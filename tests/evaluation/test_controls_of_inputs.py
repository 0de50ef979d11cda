"""Each kind of input has its honest controls: what they compute, what they may know, and what is said of the others."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from problems import Mixed, WithInputs, assert_close, by_name, clusters
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError
from quickstudy.evaluation import controls
from quickstudy.learner import Batch, Episode
from quickstudy.learners.reference import LinearProbe
from quickstudy.learners.reference_texts import TfIdfCentroid, TfIdfRegression, inverse_frequencies, tf_idf
from quickstudy.report.one_run import verdict

BUCKETS, WAYS = 512, 3
KINDS = ["order", "refund", "hours", "greeting", "parking", "weather", "music", "travel", "money", "health"]


def frame(each: int = 8) -> pandas.DataFrame:
    """Kinds of texts that share most of their words."""
    rng = np.random.default_rng(0)
    fillers = ["please", "now", "the", "my", "about", "is", "what", "tell"]
    rows = [
        {"text": f"{' '.join(rng.choice(fillers, 4))} {kind}{i % 3}", "label": kind}
        for kind in KINDS
        for i in range(each)
    ]
    return pandas.DataFrame(rows)


def texts(split: str = "test", **changes: Any) -> qs.tasks.ClassTasks:
    sizes = {"ways": 2, "shots": 2, "queries": 3, "buckets": BUCKETS, "words": 6}
    return qs.tasks.from_text(frame(), split, **sizes | changes)


def encoder(idf_of: qs.tasks.ClassTasks | None) -> torch.nn.Module:
    made = qs.nn.text(buckets=BUCKETS, words=6, sketch=64, width=8, heads=2)
    if idf_of is not None:
        made.encoder.set_idf(idf_of.examples)
    return made


def trained(idf: bool = True) -> qs.Trained:
    learner = qs.ProtoNet(encoder(texts("train") if idf else None), ways=2)
    return qs.Trained(learner, {name: value + 0.1 for name, value in learner.init().items()})


FEW: dict[str, Any] = {"episodes": 6, "engine": "loop"}


# --- TF-IDF ----------------------------------------------------------------------------------------------------------


def test_tf_idf_is_that_of_scikit_learn():
    x = texts("train").examples
    counted = np.stack([np.bincount(row[row > 0], minlength=BUCKETS) for row in x.flatten(1).numpy()])
    wanted = TfidfTransformer().fit_transform(counted).toarray()
    assert_close(tf_idf(x, inverse_frequencies(x, BUCKETS)).double(), torch.from_numpy(wanted), 1e-5)


def test_regression_in_the_space_of_the_support_texts_is_regression_on_all_subwords():
    (x, y), (xq, _) = unstack(texts(shots=4).sample(1, torch.Generator().manual_seed(0)))[0]
    idf = inverse_frequencies(texts("train").examples, BUCKETS)
    ours, plain = TfIdfRegression(2, BUCKETS), LinearProbe(2)
    found = ours.predict({"idf": idf}, ours.adapt({"idf": idf}, Batch(x, y)), xq)
    assert_close(found, plain.predict({}, plain.adapt({}, Batch(tf_idf(x, idf), y)), tf_idf(xq, idf)), 1e-4)


@pytest.mark.parametrize("cls", [TfIdfCentroid, TfIdfRegression])
def test_idf_is_that_of_training_texts_or_of_the_support_set_and_never_of_queries(cls):
    (x, y), (xq, _) = unstack(texts().sample(1, torch.Generator().manual_seed(0)))[0]
    learner, known = cls(2, BUCKETS), inverse_frequencies(texts("train").examples, BUCKETS)
    assert torch.equal(learner.adapt({"idf": known}, Batch(x, y)).idf, known)
    alone = learner.adapt({}, Batch(x, y))
    assert torch.equal(alone.idf, inverse_frequencies(x, BUCKETS))
    together = learner.predict({}, alone, xq)
    assert_close(torch.cat([learner.predict({}, alone, one[None]) for one in xq]), together, 1e-5)


@pytest.mark.parametrize("through_a_file", [False, True])
def test_the_controls_of_texts_know_the_training_texts_of_the_learner(through_a_file, tmp_path):
    one = trained()
    if through_a_file:
        one.save(tmp_path / "a.qs")
        one = qs.load(tmp_path / "a.qs")
    wanted = inverse_frequencies(texts("train").examples, BUCKETS)
    for name in ("tf_idf_centroid", "tf_idf_regression"):
        idf = controls.control(name, one.learner, one.theta, texts())[1]["idf"]
        assert_close(idf[1:], wanted[1:], 1e-6)  # number 0 stands for no subword
        assert controls.control(name, trained(idf=False).learner, one.theta, texts())[1] == {}


# --- without meta-training -------------------------------------------------------------------------------------------


def test_untrained_is_the_learner_where_its_training_began():
    one = trained()
    found = qs.evaluate(one, texts(), controls=["untrained"], **FEW).controls["untrained"]
    began = qs.evaluate(qs.Trained(one.learner, one.learner.init()), texts(), **FEW)
    assert torch.equal(found.values, began.values) and found.protocol.control == "untrained"


def test_untrained_from_a_file_repeats_itself_and_begins_at_the_idf_of_its_texts(tmp_path):
    one = trained()
    one.save(tmp_path / "a.qs")
    thetas = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        thetas.append(qs.load(tmp_path / "a.qs").learner.init())
    assert all(torch.equal(value, thetas[1][name]) for name, value in thetas[0].items())
    assert_close(thetas[0]["encoder.weights.weight"], one.learner.init()["encoder.weights.weight"], 1e-6)
    assert not torch.equal(thetas[0]["encoder.subwords.weight"], one.theta["encoder.subwords.weight"])


def test_new_weights_of_a_text_network_are_initial_ones():
    """A layer that sets its own parts comes after them: else its zeros and frequencies are overwritten."""
    model = qs.nn.text(buckets=BUCKETS, words=6, sketch=64, width=8, heads=2, layers=1)
    model.encoder.set_idf(texts("train").examples)
    fresh = controls.rerandomised(model).encoder
    assert_close(fresh.weights.weight[:, 0].exp(), model.encoder.idf, 1e-5)
    assert not fresh.blocks[0].narrow.weight.any() and not fresh.blocks[0].tell.weight.any()
    assert not torch.equal(fresh.subwords.weight, model.encoder.subwords.weight)


# --- which controls, and what is said of the others ------------------------------------------------------------------


def as_tokens(x: Tensor) -> Tensor:
    return (100 * x).long()


def as_two(x: Tensor) -> dict[str, Tensor]:
    return {"a": x[..., :2], "b": x[..., 2:]}


@dataclass(frozen=True)
class TwoTargets:
    """A class and a value for each example."""

    ways: int = 3

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        drawn = clusters().sample(n, generator)
        return Episode(*(Batch(x, {"kind": y, "size": x[..., :1]}) for x, y in drawn))


@dataclass(frozen=True)
class Tags:
    """A class for each of two places of an example."""

    ways: int = 3

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        drawn = clusters().sample(n, generator)
        return Episode(*(Batch(x, torch.stack([y, y], 2)) for x, y in drawn))


class Undeclared:
    """Classes, without a word of how many."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        return clusters().sample(n, generator)


@dataclass(frozen=True, eq=False)
class Sentences:
    """Texts as vectors of a frozen encoder."""

    def __call__(self, given: list[str]) -> Tensor:
        return torch.tensor([[float(len(one)), float(one.count("e"))] for one in given])


WHOLE, SEVERAL = "whole numbers, such as tokens or categories", "several targets"
RAW = ["nearest_centroid", "linear_probe"]
KINDS_OF_INPUT = {
    "images": (lambda: clusters((1, 4, 4)), {}),
    "sequences": (lambda: clusters((5, 2)), {}),
    "texts": (texts, {}),
    "vectors of texts": (lambda: qs.tasks.from_text(frame(), "test", 2, 2, 3, encoder=Sentences()), {}),
    "numbers by name": (lambda: WithInputs(clusters(), as_two), {}),
    "numbers and kinds by name": (lambda: WithInputs(clusters(), by_name), dict.fromkeys(RAW, WHOLE)),
    "tokens": (lambda: WithInputs(clusters(), as_tokens), dict.fromkeys(RAW, WHOLE)),
    "several targets": (TwoTargets, dict.fromkeys([*RAW, "nil", "from_scratch"], SEVERAL)),
    "tags": (Tags, dict.fromkeys([*RAW, "nil"], "several classes")),
    "classes undeclared": (Undeclared, dict.fromkeys(["support_mean", "linear_probe", "from_scratch"], "`ways`")),
}


@pytest.mark.parametrize("kind", KINDS_OF_INPUT)
def test_each_control_that_would_make_sense_is_run_or_its_reason_is_given(kind):
    build, lacking = KINDS_OF_INPUT[kind]
    tasks, learner = build(), qs.MAML(qs.nn.mlp(4, 3))
    names, reasons = controls.chosen(learner, tasks, None)
    assert reasons.keys() == lacking.keys() and all(lacking[name] in why for name, why in reasons.items())
    assert {"zero_steps", "shuffled_labels", "untrained"} <= set(names) and not set(names) & set(reasons)
    for name in reasons:
        with pytest.raises(ConfigError, match=f"{name} cannot be run on these tasks"):
            controls.control(name, learner, {}, tasks)


@pytest.mark.parametrize("name", ["numbers and kinds by name", "texts", "vectors of texts", "numbers by name"])
def test_what_is_offered_runs(name):
    learners = {
        "numbers and kinds by name": lambda: qs.ProtoNet(Mixed(None), ways=WAYS),
        "texts": lambda: trained().learner,
        "vectors of texts": lambda: qs.ProtoNet(qs.nn.mlp(2, None), ways=2),
        "numbers by name": lambda: qs.NearestCentroid(WAYS),
    }
    learner, tasks = learners[name](), KINDS_OF_INPUT[name][0]()
    score = qs.evaluate(qs.Trained(learner, learner.init()), tasks, controls=None, **FEW)
    assert set(score.controls) == set(controls.available(learner, tasks))
    assert all(0 <= one.mean <= 1 for one in score.controls.values())
    assert set(score.controls) - {"shuffled_labels", "untrained"}  # something that learns the tasks in another way


def test_texts_have_rivals_that_know_no_meta_training():
    assert {"tf_idf_centroid", "tf_idf_regression", "untrained", "from_scratch"} <= set(
        controls.available(trained().learner, texts())
    )
    with pytest.raises(ConfigError, match="hashed texts"):
        controls.control("tf_idf_centroid", trained().learner, {}, clusters())


# --- what a score and its reader are told ----------------------------------------------------------------------------


def test_reasons_are_kept_with_the_score():
    tasks, learner = WithInputs(clusters(), by_name), qs.ProtoNet(Mixed(None), ways=WAYS)
    score = qs.evaluate(qs.Trained(learner, learner.init()), tasks, controls=None, **FEW)
    assert set(score.left_out) == {"nearest_centroid", "linear_probe"}
    again = qs.Score.from_dict(json.loads(json.dumps(score.to_dict())))
    assert again.left_out == score.left_out
    assert "left_out" not in qs.evaluate(qs.Trained(learner, learner.init()), tasks, **FEW).to_dict()
    assert not score.first(3).left_out


def test_a_control_that_diverged_is_among_those_left_out():
    x = 1e4 * torch.randn(1, 5, 1)

    class Far:
        def sample(self, n: int, generator: Any = None) -> Episode:
            return Episode(*(Batch(x.expand(n, 5, 1), x.expand(n, 5, 1)) for _ in range(2)))

    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.0)
    with pytest.warns(UserWarning, match="diverged"):
        score = qs.evaluate(qs.Trained(learner, learner.init()), Far(), controls=["from_scratch"], **FEW)
    assert "diverged" in score.left_out["from_scratch"]


def made_score(level: float, name: str | None = None, **more: Any) -> qs.Score:
    protocol = qs.Protocol("ProtoNet", "intents", "test", 5, 1, 15, "accuracy", 50, 1, False, "none", control=name)
    drawn = torch.linspace(0, 0.1, 50, dtype=torch.float64)
    return qs.Score(drawn + level, protocol, **more)


def test_the_verdict_names_what_was_beaten_and_what_was_not_run():
    beaten = {name: made_score(0.2, name) for name in ("shuffled_labels", "tf_idf_centroid", "untrained")}
    why = {"nearest_centroid": "the inputs are tokens", "linear_probe": "the inputs are tokens"}
    said = verdict(made_score(0.5, controls=beaten, left_out=why))
    assert said == (
        "ProtoNet beats shuffled labels, the nearest centroid of TF-IDF and its untrained self: its score is owed to "
        "what it learned across tasks and to adapting. "
        "Not run: nearest centroid and linear probe (the inputs are tokens)."
    )


def test_beating_shuffled_labels_alone_is_not_called_beating_every_control():
    said = verdict(made_score(0.5, controls={"shuffled_labels": made_score(0.2, "shuffled_labels")}))
    assert said.startswith("ProtoNet beats shuffled labels. None of these learned the tasks without meta-training")


def test_the_command_line_tells_what_was_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame().to_csv("texts.csv", index=False)
    sizes = ["--ways", "2", "--queries", "2", "--iterations", "2", "--engine", "loop", "--out", "run"]
    assert main.run(["train", "texts.csv", "protonet", "--text", "text", "--label", "label", *sizes]) == 0
    reason = {"nil": "it has no head"}
    chosen = controls.chosen
    monkeypatch.setattr(controls, "chosen", lambda *given: (["tf_idf_centroid"], reason) if chosen(*given) else None)
    assert main.run(["evaluate", "run", "--episodes", "4", "--engine", "loop"]) == 0
    shown = capsys.readouterr().out
    assert "control tf_idf_centroid:" in shown and "control nil: not run, it has no head" in shown
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["scores"][0]["left_out"] == reason


def test_old_scores_have_no_reasons():
    plain = made_score(0.5).to_dict()
    plain.pop("left_out", None)
    assert qs.Score.from_dict(plain).left_out == {}
    assert dataclasses.asdict(qs.Score.from_dict(plain).protocol) == plain["protocol"]
