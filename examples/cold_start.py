"""Predicts film ratings of users with 5 or 20 known ratings: does meta-learning beat the simple baselines?

    python examples/cold_start.py --data FOLDER       about a quarter of an hour on one busy core

FOLDER holds movietweetings_100k/ratings.csv.gz and movies.csv.gz (Dooms 2013: ratings from 0 to 10). A user is a task;
users are split 60/20/20. Every method knows the ratings of all training users. Its open settings are chosen on
validation users, and all methods predict the same ratings of the same test users.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import torch
import tyro
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.metric import ERROR, Format
from quickstudy.evaluation.score import by_task, half_width
from quickstudy.evaluation.scoring import tasks_of
from quickstudy.tasks.tabular.groups import GroupTasks

QUERIES = 10
FACTORS = 4
DIGITS = Format(spec=".3f", spread=".3f")
STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # strengths of the regularisation on a user's own ratings
MEAN, OFFSET, VECTOR, TREES = 0, 2, slice(3, 3 + FACTORS), -1  # columns of x; this script adds the last one

Method = Callable[..., np.ndarray]  # (x, y) of the known ratings, x of the unknown ones, strength, lam -> predictions


def with_user_offset(column: int) -> Method:
    """A column's prediction plus the user's offset: the mean of ratings minus column, shrunk towards 0."""
    return lambda x, y, asked, strength, _: asked[:, column] + (y - x[:, column]).sum() / (len(y) + strength)


def folded_in(x: np.ndarray, y: np.ndarray, asked: np.ndarray, strength: float, lam: float) -> np.ndarray:
    """Fit the user's offset and factors by ridge regression, given those of the items."""
    z, new = (np.concatenate([np.ones((len(of), 1)), of[:, VECTOR]], axis=1) for of in (x, asked))
    penalty = np.diag([strength] + [lam] * FACTORS)
    return asked[:, OFFSET] + new @ np.linalg.solve(z.T @ z + penalty, z.T @ (y - x[:, OFFSET]))


METHODS: dict[str, Method] = {
    "item mean": lambda x, y, asked, *_: asked[:, MEAN],
    "item mean + user offset": with_user_offset(MEAN),
    "ridge regression per user": lambda x, y, asked, k, _: Ridge(k).fit(x[:, :TREES], y).predict(asked[:, :TREES]),
    "matrix factorisation, user folded in": folded_in,
    "boosted trees of training users + user offset": with_user_offset(TREES),
}


def errors(method: Method, tasks: GroupTasks, episodes: int, strength: float, lam: float) -> torch.Tensor:
    """The mean squared error on each episode, in squared units of the rating."""
    found = []
    for i in range(episodes):
        one = tasks.sample(1, seeds.generator(1, "test", i))
        (x, y), (asked, truth) = ([part[0].double().numpy() for part in batch] for batch in one)
        away = method(x, y[:, 0], asked, strength, lam / tasks.unit**2) - truth[:, 0]
        found.append((away**2).mean() * tasks.unit**2)
    return torch.tensor(found)


def best(method: Method, val: GroupTasks, episodes: int, lam: float) -> tuple[float, float]:
    """The smallest error on validation users, and the strength that reaches it."""
    users = tasks_of(val, episodes, 1)
    return min((float(by_task(errors(method, val, episodes, k, lam), users).mean()), k) for k in STRENGTHS)


def opened(folder: Path, shots: int, lam: float) -> dict[str, GroupTasks]:
    """The tasks of each split. Users need one rating more than the shots in training, and QUERIES more elsewhere."""
    films = pandas.read_csv(folder / "movies.csv.gz")
    films["year"] = films.title.str.extract(r"\((\d{4})\)$")[0].astype(float)
    named = {"user": "user_id", "item": "movie_id", "items": films.drop(columns="title")}
    given = named | {"shots": shots, "queries": QUERIES, "factors": FACTORS, "lam": lam}
    train = qs.tasks.from_ratings(folder / "ratings.csv.gz", "train", **given, least=shots + 1)
    given |= {"least": shots + QUERIES, "preprocess": train.preprocess}
    return {"train": train} | {s: qs.tasks.from_ratings(folder / "ratings.csv.gz", s, **given) for s in ("val", "test")}


def main(
    data: Path, iterations: int = 900, episodes: int = 1000, seed: int = 0, lams: tuple[float, ...] = (10.0, 20.0, 40.0)
) -> None:
    """Compare methods on new users; `lams` are the weights of the factors' squared length to try."""
    print("| ratings known | method | mean squared error | MAML minus it, paired |\n|---|---|---|---|")
    for shots in (5, 20):
        tried = [(lam, opened(data / "movietweetings_100k", shots, lam)) for lam in lams]
        lam, parts = min(tried, key=lambda one: best(folded_in, one[1]["val"], episodes, one[0])[0])
        train, val, test = parts.values()
        torch.manual_seed(seeds.derive(seed, "weights"))
        maml = qs.MAML(qs.nn.mlp(train.x.shape[1], 1), loss=qs.mse_loss, lr=0.05)
        cnp = qs.CNP(qs.nn.mlp(train.x.shape[1]), width=40)
        values, users = {}, tasks_of(test, episodes, 1)
        for learner, lr in ((maml, 3e-3), (cnp, 1e-3)):  # outer rates that did best on validation users
            outer = {"optimizer": lambda theta, lr=lr: torch.optim.Adam(theta, lr=lr), "meta_batch": 16}
            trained = qs.train(learner, train, iterations=iterations, seed=seed, val=val, engine="vmap", **outer)
            values[type(learner).__name__] = qs.evaluate(trained, test, episodes=episodes, engine="vmap").values
        trees = HistGradientBoostingRegressor(learning_rate=0.05, max_iter=150, max_depth=4, random_state=seed)
        trees.fit(train.x.numpy(), train.y[:, 0].numpy())
        predicted = (torch.from_numpy(trees.predict(one.x.numpy())).float() for one in (val, test))
        val, test = (
            one.replace(x=torch.cat([one.x, t[:, None]], 1)) for one, t in zip((val, test), predicted, strict=True)
        )
        for name, method in METHODS.items():
            values[name] = errors(method, test, episodes, best(method, val, episodes, lam)[1], lam)
        for name, error in values.items():
            mean, away = by_task(error, users), by_task(values["MAML"] - error, users)
            decided = "" if abs(away.mean()) > half_width(away) else " (not decided)"
            difference = "" if name == "MAML" else f"{away.mean():+.3f} ± {half_width(away):.3f}{decided}"
            print(f"| {shots} | {name} | {Amount.of(mean, ERROR).in_words(DIGITS)} | {difference} |")
        print(f"{shots} known: {len(set(users))} test users; lam {lam:g}", file=sys.stderr)


if __name__ == "__main__":
    tyro.cli(main)
