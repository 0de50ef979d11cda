"""The estimators against scikit-learn's own checks, and inside its tools."""

import numpy as np
import pandas
import pytest
import torch
from problems import clusters
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import quickstudy as qs
from quickstudy.errors import DataError

# All checks apply and pass with plain inputs. With a trained learner those that fit on another number of features than
# the network reads cannot: it is fixed by training.
estimators = [qs.FewShotClassifier(), qs.FewShotRegressor()]


@parametrize_with_checks(estimators)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def task(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tasks = clusters(classes=8, seed=3, spread=0.2)
    x = tasks.examples[:n].numpy()
    return x, np.array(["ant", "bee", "cat"])[np.arange(n) // 20]


def trained() -> qs.Trained:
    torch.manual_seed(0)
    learner = qs.ProtoNet(qs.nn.mlp(4, None, hidden=(8,)), ways=3)
    return qs.train(learner, clusters(classes=8), iterations=5, meta_batch=2, progress=False)


def test_without_a_learner_they_are_the_textbooks():
    x, y = task()
    ours, theirs = qs.FewShotClassifier().fit(x, y), NearestCentroid().fit(x, y)
    assert (ours.predict(x) == theirs.predict(x)).all()
    values = x.sum(1) + np.sin(x[:, 0])
    line = LinearRegression().fit(x, values)
    assert np.allclose(qs.FewShotRegressor().fit(x, values).predict(x), line.predict(x), atol=1e-8)


def test_a_trained_learner_answers_as_its_predictor_does():
    x, y = task()
    fitted = qs.FewShotClassifier(trained()).fit(x, y)
    predictor = fitted.trained.adapt(x, y)
    assert fitted.predict(x).tolist() == predictor.predict(x)
    assert np.allclose(fitted.predict_proba(x), predictor.predict_proba(x).numpy(), atol=1e-6)
    assert fitted.score(x, y) > 0.9


def test_transductive_answers_are_those_of_a_transductive_predictor():
    (x, y), batch = task(), slice(0, 7)
    torch.manual_seed(0)
    learner = qs.ProtoNet(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)), ways=3)
    trained = qs.Trained(learner, learner.init())
    answers = []
    for transductive in (False, True):
        fitted = qs.FewShotClassifier(trained, transductive=transductive).fit(x, y)
        answers.append(fitted.predict_proba(x[batch]))
        wanted = trained.adapt(x, y, transductive=transductive).predict_proba(x[batch])
        assert np.allclose(answers[-1], wanted.numpy(), atol=1e-6)
    assert not np.allclose(*answers, atol=1e-2)


def test_they_work_in_pipelines_validation_and_search():
    x, y = task()
    pipeline = make_pipeline(StandardScaler(), qs.FewShotClassifier(trained()))
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.9
    found = GridSearchCV(qs.FewShotClassifier(), {"trained": [None, trained()]}, cv=3).fit(x, y)
    assert len(found.cv_results_["mean_test_score"]) == 2
    again = clone(qs.FewShotClassifier(trained(), transductive=False)).fit(x, y)
    assert again.predict(x).tolist() == qs.FewShotClassifier(trained()).fit(x, y).predict(x).tolist()


def test_values_come_back_as_they_were_given():
    x, _ = task()
    learner = qs.MAML(qs.nn.mlp(4, 2), loss=qs.mse_loss, lr=0.01)
    fitted = qs.FewShotRegressor(qs.Trained(learner, learner.init())).fit(x, x[:, :2])
    assert fitted.predict(x).shape == (60, 2)
    assert qs.FewShotRegressor().fit(x, x[:, 0]).predict(x).shape == (60,)


def test_texts_and_tables_pass_through():
    texts = ["refund please", "open now", "a refund", "opening hours"]
    learner = qs.ProtoNet(qs.nn.text(sketch=64, width=8), ways=2)
    preprocess = {"kind": "text", "buckets": 16384, "words": 24}
    fitted = qs.FewShotClassifier(qs.Trained(learner, learner.init(), preprocess=preprocess))
    assert fitted.fit(texts, [1, 0, 1, 0]).predict(["my refund"]).tolist() == [1]

    rows = pandas.DataFrame({"task": np.repeat(list("abcdefghij"), 12), "size": np.arange(120) * 7 % 31})
    rows["big"] = np.where(rows["size"] + rows.index % 5 > 15, "yes", "no")
    tasks = qs.tasks.from_table(rows, "train", task="task", target="big", shots=2, queries=2)
    for learner in (qs.ProtoNet(torch.nn.Linear(1, 2), ways=2), qs.MAML(torch.nn.Linear(1, 2), lr=0.1)):
        made = qs.train(learner, tasks, iterations=1, meta_batch=2, progress=False)
        fitted = qs.FewShotClassifier(made).fit(rows[:12], rows.big[:12])
        assert fitted.classes_.tolist() == ["no", "yes"]
        assert fitted.predict_proba(rows[:5]).shape == (5, 2)
        assert set(fitted.predict(rows)) <= {"no", "yes"}


def of_a_table() -> tuple[qs.Trained, pandas.DataFrame]:
    """A learner trained on a table of shops, and the rows of one."""
    rng = np.random.default_rng(0)
    rows = pandas.DataFrame({"shop": np.repeat(list("abcdefghij"), 12), "price": rng.normal(50, 9, 120)})
    rows["sold"] = 100 - rows.price + rng.normal(0, 1, 120)
    tasks = qs.tasks.from_table(rows, "train", task="shop", target="sold", shots=4, queries=4)
    learner = qs.R2D2(torch.nn.Identity(), loss=qs.mse_loss, ways=None, lam=0.1, scale=1.0)
    return qs.train(learner, tasks, iterations=1, meta_batch=2, progress=False), rows[:12]


def test_a_table_is_scaled_once():
    """Its learner scales the columns: rows that a step before it has scaled would be scaled twice."""
    trained, rows = of_a_table()
    fitted = qs.FewShotRegressor(trained).fit(rows, rows.sold)
    assert np.allclose(fitted.predict(rows), trained.adapt(rows, rows.sold).predict(rows)[:, 0])
    x = rows[["price"]]
    for scaler in (StandardScaler(), StandardScaler().set_output(transform="pandas")):
        with pytest.raises(DataError, match="scales the columns itself"):
            make_pipeline(scaler, qs.FewShotRegressor(trained)).fit(x, rows.sold)
    with pytest.raises(DataError, match="names of their columns"):
        qs.FewShotRegressor(trained).fit(x.to_numpy(), rows.sold)


def test_a_learner_that_reads_other_inputs_says_so():
    with pytest.raises(DataError, match="cannot read this task"):
        qs.FewShotClassifier(trained()).fit(np.zeros((4, 7)), [0, 0, 1, 1])


def test_probabilities_of_a_tasks_classes_are_right_where_all_of_them_underflow():
    """A learner whose outputs are the classes of training may be sure of one that the task does not have."""

    class Sure(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.level = torch.nn.Parameter(torch.tensor([1000.0, 0.0, 1.0]))

        def forward(self, x):
            return self.level.expand(len(x), 3)

    learner = qs.MAML(Sure(), steps=0)
    size = {"name": "size", "kind": "number", "mean": 0.0, "std": 1.0, "missing": False}
    preprocess = {"kind": "table", "task": "t", "target": "y", "columns": [size], "classes": ["other", "no", "yes"]}
    fitted = qs.FewShotClassifier(qs.Trained(learner, learner.init(), preprocess=preprocess))
    x = pandas.DataFrame({"size": [0.0] * 4})
    found = fitted.fit(x, ["no", "yes", "no", "yes"]).predict_proba(x)
    assert np.allclose(found, [[1 / (1 + np.e), np.e / (1 + np.e)]] * 4)
    assert fitted.predict(x).tolist() == ["yes"] * 4
