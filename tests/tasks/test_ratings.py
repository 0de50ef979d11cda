"""Ratings: what is known of an item, and that no rating sees itself; new users, cold items, bad input."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
from problems import assert_close
from sklearn.linear_model import Ridge

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.tabular.columns import as_words, encode, learn_columns
from quickstudy.tasks.tabular.factors import Ratings, factorise
from quickstudy.tasks.tabular.ratings import encode as encode_rows
from quickstudy.trained.readers.rows import RATINGS

PRIOR = 3.0
USERS, ITEMS = 30, 12


def ratings(seed: int = 0) -> pandas.DataFrame:
    """30 users rate 5 to 10 of 12 films from 0 to 10 on days of their own; rows in no order."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 1.5, ITEMS)
    rows = [
        {"user": u, "item": 1000 + i, "rating": round(float(np.clip(6 + quality[i] + rng.normal(), 0, 10)))}
        for u in range(USERS)
        for i in rng.choice(ITEMS, rng.integers(5, 11), replace=False)
    ]
    frame = pandas.DataFrame(rows).assign(day=lambda f: rng.permutation(len(f)))
    return frame.sample(frac=1.0, random_state=seed).reset_index(drop=True)


def films() -> pandas.DataFrame:
    genres = ["Drama", "Action|Drama", None, "Comedy|Action"]
    rows = [{"item": 1000 + i, "genres": genres[i % 4], "year": 1990 + 3 * i % 7} for i in range(ITEMS)]
    return pandas.DataFrame([*rows, {"item": 5000, "genres": "Comedy", "year": 2001}])


def opened(frame, split="train", **settings):
    return qs.tasks.from_ratings(frame, split, **{"shots": 3, "queries": 3, "prior": PRIOR} | settings)


def of_split(frame, tasks) -> pandas.DataFrame:
    """The ratings of the tasks' users, in the tasks' order."""
    return pandas.concat([frame[frame.user == int(name)] for name in tasks.names])


# --- what is known of an item ----------------------------------------------------------------------------------------


def test_statistics_of_items_are_those_of_training_users_by_hand():
    frame = ratings()
    train, test = opened(frame), opened(frame, "test", time="day")
    known = of_split(frame, train)
    mean, std = known.rating.mean(), known.rating.std(ddof=0)
    asked = of_split(frame, test).sort_values("day", kind="stable")
    asked = pandas.concat([asked[asked.user == int(name)] for name in test.names])
    for row, x, y in zip(asked.itertuples(), test.x, test.y, strict=True):
        seen = known.rating[known.item == row.item]
        wanted = [(seen - mean).sum() / (len(seen) + PRIOR) / std, math.log10(1 + len(seen))]
        assert_close(x.double(), torch.tensor(wanted).double(), 1e-4)
        assert float(y) == pytest.approx((row.rating - mean) / std, abs=1e-5)
    assert test.unit == pytest.approx(std) and test.ordered


def test_a_training_rating_does_not_see_itself():
    frame = ratings()
    tasks = opened(frame)
    known = of_split(frame, tasks)
    mean, std = known.rating.mean(), known.rating.std(ddof=0)
    for place, (row, x) in enumerate(zip(known.itertuples(), tasks.x, strict=True)):
        others = known.drop(known.index[place])
        seen = others.rating[others.item == row.item]
        wanted = [(seen - mean).sum() / (len(seen) + PRIOR) / std, math.log10(1 + len(seen))]
        assert_close(x.double(), torch.tensor(wanted).double(), 1e-5)


def test_the_vector_of_an_item_without_a_rating_is_the_ridge_regression_without_it():
    frame = ratings()
    _, user = np.unique(frame.user, return_inverse=True)
    _, item = np.unique(frame.item, return_inverse=True)
    given = Ratings(user, item, (frame.rating - frame.rating.mean()).to_numpy())
    of_items, without, of_users = factorise(given, factors=2, prior=PRIOR, lam=5.0)
    penalty = np.sqrt([PRIOR, 5.0, 5.0])

    def regressed(rows):
        """(c, v) of one item: Ridge has one weight for all, so that columns are scaled by the roots of theirs."""
        z = np.concatenate([np.ones((len(rows), 1)), of_users[user[rows], 1:]], axis=1)
        target = given.rating[rows] - of_users[user[rows], 0]
        return Ridge(alpha=1.0, fit_intercept=False).fit(z / penalty, target).coef_ / penalty

    for row in range(0, len(frame), 7):
        rows = np.flatnonzero(item == item[row])
        np.testing.assert_allclose(of_items[item[row]], regressed(rows), atol=1e-9)
        np.testing.assert_allclose(without[row], regressed(rows[rows != row]), atol=1e-9)


def test_factorisation_finds_what_ratings_were_made_of():
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(60, 3)), rng.normal(size=(40, 3))
    user, item = (grid.ravel() for grid in np.meshgrid(range(60), range(40), indexing="ij"))
    kept = rng.random(len(user)) < 0.7
    rating = (users[user, 0] + items[item, 0] + (users[user, 1:] * items[item, 1:]).sum(1))[kept]
    given = Ratings(user[kept], item[kept], rating)
    of_items, _, of_users = factorise(given, factors=2, prior=1e-3, lam=1e-3)
    told = of_users[user, 0] + of_items[item, 0] + (of_users[user, 1:] * of_items[item, 1:]).sum(1)
    hidden = (users[user, 0] + items[item, 0] + (users[user, 1:] * items[item, 1:]).sum(1) - told)[~kept]
    assert np.sqrt((hidden**2).mean()) < 0.05 * rating.std()


def test_factors_stand_beside_the_statistics_and_are_kept():
    frame = ratings()
    plain, more = opened(frame, "test"), opened(frame, "test", factors=2)
    assert more.x.shape[1] == plain.x.shape[1] + 3
    assert torch.equal(more.x[:, :2], plain.x)
    again = opened(frame, "test", preprocess=json.loads(json.dumps(more.preprocess)))
    assert torch.equal(again.x, more.x)
    cold = encode_rows(more.preprocess, pandas.DataFrame({"item": [77]}))
    assert cold.tolist() == [[0.0] * 5]
    alone = pandas.concat([frame, pandas.DataFrame({"user": [int(opened(frame).names[0])], "item": 9, "rating": 1})])
    train = opened(alone, factors=2)
    single = of_split(alone, train).item.to_numpy() == 9
    assert_close(train.x[torch.from_numpy(single)], torch.zeros(1, 5), 1e-9)  # without its only rating it is cold


# --- features of items -----------------------------------------------------------------------------------------------


def test_lists_numbers_and_unknown_items():
    tasks = opened(ratings(), items=films(), categories=["year"])
    genres, year = tasks.preprocess["columns"]
    assert genres == {"name": "genres", "kind": "list", "levels": ["Action", "Comedy", "Drama"], "missing": True}
    assert year["kind"] == "category"
    tasks = opened(ratings(), items=films().rename(columns={"item": "film"}), item_id="film", ignore=["year"])
    rows = pandas.DataFrame({"item": [1001, 1002, 5000, 77, 78], "genres": [None, None, "Drama", "Comedy|Odd", None]})
    found = encode_rows(tasks.preprocess, rows)[:, 2:]
    # Known items are described by the table of items, whatever the rows say; others by the rows, if they do.
    assert found.tolist() == [[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert encode_rows(tasks.preprocess, rows[["item"]])[3, 2:].tolist() == [0, 0, 0, 1]
    assert encode_rows(tasks.preprocess, rows[["item"]])[2, :2].tolist() == [0, 0]  # in the table, and rated by nobody


def test_a_list_with_one_level_is_one_column():
    values = pandas.DataFrame({"genres": ["a|b", "b", "c|a"]})
    learned = learn_columns(values, ["genres"], lists=["genres"])
    assert encode(learned, values).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_ids_with_gaps_are_not_rounded():
    assert as_words(pandas.Series([1074638.0, np.nan, 1074639.0, 3.0, 0.25])).dropna().tolist() == [
        "1074638", "1074639", "3", "0.25"
    ]  # fmt: skip


# --- users -----------------------------------------------------------------------------------------------------------


def test_users_are_split_and_their_ratings_come_in_time():
    frame = ratings()
    parts = [set(opened(frame, split).names) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [18, 6, 6] and len(set.union(*parts)) == USERS
    tasks = opened(frame, time="day")
    rated = frame[frame.user == int(tasks.names[0])].sort_values("day").rating.to_numpy()
    assert_close(tasks.y[: len(rated), 0] * tasks.unit + tasks.preprocess["mean"], torch.tensor(rated).float(), 1e-4)


def test_splits_of_ones_own(tmp_path):
    frame = ratings()
    for split, part in (("train", range(20)), ("val", range(20, 25)), ("test", range(25, 30))):
        frame[frame.user.isin(part)].to_csv(tmp_path / f"{split}.csv", index=False)
    assert opened(tmp_path, "val").names == [str(u) for u in range(20, 25)]
    assert len(opened({"train": frame[frame.user < 20], "val": frame[frame.user >= 20]}).names) == 20
    with pytest.raises(DataError, match="task '19' is in both train and val"):
        opened({"train": frame[frame.user < 20], "val": frame[frame.user >= 19]})


def test_what_was_left_out_is_told():
    frame = ratings()
    again = frame.iloc[[0]].assign(rating=lambda f: (f.rating + 1) % 11, day=1000)
    gaps = pandas.DataFrame({"user": [0, 1], "item": [1000, None], "rating": [None, 5], "day": [1, 2]})
    alone = pandas.DataFrame({"user": range(100, 120), "item": 1000, "rating": 4, "day": 3})
    frame = pandas.concat([frame, again, gaps, alone, frame.iloc[[5]]], ignore_index=True)
    tasks = [opened(frame, split, time="day") for split in ("train", "val", "test")]
    notes = [note for one in tasks for note in one.notes]
    assert "1 row without item ('item') left out" in notes and "1 row without rating ('rating') left out" in notes
    assert "1 rating left out: the user rated the item again, and the last counts" in notes
    assert any(note.startswith("1 row that copy") for note in notes)
    alone = [note for note in notes if "with fewer than 2 ratings left out" in note]
    assert sum(int(note.split()[0]) for note in alone) == 20
    assert ["counts for the items" in note for note in alone] == ["train user" in note for note in alone]
    kept = next(one for one in tasks if str(again.user.iloc[0]) in one.names)
    place = kept.names.index(str(again.user.iloc[0]))
    last = kept.y[kept.starts[place + 1] - 1]
    assert float(last * kept.unit + kept.preprocess["mean"]) == pytest.approx(again.rating.iloc[0], abs=1e-4)


def test_users_with_too_few_ratings_are_no_tasks_but_count_for_the_items():
    frame = ratings()
    sizes = frame.groupby("user").size()
    few, all_of = opened(frame, least=8), opened(frame)
    assert few.names == [name for name in all_of.names if sizes[int(name)] >= 8]
    assert few.preprocess == all_of.preprocess


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "a wrong name": ({"item": "itm"}, r"no column 'itm' \(item\).* Did you mean 'item'\?"),
    "a name twice": ({"time": "rating"}, "are different columns"),
    "a wrong feature": ({"items": films(), "ignore": ["genre"]}, r"no column 'genre' .* 'genres'"),
    "a wrong name of items": ({"items": films(), "item_id": "itme"}, r"no column 'itme' .* 'item'"),
    "an item twice": ({"items": pandas.concat([films(), films().assign(year=3)])}, "item '1000' is twice"),
    "other items": ({"items": films().assign(item=lambda f: f.item + 9000)}, "none of those rated, such as '1000'"),
    "a wrong number": ({"prior": 0}, "prior and lam above 0; got .*prior=0"),
    "one rating": ({"least": 1}, "least must be at least 2"),
    "many ratings": ({"least": 13}, "no train user has 13 ratings"),
    "a wrong split": ({"split": "trian"}, "Did you mean 'train'"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_settings_are_told(case):
    settings, message = BAD[case]
    with pytest.raises((DataError, ConfigError), match=message):
        opened(ratings(), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f.assign(rating=["good", *f.rating.astype(str).tolist()[1:]]),
            "'rating' holds numbers, and 'good' in row 2",
        ),
        (lambda f: f.assign(rating=4), "'rating' is 4 in every training row"),
        (lambda f: f.assign(rating=np.inf), "'rating' holds infinity"),
        (lambda f: f.assign(item=np.nan), "no row of the table has both 'user' and 'item'"),
    ],
)
def test_bad_ratings_are_told(change, message):
    with pytest.raises(DataError, match=message):
        opened(change(ratings()))


def test_statistics_of_other_ratings_are_refused():
    frame = ratings()
    learned = opened(frame, factors=1).preprocess
    assert_close(opened(frame, preprocess=learned).x, opened(frame, factors=1).x, 1e-9)
    with pytest.raises(DataError, match="other training ratings"):
        opened(ratings(1), preprocess=learned)


# --- from training to answers ----------------------------------------------------------------------------------------


def test_a_predictor_answers_in_the_ratings_unit(tmp_path):
    frame = ratings()
    tasks = opened(frame, items=films(), factors=1)
    learner = qs.R2D2(qs.nn.mlp(tasks.x.shape[1], hidden=(4,)), loss=qs.mse_loss, ways=None, lam=0.1, scale=1.0)
    trained = qs.train(learner, tasks, iterations=2, meta_batch=2, engine="loop", progress=False)
    rows = frame[frame.user == 3]
    predictor = trained.adapt(rows, rows.rating)
    answers = predictor.predict(rows)
    x = torch.from_numpy(encode_rows(trained.preprocess, rows))
    y = torch.tensor((rows.rating.to_numpy() - tasks.preprocess["mean"]) / tasks.unit)[:, None].float()
    phi = learner.adapt(trained.theta, qs.Batch(x, y))
    wanted = learner.predict(trained.theta, phi, x) * tasks.unit + tasks.preprocess["mean"]
    assert_close(answers, wanted, 1e-5)
    predictor.save(tmp_path / "p.qs")
    again = qs.load(tmp_path / "p.qs")
    assert torch.equal(again.predict([{"item": int(i)} for i in rows.item]), answers)
    with pytest.raises(DataError, match="row 3 names no item"):
        again.predict([{"item": 1000}, {"item": None}])
    with pytest.raises(DataError, match=r"no column 'item'.* Did you mean 'items'"):
        again.predict([{"items": 1000}])


def test_the_command_line_from_ratings_to_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"user": "who", "item": "film", "rating": "stars"}
    frame = ratings().rename(columns=names)
    frame.to_csv("ratings.csv", index=False)
    films().rename(columns={"item": "id"}).to_csv("films.csv", index=False)
    columns = [word for role, name in names.items() for word in (f"--{role}", name)]
    more = ["--items", "films.csv", "--item-id", "id", "--time", "day", "--factors", "1", "--shots", "3"]
    few = ["--iterations", "2", "--meta-batch", "2", "--queries", "3", "--engine", "loop", "--out", "run"]
    assert main.run(["train", "ratings.csv", "r2d2", *columns, *more, *few]) == 0
    assert main.run(["evaluate", "run", "--episodes", "6", "--engine", "loop", "--controls"]) == 0
    assert "mean squared error (95 % CI over" in capsys.readouterr().out
    frame[frame.who == 2][["film", "stars"]].to_csv("mine.csv", index=False)
    assert main.run(["adapt", "run", "mine.csv", "--out", "p.qs"]) == 0
    pandas.DataFrame({"film": [1003, 77], "genres": [None, "Drama"]}).to_csv("asked.csv", index=False)
    capsys.readouterr()
    assert main.run(["predict", "p.qs", "asked.csv", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [a["input"] for a in answers] == ["asked.csv:2", "asked.csv:3"]
    assert all(-20 < a["label"] < 30 for a in answers)
    assert main.run(["train", "ratings.csv", "maml", "--user", "who", "--task", "who"]) == 2
    assert "--task has no effect" in capsys.readouterr().err
    assert main.run(["train", "ratings.csv", "maml", "--user", "who"]) == 2
    assert "no column 'item' (item)" in capsys.readouterr().err


def test_a_support_file_of_items_that_nobody_knows_is_refused(tmp_path):
    learned, described = opened(ratings()).preprocess, opened(ratings(), items=films()).preprocess
    pandas.DataFrame({"item": ["tt1"], "rating": [3], "year": [1990]}).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(DataError, match="knew none of these items, such as 'tt1', but others, such as '1000'"):
        RATINGS.support(learned, tmp_path / "mine.csv", False)
    assert len(RATINGS.support(described, tmp_path / "mine.csv", False)[1]) == 1
