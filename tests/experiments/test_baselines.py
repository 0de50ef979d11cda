"""Models of scikit-learn on the same tasks, against themselves by hand and against what they are estimators of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.episodes import unstack
from quickstudy.experiments.baselines import variance_ratio
from quickstudy.tasks.tabular.groups import GroupTasks


def levels(tasks: int = 60, rows: int = 12, between: float = 2.0, within: float = 1.0) -> GroupTasks:
    """y = 3 x + level of the task + noise."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(tasks * rows, 1, generator=drawn)
    level = (between * torch.randn(tasks, 1, generator=drawn)).repeat_interleave(rows, 0)
    y = 3 * x + level + within * torch.randn(tasks * rows, 1, generator=drawn)
    return GroupTasks(x, y, torch.arange(tasks + 1) * rows, [f"t{i}" for i in range(tasks)], shots=5, queries=5)


def kinds() -> GroupTasks:
    drawn = torch.Generator().manual_seed(1)
    x, y = torch.randn(400, 2, generator=drawn), torch.randint(3, (400,), generator=drawn)
    x[torch.arange(400), y % 2] += 2.0
    return GroupTasks(x, y, torch.arange(21) * 20, list(map(str, range(20))), 3, 3, classes=("a", "b", "c"))


def by_hand(tasks: GroupTasks, answer: object, episodes: int = 5) -> list[float]:
    found = []
    for i in range(episodes):
        (sx, sy), (qx, qy) = unstack(tasks.sample(1, seeds.generator(1, "test", i)))[0]
        found.append(answer(sx.numpy(), sy.numpy(), qx.numpy(), qy.numpy()))  # type: ignore[operator]
    return found


def test_per_task_is_the_model_on_each_support_set() -> None:
    tasks = levels()
    score = qs.evaluate(qs.per_task(Ridge(0.5), tasks), tasks, episodes=5)

    def ridge(sx: np.ndarray, sy: np.ndarray, qx: np.ndarray, qy: np.ndarray) -> float:
        return float(((Ridge(0.5).fit(sx, sy).predict(qx).reshape(qy.shape) - qy) ** 2).mean())

    assert score.values.tolist() == pytest.approx(by_hand(tasks, ridge), rel=1e-5)


def test_per_task_classes_also_where_a_task_lacks_one() -> None:
    tasks = kinds()
    lacking = GroupTasks(
        torch.cat([tasks.x, tasks.x[:10]]),
        torch.cat([tasks.y, torch.tensor([0, 2] * 5)]),
        torch.cat([tasks.starts, torch.tensor([410])]),
        [*tasks.names, "only a and c"],
        3,
        3,
        classes=tasks.classes,
    )
    score = qs.evaluate(qs.per_task(LogisticRegression(), lacking), lacking, episodes=100)

    def logistic(sx: np.ndarray, sy: np.ndarray, qx: np.ndarray, qy: np.ndarray) -> float:
        return float((LogisticRegression().fit(sx, sy).predict(qx) == qy).mean())

    assert "only a and c" in score.tasks
    assert score.values.tolist() == pytest.approx(by_hand(lacking, logistic, 100))


def test_pooled_is_one_model_of_all_rows() -> None:
    tasks = levels()
    score = qs.evaluate(qs.pooled(LinearRegression(), tasks), tasks, episodes=5)
    model = LinearRegression().fit(tasks.x.numpy(), tasks.y[:, 0].numpy())

    def line(sx: np.ndarray, sy: np.ndarray, qx: np.ndarray, qy: np.ndarray) -> float:
        return float(((model.predict(qx)[:, None] - qy) ** 2).mean())

    assert score.values.tolist() == pytest.approx(by_hand(tasks, line), rel=1e-4)


def test_pooled_classes_are_those_of_all_tasks() -> None:
    tasks = kinds()
    score = qs.evaluate(qs.pooled(LogisticRegression(), tasks), tasks, episodes=40)
    assert score.mean > 0.55  # chance is a third


def test_the_variances_of_a_random_intercept_are_found() -> None:
    drawn = np.random.default_rng(0)
    groups = np.repeat(np.arange(3000), drawn.integers(2, 12, 3000))
    residuals = 2.0 * drawn.normal(size=3000)[groups] + 3.0 * drawn.normal(size=len(groups))
    assert variance_ratio(residuals[:, None], groups) == pytest.approx(9 / 4, rel=0.1)


def test_tasks_that_do_not_differ_have_no_offset() -> None:
    groups = np.array([0, 0, 1, 1])
    assert variance_ratio(np.array([[-1.0], [1.0], [-1.0], [1.0]]), groups) == math.inf
    tasks = levels(between=0.0)
    plain, shifted = (qs.evaluate(qs.pooled(DummyRegressor(), tasks, offset=o), tasks, episodes=5) for o in (0, 1))
    assert shifted.mean <= 1.05 * plain.mean


def test_the_offset_is_the_best_linear_predictor_of_the_level() -> None:
    tasks = levels(tasks=300)
    plain, shifted = (qs.evaluate(qs.pooled(Ridge(), tasks, offset=o), tasks, episodes=300) for o in (False, True))
    # Of between 4 and within 1: plain errs by 5, with five rows of a task by 1 + 1 / (5 / 1 + 1 / 4).
    assert plain.mean == pytest.approx(5.0, rel=0.2)
    assert shifted.mean == pytest.approx(1 + 1 / (5 + 1 / 4), rel=0.15)


def test_what_has_no_pooled_model() -> None:
    with pytest.raises(qs.errors.ConfigError, match="ask for the same thing"):
        qs.pooled(Ridge(), qs.tasks.glyphs("train"))  # type: ignore[arg-type]
    with pytest.raises(qs.errors.ConfigError, match="level of values"):
        qs.pooled(LogisticRegression(), kinds(), offset=True)


def test_an_encoder_comes_before_the_model() -> None:
    tasks = qs.tasks.glyphs("val", ways=3, shots=4, queries=4)
    plain = qs.evaluate(qs.per_task(LogisticRegression(), tasks), tasks, episodes=3)
    halved = qs.evaluate(
        qs.per_task(LogisticRegression(), tasks, encoder=torch.nn.AvgPool2d(2)), tasks, episodes=3, engine="loop"
    )
    assert plain.protocol.tasks == halved.protocol.tasks
    assert plain.mean > 0.4 and halved.mean > 0.4
