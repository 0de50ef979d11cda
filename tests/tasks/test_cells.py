"""How the cells of a table are read: what each way of writing means, what is asked, and that later tables follow."""

import numpy as np
import pandas
import pytest
import torch

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.errors import DataError
from quickstudy.tasks.tabular import cells, frames

N = 240


def plain() -> pandas.DataFrame:
    """Twelve shops, 20 rows each: three numbers, a day, and a mark that grows with the temperature."""
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "shop": np.repeat([f"{i:02d}" for i in range(12)], 20),
            "temperature": rng.normal(14, 5, N).round(1),
            "sales": (rng.gamma(2, 900, N) + 1000).round(1),
            "share": rng.integers(1, 99, N).astype(float),
            "day": pandas.date_range("2024-01-01", periods=N)[rng.permutation(N)],
        }
    )
    return frame.assign(mark=(5 + 0.3 * frame.temperature + rng.normal(0, 1, N)).round(2))


def european(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The same as a spreadsheet exports it there: 14,6 and 1.234,5 and 80 % and 31.05.2024."""
    swap = str.maketrans(",.", ".,")
    return frame.assign(
        temperature=frame.temperature.map(lambda v: f"{v:.1f}".translate(swap)),
        sales=frame.sales.map(lambda v: f"{v:,.1f}".translate(swap)),
        share=frame.share.map(lambda v: f"{v:.0f} %"),
        day=frame.day.dt.strftime("%d.%m.%Y"),
        mark=frame.mark.map(lambda v: f"{v:.2f}".translate(swap)),
    )


def opened(table, split="train", **settings):
    given = {"task": "shop", "target": "mark", "shots": 5, "queries": 5}
    return qs.tasks.from_table(table, split, **given | settings)


def read(words: list, **asked) -> tuple[list, list[str]]:
    """The cells of a column as they are read, and the notes about it."""
    frame = pandas.DataFrame({"x": words})
    found = cells.find(frame, ["x"], **asked)
    return cells.typed(frame, found.plain())["x"].tolist(), found.notes_of(["x"])


def moments(*days: str) -> list[pandas.Timestamp]:
    return [pandas.Timestamp(day) for day in days]


# --- what cells mean -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["14,0", "7,25", "-3"], [14.0, 7.25, -3.0]),
        (["1.234,5", "12,0"], [1234.5, 12.0]),
        (["1,234.5", "12.0"], [1234.5, 12.0]),
        (["1 234,5", "12"], [1234.5, 12.0]),
        (["1\u202f234,5", "\u221212"], [1234.5, -12.0]),
        (["1'234.5", "1\u2019000"], [1234.5, 1000.0]),
        (["1.234.567", "12"], [1234567.0, 12.0]),
        (["5%", "12.5 %"], [5.0, 12.5]),
        (["$ 1.5", "$2", "-$3"], [1.5, 2.0, -3.0]),
        (["1,50 €", "2,5€"], [1.5, 2.5]),
        (["1e3", "2.5E-1", ".5", "+4"], [1000.0, 0.25, 0.5, 4.0]),
        (["0,125", "0,250"], [0.125, 0.25]),  # no group begins with 0
        (["true", "FALSE"], [1.0, 0.0]),
        (["31.05.2024", "1.6.2024"], moments("2024-05-31", "2024-06-01")),
        (["05/31/2024", "06/01/2024"], moments("2024-05-31", "2024-06-01")),
        (["31/05/2024", "01/06/2024"], moments("2024-05-31", "2024-06-01")),
        (["31-05-2024 14:30", "01-06-2024 00:00"], moments("2024-05-31 14:30", "2024-06-01")),
        (["2024-05-31", "2024-06-01"], moments("2024-05-31", "2024-06-01")),
        (["31.05.24", "01.06.24"], moments("2024-05-31", "2024-06-01")),
    ],
)
def test_what_can_be_read_in_one_way_is_read(words, meant):
    assert read(words) == (meant, [])


def test_what_can_be_read_in_two_ways_is_asked():
    with pytest.raises(DataError, match=r"two ways, '1,234' as 1\.234 or as 1234, .* say decimal ',' or '\.'"):
        read(["1,234", "950"])
    assert read(["1,234", "950"], decimal=",")[0] == [1.234, 950]
    assert read(["1,234", "950"], decimal=".")[0] == [1234, 950]
    with pytest.raises(DataError, match=r"'05/06/2024' as 2024-06-05 or as 2024-05-06, .*'day-first' or 'month-first'"):
        read(["05/06/2024", "01/02/2024"])
    assert read(["05/06/2024"], dates="day-first")[0] == moments("2024-06-05")
    assert read(["05/06/2024"], dates="month-first")[0] == moments("2024-05-06")


def test_three_decimals_are_read_as_programs_write_them_and_it_is_said():
    values, (note,) = read(["1.250", "2.500"])
    assert values == [1.25, 2.5]
    assert "'1.250' as 1.25 or as 1250, and is read in the first" in note
    assert read(["1.250", "2.500"], decimal=",") == ([1250, 2500], [])


def test_other_columns_of_the_table_show_what_a_column_means():
    both = pandas.DataFrame({"price": ["14,0", "2,5"], "sold": ["1.234", "950"], "day": ["05/06/2024", "05/06/2024"]})
    both["paid"] = ["13/06/2024", "14/06/2024"]
    found = cells.find(both, both.columns)
    values = cells.typed(both, found.plain())
    assert values.sold.tolist() == [1234, 950] and values.day.tolist() == moments("2024-06-05") * 2
    assert found.notes == []
    points = pandas.DataFrame({"price": ["14.5", "2.5"], "sold": ["1,234", "950"]})
    assert cells.typed(points, cells.find(points, points.columns).plain()).sold.tolist() == [1234, 950]


@pytest.mark.parametrize("words", [["10 kg", "12 kg"], ["1h30", "2h"], ["10-19", "20-29"], ["1.2.3", "1.2.4"]])
def test_words_that_look_like_numbers_are_said(words):
    values, (note,) = read(words)
    assert values == words
    assert "read as words, but looks like numbers or dates" in note and repr(words[0]) in note


def test_marks_of_gaps_are_gaps_among_numbers_and_words_among_words():
    values, (note,) = read(["1", "NA", "?", "2.5", None])
    assert values[0] == 1.0 and np.isnan(values[1]) and np.isnan(values[2]) and values[3] == 2.5
    assert note == "column 'x' is missing where it says '?' or 'NA' (2 cells)"
    assert read(["red", "NA", "null"]) == (["red", "NA", "null"], [])


def test_leading_zeros_are_said():
    (note,) = read(["01067", "12345"])[1]
    assert "leading zeros ('01067')" in note and "categories" in note


# --- a table written in another way is the same table ----------------------------------------------------------------


def test_a_european_table_gives_the_numbers_of_the_plain_one(tmp_path):
    european(plain()).to_csv(tmp_path / "euro.csv", sep=";", index=False)
    wanted, found = opened(plain()), opened(tmp_path / "euro.csv")
    assert np.allclose(found.x, wanted.x, atol=1e-6) and np.allclose(found.y, wanted.y, atol=1e-6)
    assert found.unit == pytest.approx(wanted.unit) and found.notes == ()
    assert found.names == wanted.names


def learner_of(tasks) -> qs.Trained:
    width = tasks.x.shape[1]
    torch.manual_seed(0)
    learner = qs.R2D2(qs.nn.mlp(width, None, hidden=(4,)), loss=qs.mse_loss, ways=None, lam=0.1, scale=1.0)
    return qs.train(learner, tasks, iterations=2, meta_batch=2, progress=False)


def test_later_tables_are_read_as_the_training_table_was(tmp_path):
    euro = european(plain())
    learner_of(opened(euro)).save(tmp_path / "euro.qs")
    trained, rows = qs.load(tmp_path / "euro.qs"), euro[euro.shop == "00"]
    predictor = trained.adapt(rows, rows.mark)  # the marks are text, too
    wanted = learner_of(opened(plain())).adapt(plain()[:20], plain().mark[:20]).predict(plain()[20:40])
    assert np.allclose(predictor.predict(euro[20:40]), wanted, atol=1e-4)
    with pytest.raises(DataError, match=r"'temperature' held numbers like 1234,5 in training; row 2 has '14\.6'"):
        predictor.predict(euro[:1].assign(temperature="14.6"))
    with pytest.raises(DataError, match=r"'share' held numbers like 1234,5% in training; row 2 has '80'"):
        predictor.predict(euro[:1].assign(share="80"))
    with pytest.raises(DataError, match=r"'share' held .* and holds bare values such as 80"):
        predictor.predict(euro[:1].assign(share=80))
    with pytest.raises(DataError, match=r"'day' held dates like 31\.05\.2024 in training; row 2 has '2024-05-31'"):
        predictor.predict(euro[:1].assign(day="2024-05-31"))


def test_a_learner_of_an_earlier_version_reads_as_pandas_does(tmp_path):
    """Its file says nothing of readings: 01 was the number 1, NA a gap, and names were numbers without zeros."""
    frame = plain().drop(columns="day")
    frame.assign(shop=frame.shop.str.strip("0") + "0").to_csv(tmp_path / "t.csv", index=False)
    preprocess = dict(opened(tmp_path / "t.csv").preprocess)
    old = {key: value for key, value in preprocess.items() if key != "readings"}
    assert opened(tmp_path / "t.csv", "test", preprocess=old).x.equal(
        opened(tmp_path / "t.csv", "test", preprocess=preprocess).x
    )
    (tmp_path / "gap.csv").write_text("shop,a,b\n01,1,yes\n1,NA,no\n")
    assert frames.read_table(tmp_path / "gap.csv", as_written=False).to_dict("list")["shop"] == [1, 1]
    assert frames.read_table(tmp_path / "gap.csv").to_dict("list") == {
        "shop": ["01", "1"],
        "a": ["1", "NA"],
        "b": ["yes", "no"],
    }


# --- names -----------------------------------------------------------------------------------------------------------


def test_classes_are_named_as_they_are_written(tmp_path):
    names = ["01", "1", "None", "NA"]
    frame = plain().assign(mark=[names[i] for i in np.random.default_rng(1).integers(0, 4, N)])
    frame.loc[::40, "mark"] = ""
    frame.to_csv(tmp_path / "t.csv", index=False)
    tasks = opened(tmp_path / "t.csv", kind="class", shots=1, queries=1)
    assert tasks.classes == ("01", "1", "NA", "None")
    assert "6 rows without target ('mark') left out" in tasks.notes
    assert any("'NA', 'None' is a class of the target, as written" in note for note in tasks.notes)


def test_tasks_are_named_as_they_are_written(tmp_path):
    frame = plain().assign(shop=[["1", "01", "1.0", "None", "NA", "x"][i // 40] for i in range(N)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = [name for split in ("train", "val", "test") for name in opened(tmp_path / "t.csv", split).names]
    assert sorted(found) == ["01", "1", "1.0", "NA", "None", "x"]


def test_labels_of_texts_are_named_as_they_are_written(tmp_path):
    rows = [f"said {i} {j},{label}" for i, label in enumerate(["01", "1", "None", "null", "NA"]) for j in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows, "without label,", ",1"]))
    parts = [qs.tasks.from_text(tmp_path / "t.csv", split, 1, 1, 1) for split in ("train", "val", "test")]
    assert sorted(name for tasks in parts for name in tasks.classes) == ["01", "1", "NA", "None", "null"]
    assert any("2 rows of" in note and "without text or label left out" in note for note in parts[0].notes)
    gaps = pandas.DataFrame(
        {"text": [f"t {i}" for i in range(13)], "label": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] * 2 + [np.nan]}
    )
    parts = [qs.tasks.from_text(gaps, split, 1, 1, 1) for split in ("train", "val", "test")]
    assert sorted(name for tasks in parts for name in tasks.classes) == list("123456")  # not 1.0


def test_labels_of_an_earlier_learner_are_split_as_in_its_training(tmp_path):
    """Otherwise classes of its training could be asked for in its test."""
    rows = [f"said {i} {j},0{i}" for i in range(10) for j in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows, "without label,"]))
    written = qs.tasks.from_text(tmp_path / "t.csv", "test", 1, 1, 1)
    old = {key: value for key, value in written.preprocess.items() if key != "readings"}
    earlier = qs.tasks.from_text(tmp_path / "t.csv", "test", 1, 1, 1, preprocess=old)
    assert all(name.startswith("0") for name in written.classes)
    assert all(name.endswith(".0") for name in earlier.classes) and earlier.preprocess == old
    again = qs.tasks.from_text(tmp_path / "t.csv", "test", 1, 1, 1, preprocess=written.preprocess)
    assert again.classes == written.classes and again.preprocess == written.preprocess


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["a", None], r"y\[1\] is missing \(None\)"),
        (["a", float("nan")], r"y\[1\] is missing \(nan\)"),
        (pandas.Series(["a", pandas.NA], dtype="string"), r"y\[1\] is missing"),
        (["", "b"], r"y\[0\] is missing"),
        ([1, "1"], "y mixes 1 and '1'"),
        ([True, 1], "y mixes True and 1"),
        (np.array([[1.0], [np.nan]]), r"y\[1\] is missing"),
    ],
)
def test_answers_that_are_missing_or_of_two_kinds_are_refused(answers, message):
    learner = qs.ProtoNet(qs.nn.mlp(2, None, hidden=(3,)), ways=2)
    with pytest.raises(DataError, match=message):
        qs.Trained(learner, learner.init()).adapt(np.eye(2), answers)


# --- numbers without names -------------------------------------------------------------------------------------------


def test_numbers_without_names_are_those_of_the_columns_in_order():
    frame = plain().drop(columns="day")
    trained, rows = learner_of(opened(frame)), frame[:20]
    columns = ["temperature", "sales", "share"]
    numbers = rows[columns].to_numpy().copy()
    predictor = trained.adapt(rows, rows.mark)
    for x in (numbers, torch.from_numpy(numbers)):
        assert np.allclose(predictor.predict(x), predictor.predict(rows))
        assert np.allclose(trained.adapt(x, rows.mark).predict(numbers), predictor.predict(rows))
    with pytest.raises(DataError, match="'temperature', 'sales', 'share', not numbers of shape"):
        predictor.predict(numbers[:, :2])


def test_numbers_without_names_are_refused_where_a_column_holds_words_or_dates():
    worded = plain().assign(town=[f"t{i % 3}" for i in range(N)]).drop(columns="day")
    with pytest.raises(DataError, match="of which 'town' hold words"):
        learner_of(opened(worded)).adapt(np.zeros((5, 6)), np.zeros((5, 1)))
    with pytest.raises(DataError, match="'day' held dates"):
        learner_of(opened(plain())).adapt(np.zeros((5, 4)), np.zeros((5, 1)))


# --- what is changed is said -----------------------------------------------------------------------------------------


def test_numbers_far_outside_training_and_unknown_levels_are_said():
    frame = plain().assign(town=[f"t{i % 3}" for i in range(N)]).drop(columns="day")
    trained, rows = learner_of(opened(frame)), frame[:20]
    predictor = trained.adapt(rows, rows.mark)
    with pytest.warns(qs.errors.DataWarning, match=r"'temperature': 2 numbers far outside training, such as 99999,"):
        predictor.predict(rows.assign(temperature=[99999.0] * 2 + [14.0] * 18))
    with pytest.warns(qs.errors.DataWarning, match=r"'town': 100 % of its cells .* \('elsewhere'\)"):
        predictor.predict(rows.assign(town="elsewhere"))


def test_more_levels_than_are_kept_are_said():
    notes = opened(plain().assign(town=[f"t{i % 60}" for i in range(N)])).notes
    assert any("levels without a column" in note and "column 'town'" in note for note in notes)


def test_rows_with_more_cells_than_names_and_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "long.csv").write_text("a,b\n14,0,5\n15,0,6\n")
    with pytest.raises(DataError, match=r"more cells than its header has names.*decimal commas"):
        frames.read_table(tmp_path / "long.csv")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match=r"two columns of .* are named 'a'"):
        frames.read_table(tmp_path / "twice.csv")


def test_the_command_line_says_what_it_did_and_keeps_the_users_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    euro = european(plain())
    euro.to_csv("euro.csv", sep=";", index=False)
    shown = euro[euro.shop == "00"].copy()
    shown.loc[shown.index[0], "mark"] = ""
    shown.to_csv("new.csv", sep=";", index=False)
    asked = euro[euro.shop == "01"].drop(columns="mark").assign(empty="", predicted="mine", temperature="9999,0")
    asked.insert(0, "customer", "007")
    asked.to_csv("asked.csv", sep=";", index=False)
    argv = ["train", "euro.csv", "maml", "--task", "shop", "--target", "mark", "--iterations", "1", "--meta-batch", "1"]
    assert main.run([*argv, "--engine", "loop", "--out", "run"]) == 0
    capsys.readouterr()
    assert main.run(["adapt", "run", "new.csv", "--out", "p.qs"]) == 0
    assert "note: 1 row of new.csv without target ('mark') left out" in capsys.readouterr().err
    assert main.run(["predict", "p.qs", "asked.csv", "--csv", "out.csv"]) == 0
    told = capsys.readouterr().err
    assert told.count("'temperature': 20 numbers far outside training") == 1
    written = pandas.read_csv("out.csv", dtype=str)
    assert list(written.columns) == [*asked.columns, "predicted 2"]
    assert written.customer[0] == "007" and written.sales[0] == asked.sales.iloc[0] and written.predicted[0] == "mine"
    assert main.run(["predict", "p.qs", "asked.csv", "--csv", "out.csv", "--json"]) == 2
    assert "give one of the two" in capsys.readouterr().err
