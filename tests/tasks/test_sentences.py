"""Texts as vectors of a frozen model of sentences: what it sees, what is trained on them, what a file needs again."""

from __future__ import annotations

import json
import sys
import types
import zlib

import numpy as np
import pandas
import pytest
import torch
from problems import assert_close, snapshot
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.errors import ConfigError, DataError

WIDTH = 64
KINDS = ["order", "refund", "hours", "greeting", "parking", "weather"]


def frame(each: int = 6) -> pandas.DataFrame:
    rows = [{"text": f"about {kind} number {i}", "label": kind} for kind in KINDS for i in range(each)]
    return pandas.DataFrame(rows)


def hashing(texts: list[str]) -> np.ndarray:
    """Counts of hashed words [n, WIDTH]: an encoder of one's own."""
    found = np.zeros((len(texts), WIDTH), np.float32)
    for row, one in zip(found, texts, strict=True):
        for word in one.split():
            row[zlib.crc32(word.encode()) % WIDTH] += 1
    return found


class Module(nn.Module):
    """The same as a module on strings, with a weight and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.tensor(2.0)), nn.Dropout(0.5)

    def forward(self, texts: list[str]) -> Tensor:
        return self.dropout(self.weight * torch.from_numpy(hashing(texts)))


class Model:
    """As `SentenceTransformer` looks from outside."""

    opened: list[tuple[str, bool]] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self, name: str, local_files_only: bool = False) -> None:
        if name == "unknown":
            raise OSError("no such model\nand more")
        self.opened.append((name, local_files_only))

    def encode(self, texts: list[str]) -> np.ndarray:
        return hashing(texts)


def tasks(encoder: object = hashing, split: str = "train", **sizes: int) -> qs.tasks.ClassTasks:
    return qs.tasks.from_text(frame(), split, **{"ways": 2, "shots": 1, "queries": 2} | sizes, encoder=encoder)


def trained(encoder: object = hashing) -> qs.Trained:
    torch.manual_seed(0)
    learner = qs.ProtoNet(qs.nn.mlp(WIDTH, hidden=(256,)), ways=2)
    return qs.train(learner, tasks(encoder), iterations=2, meta_batch=2, engine="loop", progress=False)


SUPPORT = (["I want a refund", "when are your hours"], ["money", "time"])
ASKED = ["my refund please", "hours on sunday", "refund refund"]


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_tasks_hold_the_vectors_of_their_texts():
    found, plain = tasks(), tasks(None)
    np.testing.assert_array_equal(found.examples.numpy(), hashing(list(found.raw)))
    assert found.raw == plain.raw and torch.equal(found.starts, plain.starts)
    one, other = (t.rows(2, torch.Generator().manual_seed(1)) for t in (found, plain))
    assert torch.equal(one[0], other[0]) and found.sample(3).query.x.shape == (3, 4, WIDTH)
    names = {"encoder": "hashing", "width": WIDTH, "named": False}
    assert found.preprocess == {"kind": "text", "text": "text", "label": "label", "readings": {}} | names


def test_each_text_is_seen_once_and_in_batches():
    sizes = []

    def counting(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return hashing(texts)

    rows = [{"text": f"{kind} {i}", "label": kind} for kind in KINDS for i in range(100)]
    source = qs.tasks.from_text({"train": pandas.DataFrame(rows)}, "train", 2, 1, 2, encoder=counting)
    source.sample(10)
    assert sizes == [256, 256, 88]


def test_a_module_is_called_in_eval_mode_and_not_touched():
    module = Module()
    unchanged = snapshot(module)
    found = tasks(module)
    assert torch.equal(found.examples, 2 * tasks().examples) and not found.examples.requires_grad
    assert unchanged() and module.training and module.weight.requires_grad
    assert found.preprocess["encoder"] == "Module"


@pytest.mark.parametrize("encoder", [Model("own"), Model("own").encode], ids=["the model", "its method"])
def test_a_model_with_encode(encoder):
    assert torch.equal(tasks(encoder).examples, tasks().examples)


def test_what_gives_no_vectors_is_refused():
    with pytest.raises(ConfigError, match=r"a name, or maps a list of texts to vectors .* got int"):
        tasks(3)
    with pytest.raises(ConfigError, match=r"must give features \[n, \.\.\.\]; for n = 24 it gave \[24\]"):
        tasks(lambda texts: np.zeros(len(texts)))
    with pytest.raises(ConfigError, match="it gave list"):
        tasks(lambda texts: [[0.0], ["a"]])
    with pytest.raises(ConfigError, match=r"a vector for each, \[n, d\]; it gave \[24, 2, 3\]"):
        tasks(lambda texts: np.zeros((len(texts), 2, 3)))
    with pytest.raises(DataError, match="NaN or infinity for the text 'about"):
        tasks(lambda texts: np.full((len(texts), 2), np.nan))
    with pytest.raises(ConfigError, match="normalises by whatever batch"):
        tasks(nn.Sequential(qs.nn.norm("batch", 3)))


# --- what is trained on them -----------------------------------------------------------------------------------------


def test_it_takes_texts_and_vectors_alike():
    predictor = trained().adapt(*SUPPORT)
    on_vectors = trained().adapt(hashing(SUPPORT[0]), SUPPORT[1])
    for asked in (ASKED, np.array(ASKED), hashing(ASKED), torch.from_numpy(hashing(ASKED))):
        assert_close(predictor.predict_proba(asked), on_vectors.predict_proba(ASKED), 1e-6)
    assert predictor.predict(ASKED) == ["money", "time", "money"]
    before = predictor.predict_proba(ASKED)
    assert not torch.equal(predictor.update(["a refund now"], ["money"]).predict_proba(ASKED), before)
    assert trained().embed(*SUPPORT).shape == (256,)
    with pytest.raises(DataError, match="text 1 is empty"):
        predictor.predict(["refund", " "])


def test_texts_of_no_class_are_given_as_texts():
    found = qs.out_of_scope(trained(), tasks(split="train"), ["zebra stripes", "quantum", "x y z", "w"], episodes=5)
    assert found.distance.auroc.mean > 0.5


def test_a_file_asks_for_the_encoder_again(tmp_path):
    one = trained()
    predictor = one.adapt(*SUPPORT)
    one.save(tmp_path / "learner.qs")
    predictor.save(tmp_path / "predictor.qs")
    bare = qs.load(tmp_path / "predictor.qs")
    assert torch.equal(bare.predict_proba(hashing(ASKED)), predictor.predict_proba(ASKED))  # type: ignore[union-attr]
    for lacking in (lambda: bare.predict(ASKED), lambda: qs.load(tmp_path / "learner.qs").adapt(*SUPPORT)):  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match=r"'hashing', an encoder of your own.*text_encoder=.*vectors \[n, 64\]"):
            lacking()
    again = qs.load(tmp_path / "predictor.qs", text_encoder=hashing)
    assert torch.equal(again.predict_proba(ASKED), predictor.predict_proba(ASKED))  # type: ignore[union-attr]
    anew = qs.load(tmp_path / "learner.qs", text_encoder=hashing).adapt(*SUPPORT)  # type: ignore[union-attr]
    assert torch.equal(anew.predict_proba(ASKED), predictor.predict_proba(ASKED))
    wrong = qs.load(tmp_path / "predictor.qs", text_encoder=lambda texts: np.ones((len(texts), 5)))
    with pytest.raises(DataError, match="vectors of 5 numbers; that of training, 'hashing', gave 64"):
        wrong.predict(ASKED)  # type: ignore[union-attr]


def test_a_run_and_a_predictor_with_a_module_do(tmp_path):
    one = trained(Module())
    predictor = one.adapt(*SUPPORT)
    assert "weight" not in dict(predictor.named_parameters()) and predictor.train()(torch.zeros(1, WIDTH)).shape == (
        1,
        2,
    )
    predictor.save(tmp_path / "predictor.qs")
    again = qs.load(tmp_path / "predictor.qs", text_encoder=Module())
    assert again.predict(ASKED) == predictor.predict(ASKED)  # type: ignore[union-attr]


# --- models by name --------------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch) -> type[Model]:
    """A sentence_transformers of our own."""
    made = types.ModuleType("sentence_transformers")
    made.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", made)
    Model.opened.clear()
    return Model


def test_a_model_by_name_is_opened_again_by_its_name_but_not_downloaded(library, tmp_path):
    one = trained("small-model")
    assert one.preprocess["encoder"] == "small-model" and one.preprocess["named"]
    one.adapt(*SUPPORT).save(tmp_path / "predictor.qs")
    assert qs.load(tmp_path / "predictor.qs").predict(ASKED) == ["money", "time", "money"]  # type: ignore[union-attr]
    assert library.opened == [("small-model", False), ("small-model", True)]


def test_a_model_that_is_not_there(library, monkeypatch):
    with pytest.raises(ConfigError, match=r"cannot open the model 'unknown': no such model$"):
        tasks("unknown")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"'all-x' .* not installed: pip install sentence-transformers"):
        tasks("all-x")


def test_the_command_line_takes_a_model_by_name(library, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame(8).to_csv("requests.csv", index=False)
    texts = ["--label", "label", "--encoder", "command-line-model", "--ways", "2", "--queries", "2"]
    train = ["train", "requests.csv", "protonet", *texts, "--iterations", "2", "--engine", "loop", "--out", "run"]
    assert main.run(train) == 0
    evaluate = ["evaluate", "run", "--split", "train", "--episodes", "5", "--engine", "loop"]
    assert main.run(evaluate) == 0
    assert "control nearest_centroid" in capsys.readouterr().out  # vectors have means, numbers of subwords have none
    pandas.DataFrame({"text": SUPPORT[0], "label": SUPPORT[1]}).to_csv("new.csv", index=False)
    assert main.run(["adapt", "run", "new.csv", "--out", "bot.qs"]) == 0
    (tmp_path / "asked.txt").write_text("\n".join(ASKED))
    capsys.readouterr()
    assert main.run(["predict", "bot.qs", "asked.txt", "--json"]) == 0
    assert [a["label"] for a in json.loads(capsys.readouterr().out)] == ["money", "time", "money"]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert main.run([word.replace("command-line", "absent") for word in train]) == 2
    assert "pip install sentence-transformers" in capsys.readouterr().err
    assert main.run(["train", "glyphs", "protonet", "--encoder", "absent-model"]) == 2
    assert "--encoder has no effect on 'glyphs'" in capsys.readouterr().err
