"""Predicts next week's volatility and return of a ticker that training never saw, a year later: a hard case.

    python examples/prices.py --data FOLDER       about half a minute on one core

FOLDER holds sp500_5yr/sp500_5yr.npz: daily prices of 468 members of the S&P 500, 2013 to 2018. A task is a ticker, and
a row is a week. Training uses 60 % of the tickers in the first three years, validation uses others in the fourth year,
and the test uses others in the fifth. In an episode 20 weeks of a ticker are the support set, and the next 10 weeks are
the queries. Volatility is the logarithm of the mean absolute daily return of five days, in %; a return is that of five
days, in %.

The baselines predict that next week is like the last one or that nothing moves, or use ridge regression on lags of a
day, a week and a month (Corsi 2009, https://doi.org/10.1093/jjfinec/nbp001). Tickers rise and fall together. The
intervals, which are over tickers, therefore say nothing about other years, and are too narrow even for this one.
"""

from __future__ import annotations

from pathlib import Path

import comparison
import numpy as np
import torch
import tyro
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge

import quickstudy as qs
from quickstudy.tasks.splits import by_name
from quickstudy.tasks.tabular.groups import GroupTasks

WEEK, MONTH = 5, 22  # days
YEARS = {"train": (0, 3), "val": (3, 4), "test": (4, 5)}
OTHERS = "pooled ridge and level"


class Last(RegressorMixin, BaseEstimator):
    """Predicts that the next value equals the last one, which is the first column."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Last:
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0]


def volatility(moves: np.ndarray, days: int) -> np.ndarray:
    """The log of the mean absolute move over the last `days` days [tickers, d]; NaN on the first days."""
    sums = np.cumsum(np.pad(np.abs(moves), ((0, 0), (1, 0))), axis=1)
    means = (sums[:, days:] - sums[:, :-days]) / days
    return np.pad(np.log(means + 0.1), ((0, 0), (days - 1, 0)), constant_values=np.nan)  # 0.1 %: a day without a move


def read(data: Path, asked: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Lags [tickers, weeks, 5], the next week's value [tickers, weeks], and the tickers."""
    file = np.load(data / "sp500_5yr" / "sp500_5yr.npz")
    whole = ~np.isnan(file["ohlcv"]).any((1, 2))
    close, volume = np.log(np.moveaxis(file["ohlcv"][whole][:, :, 3:].astype(float) + 1e-9, 2, 0))
    moves = 100 * np.diff(close)
    days = np.arange(3 * MONTH, moves.shape[1] - WEEK, WEEK)
    lags = [volatility(moves, n)[:, days] for n in (WEEK, 1, MONTH)]
    past, future = (100 * (close[:, days + 1 + n] - close[:, days + 1 + n - WEEK]) for n in (0, WEEK))
    busy = volume[:, days + 1] - volume[:, days + 1 - MONTH]
    y = volatility(moves, WEEK)[:, days + WEEK] if asked == "volatility" else future
    return np.stack([*lags, past / WEEK, busy], 2), y, [str(name) for name in file["tickers"][whole]]


def tickers(data: Path, asked: str, split: str) -> GroupTasks:
    """The tickers of a split in its years, standardised by training; lags and answers of volatility share one scale."""
    x, y, names = read(data, asked)
    parts = {part: [names.index(name) for name in of] for part, of in by_name(dict.fromkeys(names)).items()}
    weeks = {part: slice(*(round(year * y.shape[1] / 5) for year in years)) for part, years in YEARS.items()}
    known = y[parts["train"], weeks["train"]]
    mean, std = (known.mean() if asked == "volatility" else 0.0), known.std()
    x[..., :3] = (x[..., :3] - mean) / std if asked == "volatility" else x[..., :3]
    x, y = x[parts[split], weeks[split]], (y[parts[split], weeks[split], None] - mean) / std
    rows = [torch.from_numpy(part.reshape(-1, part.shape[2]).astype(np.float32)) for part in (x, y)]
    starts = torch.arange(len(y) + 1) * y.shape[1]
    declared = {"ordered": True, "name": asked, "split": split, "unit": float(std)}
    return GroupTasks(*rows, starts, [names[i] for i in parts[split]], shots=20, queries=10, **declared)


def main(data: Path, iterations: int = 300, episodes: int = 500, seed: int = 0) -> None:
    """Train on some tickers, and test on others in a later year.

    Args:
        data: folder of the data sets.
        iterations: iterations of meta-training, with four tickers in each.
        episodes: test episodes.
        seed: seed of the training.
    """
    for asked, simple in (("volatility", "as last week"), ("return", "zero")):
        train, val, test = (tickers(data, asked, split) for split in YEARS)
        plain = Last() if asked == "volatility" else DummyRegressor(strategy="constant", constant=0.0)
        ridges = [Ridge(alpha) for alpha in (1.0, 100.0)]
        several = {
            simple: [qs.per_task(plain, train)],
            "ridge per ticker": [qs.per_task(model, train) for model in ridges],
            "pooled ridge": [qs.pooled(model, train) for model in ridges],
            OTHERS: [qs.pooled(model, train, offset=True) for model in ridges],
        } | comparison.meta_trained(train, val, iterations, seed, rates=(0.01, 0.05))
        print(f"\n{asked}: {len(train.names)} tickers to train on, {len(test.names)} others, {episodes} episodes\n")
        print(comparison.table(comparison.measured(several, val, test, episodes), [simple, OTHERS]))


if __name__ == "__main__":
    tyro.cli(main)
