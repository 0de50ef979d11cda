"""Tables of people's own: what becomes of columns, who is in which split, and what bad input is told."""

import json

import numpy as np
import pandas
import pytest
import torch
from problems import assert_close

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.tabular import cells, columns, frames

TASKS = [f"school {i}" for i in range(10)]


def table(rows: int = 12, seed: int = 0) -> pandas.DataFrame:
    """Ten schools: a mark that grows with the hours at another rate in each, two words, gaps."""
    rng = np.random.default_rng(seed)
    n = len(TASKS) * rows
    school = np.repeat(TASKS, rows)
    hours = rng.normal(50, 10, n)
    rate = np.repeat(rng.normal(1, 1, len(TASKS)), rows)
    frame = pandas.DataFrame(
        {
            "school": school,
            "hours": hours,
            "subject": rng.choice(["art", "maths", "music"], n),
            "mark": 1000 + 20 * rate * (hours - 50) / 10 + rng.normal(0, 1, n),
        }
    )
    frame.loc[::7, "hours"] = np.nan
    return frame


def opened(frame, split="train", **settings):
    return qs.tasks.from_table(
        frame, split, **{"task": "school", "target": "mark", "shots": 4, "queries": 4} | settings
    )


# --- what becomes of columns -----------------------------------------------------------------------------------------


def test_scales_and_levels_are_those_of_training_tasks():
    frame = table()
    train = opened(frame)
    inside = frame[frame.school.isin(train.names)]
    hours, subject = train.preprocess["columns"]
    assert hours["name"] == "hours" and hours["mean"] == pytest.approx(inside.hours.mean())
    assert hours["std"] == pytest.approx(inside.hours.std(ddof=0)) and hours["missing"]
    assert subject["levels"] == ["art", "maths", "music"] and not subject["missing"]
    assert train.preprocess["mean"] == pytest.approx(inside.mark.mean())
    assert train.unit == pytest.approx(inside.mark.std(ddof=0))
    # Other splits are scaled by the same numbers, and changing them changes nothing of it.
    outside = frame.assign(hours=frame.hours.where(frame.school.isin(train.names), frame.hours * 10))
    assert opened(outside, "test").preprocess == train.preprocess
    # 12 rows, of them gaps; hours, its gap, three subjects.
    assert train.x.shape == (len(inside), 5)


def test_the_numbers_of_a_row_by_hand():
    learned = [
        {"name": "age", "kind": "number", "mean": 40.0, "std": 10.0, "missing": True},
        {"name": "town", "kind": "category", "levels": ["a", "b"], "missing": False},
        {"name": "grade", "kind": "category", "levels": ["1", "2"], "missing": True},
    ]
    frame = pandas.DataFrame(
        {"age": [50, None, 1e9], "town": ["b", "a", "elsewhere"], "grade": [1.0, None, 2.0], "more": 0}
    )
    wanted = [[1, 0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 1], [10, 0, 0, 0, 0, 1, 0]]
    assert columns.encode(learned, frame).tolist() == wanted


def test_dates_switches_and_the_most_frequent_levels():
    n = 60
    frame = pandas.DataFrame(
        {
            "day": pandas.date_range("2024-01-01", periods=n).strftime("%Y-%m-%d"),
            "member": [True, False] * (n // 2),
            "town": [f"town {min(i, 24) % 25}" for i in range(n)],
        }
    )
    readings = cells.find(frame, frame.columns).plain()
    day, member, town = columns.learn_columns(cells.typed(frame, readings), ["day", "member", "town"])
    assert day["kind"] == "number" and day["std"] == pytest.approx(np.arange(n).std())
    assert member["kind"] == "number" and member["mean"] == 0.5
    assert len(town["levels"]) == 20 and "town 24" in town["levels"]
    coded = columns.learn_columns(pandas.DataFrame({"code": [1, 2, 3, 1]}), ["code"], ["code"])
    assert coded[0]["levels"] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("target", "kind", "wanted"),
    [([True, False], None, True), (["a", "b"], None, True), ([0, 1], None, True), ([1, 2, 3], None, False),
     ([1.5, 2.5, 3.5], None, False), ([1, 2, 3], "class", True), ([0, 1], "number", False)],
)  # fmt: skip
def test_what_a_target_is_taken_for(target, kind, wanted):
    frame = table()
    frame["mark"] = [target[i % len(target)] for i in np.random.default_rng(1).integers(0, 99, len(frame))]
    assert (opened(frame, kind=kind).classes is not None) == wanted


def test_rows_come_back_in_time():
    frame = table().assign(day=[f"2024-01-{1 + 11 * i % 28:02}" for i in range(120)])
    tasks = opened(frame, time="day", ignore=["subject"])
    for start, end in zip(tasks.starts, tasks.starts[1:], strict=False):
        days = tasks.x[start:end, -1]
        assert torch.equal(days, days.sort().values)
    assert tasks.ordered


# --- who is in which split -------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_do_not_depend_on_the_order_of_rows():
    frame = table()
    splits = [set(opened(frame, split).names) for split in ("train", "val", "test")]
    assert [len(names) for names in splits] == [6, 2, 2]
    assert set.union(*splits) == set(TASKS)
    shuffled = frame.sample(frac=1.0, random_state=0)
    assert [set(opened(shuffled, split).names) for split in ("train", "val", "test")] == splits


def test_a_folder_of_tables_is_split_as_its_files(tmp_path):
    frame = table()
    for split, part in (("train", TASKS[:6]), ("val", TASKS[6:8]), ("test", TASKS[8:])):
        frame[frame.school.isin(part)].to_csv(tmp_path / f"{split}.csv", index=False)
    assert opened(tmp_path, "val").names == TASKS[6:8]
    frame[frame.school.isin(TASKS[5:8])].to_csv(tmp_path / "val.csv", index=False)
    with pytest.raises(DataError, match="task 'school 5' is in both train and val"):
        opened(tmp_path, "val")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.parquet"])
def test_kinds_of_files_hold_the_same_tasks(tmp_path, name):
    frame = table()
    write = frame.to_parquet if name.endswith("parquet") else frame.to_csv
    write(tmp_path / name, index=False, **({"sep": "\t"} if "tsv" in name else {}))
    from_file, wanted = opened(tmp_path / name), opened(frame)
    assert_close(from_file.x, wanted.x, 1e-6)
    assert from_file.names == wanted.names


def test_semicolons_are_seen(tmp_path):
    table().to_csv(tmp_path / "t.csv", index=False, sep=";")
    assert len(opened(tmp_path / "t.csv").names) == 6


# --- bad input -------------------------------------------------------------------------------------------------------


def broken(change) -> pandas.DataFrame:
    frame = table()
    change(frame)
    return frame


def put(frame, column, row, value):
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value


BAD = {
    "a wrong name": (table, {"target": "marks"}, r"no column 'marks' \(target\).* Did you mean 'mark'\?"),
    "a wrong name to ignore": (table, {"ignore": ["hour"]}, r"no column 'hour' \(ignore\).* 'hours'"),
    "target and task": (table, {"target": "school"}, "both 'school'"),
    "numbers and words": (
        lambda: broken(lambda f: put(f, "hours", 17, "many")),
        {},
        r"column 'hours' holds numbers, and 'many' in row 19",
    ),
    "absurd": (lambda: broken(lambda f: put(f, "hours", 17, 1e30)), {}, r"column 'hours' holds 1e\+30"),
    "infinite": (lambda: table().assign(hours=np.inf), {}, "'hours' holds infinity in row"),
    "a constant target": (lambda: table().assign(mark=3.5), {}, r"'mark' is 3\.5 in every training row"),
    "one class": (lambda: table().assign(mark="yes"), {}, "'mark' is 'yes' in every row"),
    "a leak": (lambda: broken(lambda f: f.insert(0, "grade", f.mark * 2 + 1)), {}, r"column 'grade' gives .* away"),
    "a leaking class": (
        lambda: table().assign(mark=lambda f: np.where(f.subject == "art", "yes", "no")),
        {},
        "column 'subject' gives the target 'mark' away",
    ),
    "words as numbers": (lambda: table().assign(mark=["low", "mid", "high"] * 40), {"kind": "number"}, "holds words"),
    "no rows": (lambda: table().iloc[:0], {}, "holds no rows"),
    "no features": (table, {"ignore": ["hours", "subject"]}, "has no feature"),
    "no target anywhere": (lambda: table().assign(mark=np.nan), {}, "no row of the table has both"),
    "two tasks": (lambda: table()[lambda f: f.school.isin(TASKS[:2])], {"split": "val"}, "no 'val' tasks"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_tables_are_told(case):
    make, settings, message = BAD[case]
    with pytest.raises((DataError, ConfigError), match=message):
        opened(make(), **settings)


def test_what_was_left_out_is_told():
    frame = table()
    frame.loc[frame.index[:3], "mark"] = np.nan
    frame = pandas.concat([frame, frame.iloc[[50, 51]]], ignore_index=True)
    frame = pandas.concat([frame, pandas.DataFrame({"school": ["alone"], "hours": [1.0], "mark": [2.0]})])
    frame["id"] = range(len(frame))
    frame.loc[frame.index[-3:-1], "id"] = [50, 51]
    notes = [note for split in ("train", "val", "test") for note in opened(frame, split).notes]
    assert "3 rows without target ('mark') left out" in notes
    assert any(note.startswith("2 rows that copy another one left out") for note in notes)
    assert any("left out, with a single row: 'alone'" in note for note in notes)


def test_a_copied_row_is_no_second_example():
    """Otherwise one of the pair is asked for while the other, with its answer, is shown."""
    frame = table()
    twice = pandas.concat([frame, frame.iloc[::3]], ignore_index=True)
    for split in ("train", "val", "test"):
        once, again = opened(frame, split), opened(twice, split)
        assert once.names == again.names
        assert torch.equal(once.starts, again.starts) and sorted(once.y.tolist()) == sorted(again.y.tolist())


def test_a_column_that_numbers_the_rows_is_left_out():
    tasks = opened(table().assign(id=lambda f: range(len(f)), name=lambda f: [f"pupil {i}" for i in range(len(f))]))
    assert [c["name"] for c in tasks.preprocess["columns"]] == ["hours", "subject"]
    assert tasks.notes == ("columns 'id', 'name' left out: a number or name for each row",)


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "latin.csv").write_bytes("school,mark\nM\xfcnchen,3\n".encode("latin-1"))
    with pytest.raises(DataError, match="not text in UTF-8"):
        frames.read_table(tmp_path / "latin.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as a table"):
        frames.read_table(tmp_path / "empty.csv")
    (tmp_path / "odd.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as a table"):
        frames.read_table(tmp_path / "odd.parquet")
    with pytest.raises(DataError, match="there is no file"):
        frames.read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="holds no tables train, val, test"):
        opened(tmp_path)


def test_a_table_larger_than_memory_says_how_much_it_needs(tmp_path, monkeypatch):
    table().to_csv(tmp_path / "t.csv", index=False)
    size = (tmp_path / "t.csv").stat().st_size
    monkeypatch.setattr(frames.memory, "free", lambda device: frames.BYTES * size - 1)
    with pytest.raises(DataError, match=r"needs about .* GB of memory, of which .* GB are free"):
        opened(tmp_path / "t.csv")
    monkeypatch.setattr(frames.memory, "free", lambda device: frames.BYTES * size)
    assert len(opened(tmp_path / "t.csv").names) == 6


# --- from training to answers ----------------------------------------------------------------------------------------


def ridge(width: int) -> qs.R2D2:
    return qs.R2D2(qs.nn.mlp(width, None, hidden=(4,)), loss=qs.mse_loss, ways=None, lam=0.1, scale=1.0)


def ready(frame, make=None, **settings):
    tasks = opened(frame, **settings)
    learner = make(tasks) if make else ridge(tasks.x.shape[1])
    return qs.train(learner, tasks, iterations=2, meta_batch=2, progress=False), tasks


def test_a_predictor_answers_in_the_targets_unit(tmp_path):
    frame = table()
    trained, _ = ready(frame)
    rows = frame[frame.school == TASKS[0]]
    predictor = trained.adapt(rows, rows.mark)
    answers = predictor.predict(rows)
    assert answers.shape == (12, 1)
    learned = trained.preprocess
    x = torch.from_numpy(columns.encode(learned["columns"], rows))
    y = torch.tensor((rows.mark.to_numpy() - learned["mean"]) / learned["std"])[:, None]
    phi = trained.learner.adapt(trained.theta, qs.Batch(x, y.float()))
    wanted = trained.learner.predict(trained.theta, phi, x) * learned["std"] + learned["mean"]
    assert_close(answers, wanted, 1e-6)
    predictor.save(tmp_path / "p.qs")
    again = qs.load(tmp_path / "p.qs")
    assert torch.equal(again.predict(rows.to_dict("records")), answers)  # rows as a list of dicts


def test_rows_that_lack_a_column_or_are_no_rows_are_refused():
    frame = table()
    trained, _ = ready(frame)
    with pytest.raises(DataError, match=r"lack the column 'hours'.* Did you mean 'hour'\?"):
        trained.adapt(frame.rename(columns={"hours": "hour"}), frame.mark)
    with pytest.raises(DataError, match="reads rows of a table"):
        trained.adapt(["a", "b"], [1.0, 2.0])


@pytest.mark.parametrize("compares", [True, False], ids=["protonet", "maml"])
def test_classes_are_the_same_in_every_task_where_the_learner_has_outputs_for_them(compares):
    frame = table().assign(
        mark=lambda f: np.array(["low", "mid", "top"])[np.argsort(np.argsort(f.mark.to_numpy())) // 40]
    )

    def make(tasks):
        width = tasks.x.shape[1]
        if compares:
            return qs.ProtoNet(torch.nn.Linear(width, 4), ways=tasks.ways)
        return qs.MAML(torch.nn.Linear(width, 3), lr=0.1)

    trained, _ = ready(frame, make, shots=2, queries=2)
    rows = frame[frame.mark != "mid"].iloc[:40]
    predictor = trained.adapt(rows, rows.mark)
    assert predictor.classes == (("low", "top") if compares else ("low", "mid", "top"))
    assert set(predictor.predict(frame)) <= set(predictor.classes)
    if not compares:
        with pytest.raises(DataError, match=r"has the class 'lo'; training knew low, mid, top.* Did you mean 'low'\?"):
            trained.adapt(rows, rows.mark.replace("low", "lo"))


def test_the_command_line_from_table_to_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = table()
    frame.to_csv("schools.csv", index=False)
    frame[frame.school == TASKS[0]].to_csv("new.csv", index=False)
    frame[frame.school == TASKS[0]].drop(columns=["school", "mark"]).to_csv("asked.csv", index=False)
    train = [
        "train",
        "schools.csv",
        "maml",
        "--task",
        "school",
        "--target",
        "mark",
        "--iterations",
        "3",
        "--meta-batch",
        "2",
    ]
    assert main.run([*train, "--shots", "4", "--queries", "4", "--engine", "loop"]) == 0
    assert main.run(["evaluate", "runs/schools-maml", "--episodes", "6", "--engine", "loop"]) == 0
    assert "over 2 tasks, 6 episodes" in capsys.readouterr().out
    assert main.run(["adapt", "runs/schools-maml", "new.csv", "--out", "p.qs"]) == 0
    capsys.readouterr()
    assert main.run(["predict", "p.qs", "asked.csv", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [a["input"] for a in answers[:2]] == ["asked.csv:2", "asked.csv:3"] and len(answers) == 12
    assert all(800 < answer["label"] < 1200 for answer in answers)
    assert main.run(["predict", "p.qs", "asked.csv", "asked.csv", "--csv", "answers.csv"]) == 0
    written, asked = pandas.read_csv("answers.csv"), pandas.read_csv("asked.csv")
    assert list(written.columns) == [*asked.columns, "predicted"] and len(written) == 24
    assert written.predicted[:12].tolist() == pytest.approx([answer["label"] for answer in answers])
    assert main.run(["predict", "p.qs"]) == 2
    assert "something to answer for" in capsys.readouterr().err


def test_rows_are_told_in_words_as_they_were():
    frame = pandas.DataFrame({"age": [60.0, 40.0, None], "sex": ["f", "m", "f"], "kind": ["a|b", "b", None]})
    learned = columns.learn_columns(frame, ["age", "sex", "kind"], lists=["kind"])
    encoded = columns.encode(learned, frame)
    told = ["age 60, sex f, kind a|b", "age 40, sex m, kind b", "sex f"]
    assert columns.described(learned, encoded) == told
    assert columns.described(learned, np.concatenate([np.ones((3, 2)), encoded], axis=1)) == told
    assert columns.described(learned, encoded, most=1) == ["age 60", "age 40", "sex f"]


def test_numbers_that_are_named_like_identifiers_are_told():
    frame = table()
    notes = opened(frame.assign(pupil_id=range(100, 100 + len(frame)), paid=1), "train").notes
    assert not any("identifier" in note for note in notes)  # the first numbers the rows, the second is one number
    shuffled = frame.assign(pupil_id=np.random.default_rng(0).permutation(len(frame)) // 2)
    assert any(
        "'pupil_id' used as a number, but named like an identifier" in n for n in opened(shuffled, "train").notes
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "schools.csv", "maml", "--target", "mark"], "--task is missing"),
        (["train", "schools.csv", "maml", "--task", "scool", "--target", "mark"], "Did you mean 'school'?"),
        (["train", "schols.csv", "maml", "--task", "school"], "there is no file or folder 'schols.csv'"),
    ],
)
def test_the_command_line_tells_what_is_wrong(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    table().to_csv("schools.csv", index=False)
    assert main.run(argv) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="mark"), "lacks the target 'mark'"),
        (lambda f: f.assign(school=["a", "b"] * 6), "holds rows of 2 tasks"),
        (lambda f: f.assign(mark=None), "no row of .* has a target"),
    ],
)
def test_support_tables_that_cannot_be_learned_from(tmp_path, change, message):
    frame = table()
    trained, _ = ready(frame)
    change(frame[frame.school == TASKS[0]]).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(DataError, match=message):
        trained.basis.reader.support(trained.preprocess, tmp_path / "new.csv", False)
