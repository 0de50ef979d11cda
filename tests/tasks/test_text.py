"""Texts: what is read of them, the encoder against formulas, files of people's own, bad input."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from problems import assert_close
from sklearn.feature_extraction.text import TfidfTransformer

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.texts.text import SUBWORDS, hashed

KINDS = ["order", "refund", "hours", "greeting", "parking", "weather"]


def frame(each: int = 6) -> pandas.DataFrame:
    """Six kinds of texts; each holds its kind's word and a few that mean nothing."""
    rng = np.random.default_rng(0)
    fillers = ["please", "now", "the", "my", "about", "is", "what"]
    rows = [
        {"text": f"{' '.join(rng.choice(fillers, 3))} {kind} {i}?", "label": kind}
        for kind in KINDS
        for i in range(each)
    ]
    return pandas.DataFrame(rows)


def small(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return qs.nn.text(**{"buckets": 97, "words": 6, "sketch": 16, "width": 8, "heads": 2} | changes)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_texts_become_numbers_of_subwords():
    a, b, c = hashed(["Is it OPEN?", "is it open?", "is it opened"], words=5)
    assert a.shape == (5, SUBWORDS) and a.dtype == torch.int32
    assert torch.equal(a, b)  # case is ignored
    assert (a[:4].amax(1) > 0).all() and (a[4] == 0).all()  # four words, of which "?" is one
    shared = set(a[2].tolist()) & set(c[2].tolist()) - {0}
    assert len(shared) >= 3  # "open" and "opened" share parts
    assert int(a.max()) < 16384
    assert (hashed([" "], words=2) == 0).all()


def test_long_texts_are_cut_and_numbers_do_not_depend_on_the_batch():
    long = "word " * 100
    assert torch.equal(hashed([long, "a"], words=3)[0], hashed([long], words=3)[0])


# --- the encoder -----------------------------------------------------------------------------------------------------


def test_without_learned_words_inner_products_are_those_of_tf_idf():
    """A sketch as wide as there are buckets has no collisions: the cosine of scikit-learn's TF-IDF, exactly."""
    texts = frame().text.tolist()
    x = hashed(texts, buckets=4096, words=8)
    model = qs.nn.text(buckets=4096, words=8, sketch=4096, width=4, dropout=0.0)
    encoder = model.encoder
    encoder.set_idf(x)
    with torch.no_grad():
        encoder.angle.zero_()
        z = model(x).double()
    counts = np.stack([np.bincount(row[row > 0], minlength=4096) for row in x.flatten(1).numpy()])
    wanted = TfidfTransformer().fit_transform(counts).toarray()  # 1 + log((n + 1) / (n_p + 1)), rows of length 1
    assert_close(z @ z.T, encoder.scale.item() ** 2 * torch.from_numpy(wanted @ wanted.T), 1e-5)


def test_both_parts_by_hand():
    model = small(dropout=0.0)
    encoder = model.encoder
    with torch.no_grad():
        encoder.weights.weight.normal_()
        encoder.angle.fill_(0.7)
    x = hashed(["one two", "three"], buckets=97, words=6)
    for row, z in zip(x, model(x), strict=True):
        sketch, learned = torch.zeros(16), torch.zeros(8)
        for p in row.flatten().tolist():
            if p:
                weight = encoder.weights.weight[p, 0].exp()
                sketch[p % 16] += weight * (1 - 2 * (p // 16 % 2))
                learned += weight * encoder.subwords.weight[p]
        parts = [math.cos(0.7) * F.normalize(sketch, dim=0), math.sin(0.7) * F.normalize(learned, dim=0)]
        assert_close(z, encoder.scale * torch.cat(parts), 1e-5)


def test_attention_starts_as_nothing_and_sees_only_words():
    x = hashed(["one two three", "four"], buckets=97, words=6)
    model, bag = small(layers=2, dropout=0.0), small(dropout=0.0)
    with torch.no_grad():
        bag.encoder.subwords.weight.copy_(model.encoder.subwords.weight)
        before = model(x)
        assert_close(before, bag(x), 1e-6)
        model.encoder.blocks[0].tell.weight.normal_()
        model.encoder.places.normal_()
        after = model(x)
        assert not torch.allclose(before, after, atol=1e-3)
        assert_close(model(x[:, :4]), after, 1e-5)  # without two of the places where no word is


@pytest.mark.parametrize("layers", [0, 1])
def test_engines_agree(layers):
    learner = qs.ProtoNet(small(layers=layers, dropout=0.0), ways=2)
    texts = ["one two", "three", "four five six", "seven one", "two two", "eight", "nine", "three four"]
    x = hashed(texts, buckets=97, words=6).reshape(2, 4, 6, SUBWORDS)
    batch = qs.Batch(x, torch.tensor([[0, 0, 1, 1]] * 2))
    found = [qs.meta_gradient(learner, learner.init(), qs.Episode(batch, batch), kind) for kind in ("loop", "vmap")]
    assert_close(found[0][0], found[1][0], 1e-6)
    for name, slope in found[0][1].items():
        assert_close(found[1][1][name], slope, 1e-5)


def test_words_are_dropped_in_training_only():
    learner = qs.ProtoNet(small(dropout=0.5), ways=2)
    theta = learner.init()
    batch = qs.Batch(hashed(["one two", "three four five"], buckets=97, words=6), torch.tensor([0, 1]))
    answers = [learner.predict(theta, learner.adapt(theta, batch), batch.x) for _ in range(2)]
    assert torch.equal(*answers)
    losses = {float(learner.meta_loss(theta, qs.Episode(batch, batch))) for _ in range(8)}
    assert len(losses) > 1


def test_empty_texts_give_finite_numbers_and_gradients():
    learner = qs.ProtoNet(small(layers=1, dropout=0.0), ways=2)
    theta = learner.init()
    batch = qs.Batch(torch.zeros(2, 6, SUBWORDS, dtype=torch.int32), torch.tensor([0, 1]))
    loss, slope = qs.meta_gradient(
        learner, theta, qs.Episode(*(qs.Batch(b.x[None], b.y[None]) for b in (batch, batch)))
    )
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in slope.values())


@pytest.mark.parametrize("layers", [0, 1])
def test_the_meta_gradient_is_right(layers):
    model = small(layers=layers, dropout=0.0, classes=3)
    x = hashed(["one two", "three", "four five six"], buckets=97, words=6)
    batch = qs.Batch(x, torch.arange(3))
    assert qs.check_meta_gradient(qs.MAML(model, lr=0.1, steps=2), qs.Episode(batch, batch)).ok


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="heads=3 must divide width=8"):
        small(heads=3)
    with pytest.raises(ConfigError, match="at least 1"):
        small(words=0)


# --- files of people's own -------------------------------------------------------------------------------------------


def sizes(split="train", **changes):
    return {"split": split, "ways": 2, "shots": 1, "queries": 2} | changes


def test_a_table_is_split_by_class_and_keeps_its_texts():
    found = [qs.tasks.from_text(frame(), **sizes(split, ways=1)) for split in ("train", "val", "test")]
    assert sorted(name for tasks in found for name in tasks.classes) == sorted(KINDS)
    tasks = found[0]
    assert torch.equal(tasks.examples, hashed(tasks.raw))
    support, _ = tasks.rows(1, torch.Generator().manual_seed(3))
    drawn = tasks.sample(1, torch.Generator().manual_seed(3)).support.x[0]
    assert torch.equal(drawn, hashed([tasks.raw[i] for i in support.flatten().tolist()]))


def test_folders_of_tables_and_of_texts(tmp_path):
    whole = frame()
    (tmp_path / "tables").mkdir()
    for split, part in (("train", KINDS[:3]), ("test", KINDS[3:])):
        whole[whole.label.isin(part)].to_csv(tmp_path / "tables" / f"{split}.csv", index=False)
    assert qs.tasks.from_text(tmp_path / "tables", **sizes("test")).classes == sorted(KINDS[3:])
    for i, row in whole.iterrows():
        (tmp_path / "texts" / row.label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / row.label / f"{i}.txt").write_text(row.text)
    from_files, from_table = (qs.tasks.from_text(source, **sizes()) for source in (tmp_path / "texts", whole))
    assert from_files.classes == from_table.classes
    assert sorted(from_files.raw) == sorted(from_table.raw)


def test_what_was_left_out_is_told():
    whole = pandas.concat([frame(), frame().iloc[:2], pandas.DataFrame({"text": ["  ", None], "label": ["order"] * 2})])
    notes = qs.tasks.from_text(whole, **sizes()).notes
    assert notes == (
        "2 rows of the table without text or label left out",
        "2 texts of the table that copy another of their class left out",
    )


def test_texts_longer_than_what_is_read_are_told():
    long = frame().assign(text=lambda f: f.text + " and so on" * 9)
    (note,) = qs.tasks.from_text(long, **sizes()).notes
    assert note == "24 of 24 texts (100 %) have more than 24 words: the rest is not read"
    assert qs.tasks.from_text(long, **sizes(), words=60).notes == ()


def test_bad_texts_are_told(tmp_path):
    with pytest.raises(DataError, match=r"no column 'txt' \(text\).* Did you mean 'text'\?"):
        qs.tasks.from_text(frame(), **sizes(), text="txt")
    with pytest.raises(DataError, match="no row of the table has both"):
        qs.tasks.from_text(frame().assign(text=""), **sizes())
    with pytest.raises(DataError, match="too few classes for a 'val' part"):
        qs.tasks.from_text(frame()[lambda f: f.label.isin(KINDS[:2])], **sizes("val"))
    with pytest.raises(DataError, match="there is no file or folder"):
        qs.tasks.from_text(tmp_path / "none.csv", **sizes())
    with pytest.raises(DataError, match="neither tables train, val, test nor a folder"):
        qs.tasks.from_text(tmp_path, **sizes())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(DataError, match="not text in UTF-8"):
        qs.tasks.from_text(tmp_path, **sizes())
    (tmp_path / "a" / "1.txt").write_text("\n")
    with pytest.raises(DataError, match=r"1\.txt' is empty"):
        qs.tasks.from_text(tmp_path, **sizes())
    for split in ("train", "test"):
        frame().to_csv(tmp_path / f"{split}.csv", index=False)
    with pytest.raises(DataError, match="class 'greeting' is in both train and test"):
        qs.tasks.from_text(tmp_path, **sizes())


def test_from_texts_to_answers_and_back_from_a_file(tmp_path):
    tasks = qs.tasks.from_text(frame(), **sizes())
    learner = qs.MatchingNet(qs.nn.text(sketch=64, width=8), ways=2)
    trained = qs.train(learner, tasks, iterations=2, meta_batch=2, progress=False)
    predictor = trained.adapt(["I want a refund", "when do you open"], ["money", "hours"])
    assert predictor.predict(["refund please", "open now?"]) == ["money", "hours"]
    predictor.save(tmp_path / "p.qs")
    assert qs.load(tmp_path / "p.qs").predict("refund please") == ["money"]
    with pytest.raises(DataError, match="text 1 is empty"):
        predictor.predict(["refund", " "])
    with pytest.raises(DataError, match=r"a list of strings, got int \(3\)"):
        predictor.predict(["refund", 3])


def test_the_command_line_from_texts_to_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame(8).to_csv("requests.csv", index=False)
    train = ["train", "requests.csv", "protonet", "--text", "text", "--label", "label", "--ways", "2", "--queries", "2"]
    assert main.run([*train, "--iterations", "2", "--meta-batch", "1", "--engine", "loop"]) == 0
    assert (
        main.run(["evaluate", "runs/requests-protonet", "--split", "train", "--episodes", "10", "--engine", "loop"])
        == 0
    )
    pandas.DataFrame({"text": ["a refund", "your hours"], "label": ["money", "time"]}).to_csv("new.csv", index=False)
    assert main.run(["adapt", "runs/requests-protonet", "new.csv", "--out", "p.qs"]) == 0
    (tmp_path / "asked.txt").write_text("refund it\n\nwhich hours\n")
    capsys.readouterr()
    assert main.run(["predict", "p.qs", "asked.txt", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [(a["input"], a["label"]) for a in answers] == [("refund it", "money"), ("which hours", "time")]
    assert main.run(["predict", "p.qs", "none.txt"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["heads", "width", "buckets", "words", "sketch"])
def test_a_size_of_zero_is_refused_by_name(size):
    with pytest.raises(ConfigError, match=f"{size} must be at least 1, got 0"):
        small(**{size: 0})
    with pytest.raises(ConfigError, match="layers are 0 or more"):
        small(layers=-1)
