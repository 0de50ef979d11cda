"""One reader for each kind of input: found from `preprocess`, from disk and from memory, and back to units."""

import dataclasses

import numpy as np
import pandas
import pytest
import torch

import quickstudy as qs
from quickstudy.base import version as base_version
from quickstudy.errors import DataError, FileFormatError
from quickstudy.trained import learner_file
from quickstudy.trained.readers.arrays import ARRAYS
from quickstudy.trained.readers.known import READERS, reader_of
from quickstudy.trained.reading import in_units

TABLE = {
    "kind": "table",
    "task": "shop",
    "target": "sold",
    "columns": [{"name": "price", "kind": "number", "mean": 10.0, "std": 2.0, "missing": False}],
    "mean": 50.0,
    "std": 5.0,
}
CLASSES = {name: value for name, value in TABLE.items() if name not in ("mean", "std")} | {"classes": ["no", "yes"]}
TEXT = {"kind": "text", "text": "said", "label": "intent", "buckets": 64, "words": 3}


def kinds_of_the_sources() -> set[str]:
    glyphs = qs.tasks.glyphs("val").preprocess["kind"]
    prices = [i * 7 % 13 for i in range(40)]
    rows = pandas.DataFrame({"shop": list("abcdefghij") * 4, "price": prices, "sold": [i % 7 for i in range(40)]})
    table = qs.tasks.from_table(rows, "train", task="shop", target="sold", shots=1, queries=1).preprocess["kind"]
    rated = pandas.DataFrame([{"user": u, "item": i, "rating": (u * i) % 5} for u in range(10) for i in range(6)])
    ratings = qs.tasks.from_ratings(rated, "train", shots=2, queries=2).preprocess["kind"]
    said = pandas.DataFrame([{"text": f"{k} {i}", "label": k} for k in "abcde" for i in range(4)])
    texts = qs.tasks.from_text(said, "train", ways=2, shots=1, queries=1).preprocess["kind"]
    return {glyphs, table, ratings, texts}


def test_there_is_a_reader_for_each_kind_of_source_and_no_other():
    assert kinds_of_the_sources() | {""} == set(READERS)
    assert reader_of({}) is ARRAYS and reader_of({"scope": 1.0}) is ARRAYS
    assert len({id(reader) for reader in READERS.values()}) == len(READERS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ARRAYS.inputs = None  # type: ignore[misc]


def sounds() -> qs.Trained:
    learner = qs.ProtoNet(qs.nn.mlp(2, None, hidden=(3,)), ways=2)
    return qs.Trained(learner, learner.init(), preprocess={"kind": "sounds"})


def test_a_kind_of_a_later_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(learner_file, "__version__", "99.1.0")
    sounds().save(tmp_path / "trained.qs")
    sounds().adapt(torch.eye(2), ["a", "b"]).save(tmp_path / "predictor.qs")
    for name in ("trained.qs", "predictor.qs"):
        with pytest.raises(FileFormatError, match=r"of the kind 'sounds', which .* not know.*99\.1\.0.*upgrade"):
            qs.load(tmp_path / name)


def test_a_kind_of_the_users_own_source_is_read_as_arrays_from_files_too(tmp_path):
    trained, x = sounds(), torch.eye(2)
    assert reader_of(trained.preprocess) is ARRAYS
    wanted = trained.adapt(x, ["a", "b"]).predict_proba(x)
    trained.save(tmp_path / "sounds.qs")
    again = qs.load(tmp_path / "sounds.qs")
    assert again.preprocess == {"kind": "sounds"}
    assert torch.equal(again.adapt(x, ["a", "b"]).predict_proba(x), wanted)


@pytest.mark.parametrize(
    ("version", "later"),
    [("1.9.1", False), ("1.9.2", False), ("1.10.0", True), ("2.0.0.dev1", True), ("0", False)],
)
def test_a_later_version_is_told_by_its_numbers(version, later, monkeypatch):
    monkeypatch.setattr(base_version, "__version__", "1.9.2")
    assert base_version.is_later(version) is later


@pytest.mark.parametrize("preprocess", [{}, TEXT, {"kind": "image"}])
def test_numbers_are_taken_as_they_are(preprocess):
    for x in (torch.ones(2, 3), np.ones((2, 3))):
        assert reader_of(preprocess).encoded(preprocess, x, None) is x


def test_rows_become_numbers_and_values_come_back_in_their_unit(tmp_path):
    reader = reader_of(TABLE)
    rows = [{"shop": "a", "price": 12.0, "sold": 60}, {"shop": "a", "price": 8.0, "sold": 45}]
    assert reader.encoded(TABLE, rows, None).tolist() == [[1.0], [-1.0]]
    y = reader.targets(TABLE, [60, 45])
    assert y.tolist() == [[2.0], [-1.0]]
    assert in_units(TABLE, y).tolist() == [[60.0], [45.0]]
    pandas.DataFrame(rows).to_csv(tmp_path / "shown.csv", index=False)
    frame, answers, notes = reader.support(TABLE, tmp_path / "shown.csv", False)
    assert notes == []
    assert answers.tolist() == [60.0, 45.0] and reader.encoded(TABLE, frame, None).tolist() == [[1.0], [-1.0]]


def test_classes_of_a_table_keep_their_names(tmp_path):
    assert reader_of(CLASSES).targets(CLASSES, ["no", "yes"]) == ["no", "yes"]
    logits = torch.ones(2, 2)
    assert in_units(CLASSES, logits) is logits
    (tmp_path / "shown.csv").write_text("shop,price,sold\na,12,yes\na,8,no\n")
    assert reader_of(CLASSES).support(CLASSES, tmp_path / "shown.csv", True)[1] == ["yes", "no"]


def test_rows_are_named_by_the_lines_of_their_file(tmp_path):
    (tmp_path / "asked.csv").write_text("shop,price\na,12\na,8\n")
    path = tmp_path / "asked.csv"
    assert reader_of(TABLE).inputs(TABLE, path)[1] == [f"{path}:2", f"{path}:3"]
    pytest.importorskip("pyarrow")
    pandas.read_csv(path).to_parquet(tmp_path / "asked.parquet")
    assert reader_of(TABLE).inputs(TABLE, tmp_path / "asked.parquet")[1][0] == f"{tmp_path / 'asked.parquet'}:1"


def test_texts_come_from_lines_tables_and_folders(tmp_path):
    (tmp_path / "asked.txt").write_text("where is it\n\nrefund me\n")
    assert reader_of(TEXT).inputs(TEXT, tmp_path / "asked.txt")[1] == ["where is it", "refund me"]
    (tmp_path / "asked.csv").write_text("said,intent\nrefund me,money\nwhere,order\n")
    assert reader_of(TEXT).inputs(TEXT, tmp_path / "asked.csv")[0] == ["refund me", "where"]
    assert reader_of(TEXT).support(TEXT, tmp_path / "asked.csv", True)[:2] == (
        ["refund me", "where"],
        ["money", "order"],
    )
    assert reader_of(TEXT).encoded(TEXT, ["refund me"], None).shape[:2] == (1, 3)


@pytest.mark.parametrize(
    ("preprocess", "wanted"),
    [
        ({"kind": "image", "size": 8, "channels": 1, "invert": False}, "there is no folder"),
        ({}, "a CSV file"),
        (TABLE, "a table with the target's column"),
    ],
)
def test_a_support_set_that_is_not_there_says_what_is_wanted(preprocess, wanted, tmp_path):
    with pytest.raises(DataError, match=wanted):
        reader_of(preprocess).support(preprocess, tmp_path / "nothing", True)
