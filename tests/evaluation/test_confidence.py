"""Intervals of means and of differences: closed forms, invariances, ranges, and several trainings."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import quickstudy as qs
from quickstudy.evaluation.confidence import mean_difference, mean_interval
from quickstudy.evaluation.metric import ERROR, PERCENT, PLAIN
from quickstudy.evaluation.score import Score

PROTOCOL = qs.Protocol("MAML", "glyphs", "test", 5, 1, 15, "accuracy", 600, 1, False, "none")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def score_of(values: object, tasks: tuple[str, ...] = (), metric: str = "accuracy") -> Score:
    values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
    return Score(values, dataclasses.replace(PROTOCOL, episodes=len(values), metric=metric), tasks=tasks)


def over(rows: np.ndarray, metric: str = "accuracy") -> Score:
    """The score of these trainings [trainings, episodes]."""
    return Score.of_trainings([score_of(row, metric=metric) for row in rows])


# --- one training ----------------------------------------------------------------------------------------------------


def test_any_value_has_students_interval(rng: np.random.Generator) -> None:
    values = rng.standard_normal(12)
    found = mean_interval(torch.from_numpy(values), PLAIN)
    assert found == pytest.approx(scipy.stats.t.interval(0.95, 11, values.mean(), scipy.stats.sem(values)))


def test_a_share_has_students_interval_on_the_scale_of_the_logit() -> None:
    values = np.array([0.8, 0.9, 0.7, 1.0, 0.85, 0.95])
    mean, n = values.mean(), len(values)
    freedom = min(n - 1, 2 * n / (scipy.stats.kurtosis(values, fisher=False) - 1))
    half = scipy.stats.t.ppf(0.975, freedom) * scipy.stats.sem(values) / (mean * (1 - mean))
    wanted = [1 / (1 + math.exp(-(math.log(mean / (1 - mean)) + sign * half))) for sign in (-1, 1)]
    assert mean_interval(torch.from_numpy(values), PERCENT) == pytest.approx(wanted)


def test_all_right_counts_each_episode_as_one_trial() -> None:
    """Clopper and Pearson: nothing shows how errors would cluster."""
    assert mean_interval(torch.ones(600), PERCENT) == pytest.approx((0.025 ** (1 / 600), 1.0))
    assert mean_interval(torch.zeros(600), PERCENT) == pytest.approx((0.0, 1 - 0.025 ** (1 / 600)))
    exact = scipy.stats.binomtest(0, 600).proportion_ci(method="exact")
    assert mean_interval(torch.zeros(600), PERCENT) == pytest.approx((exact.low, exact.high))


def test_the_two_ends_of_a_share_mirror_each_other(rng: np.random.Generator) -> None:
    values = torch.from_numpy(rng.binomial(25, 0.97, 50) / 25)
    low, high = mean_interval(values, PERCENT)
    assert mean_interval(1 - values, PERCENT) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("zero", [False, True])
def test_the_interval_of_an_error_has_the_errors_unit(factor: float, zero: bool, rng: np.random.Generator) -> None:
    values = np.exp(1.5 * rng.standard_normal(25))
    values[0] *= 1 - zero  # with a zero the values are not lognormal: the bootstrap
    low, high = mean_interval(torch.from_numpy(values), ERROR)
    assert mean_interval(torch.from_numpy(factor * values), ERROR) == pytest.approx((factor * low, factor * high))
    assert 0 < low < values.mean() < high


def test_the_upper_end_of_lognormal_errors_is_the_generalised_one() -> None:
    """By drawing what the bisection solves: T = mean - Z s / sqrt(n w) + s^2 / (2 w)."""
    values = np.exp(1.5 * scipy.stats.norm.ppf((np.arange(25) + 0.5) / 25))
    y, n, rng = np.log(values), 25, np.random.default_rng(2)
    w = rng.chisquare(n - 1, 400_000) / (n - 1)
    s = y.std(ddof=1)
    t = y.mean() - rng.standard_normal(len(w)) * s / np.sqrt(n * w) + s**2 / (2 * w)
    high = mean_interval(torch.from_numpy(values), ERROR).high
    assert math.log(high) == pytest.approx(np.quantile(t, 0.975), abs=0.02)


@pytest.mark.parametrize("kind", [PERCENT, ERROR, PLAIN], ids=["share", "error", "any"])
@pytest.mark.parametrize("trainings", [1, 2, 5])
def test_no_interval_leaves_the_range_and_all_hold_the_mean(kind: qs.evaluation.metric.Format, trainings: int) -> None:
    for i in range(200):
        rng = np.random.default_rng(i)
        values = torch.from_numpy(rng.beta(8, 0.3, (trainings, rng.integers(2, 30))) ** rng.integers(1, 40))
        low, high = mean_interval(values, kind)
        assert low <= float(values.mean()) * (1 + 1e-12) and float(values.mean()) <= high * (1 + 1e-12)
        assert kind.smallest is None or low >= kind.smallest
        assert kind.largest is None or high <= kind.largest


def test_intervals_are_the_same_at_every_call(rng: np.random.Generator) -> None:
    values = torch.from_numpy(rng.exponential(1, 40))
    torch.manual_seed(1)
    first = mean_interval(values, ERROR)
    np.random.seed(3)
    assert mean_interval(values, ERROR) == first == mean_interval(values.flip(0).flip(0), ERROR)


def test_ordinary_scores_are_written_with_one_half_width_and_others_with_their_ends(rng: np.random.Generator) -> None:
    assert score_of(rng.binomial(75, 0.974, 600) / 75).in_words().split(" ± ")[1] in ("0.1", "0.2")
    text = score_of(np.r_[np.ones(95), 0.8, 0.9, 0.7, 0.96, 0.96]).in_words()
    assert text.startswith("99.3 % (") and text.endswith(")") and " to " in text
    assert score_of(np.ones(600)).in_words() == "100.0 % (99.4 to 100.0)"


def test_an_error_without_an_upper_end_says_so() -> None:
    score = score_of([0.001, 30.0], metric="mean squared error")
    assert math.isinf(score.high) and score.in_words().endswith("and more) mean squared error")
    again = Score.from_dict(json.loads(json.dumps(score.to_dict(), allow_nan=False)))
    assert (again.low, again.high) == pytest.approx((score.low, score.high))


# --- one task --------------------------------------------------------------------------------------------------------


def test_several_episodes_of_one_task_have_neither_interval_nor_verdict() -> None:
    values = np.linspace(0.5, 0.9, 20)
    score, other = (score_of(v, tasks=("ward 1",) * 20) for v in (values, values - 0.3))
    assert math.isinf(score.interval) and "± " not in str(score)
    assert str(score) == "70.0 % (one task: no interval) (over 1 task, 20 episodes; 5-way 1-shot, no norm)"
    away = qs.compare(score, other)
    assert away.mean == pytest.approx(0.3) and not away.decided and away.p == 1
    assert str(away) == "+30.0 points (one task: no interval)"


def test_with_two_tasks_there_is_an_interval() -> None:
    assert math.isfinite(score_of(np.linspace(0.5, 0.9, 20), tasks=("a",) * 10 + ("b",) * 10).interval)


# --- several trainings -----------------------------------------------------------------------------------------------


def by_hand(rows: np.ndarray) -> tuple[float, float, float]:
    """u, b and e of rows [trainings, tasks], from the sums of squares of the two-way layout."""
    r, n = rows.shape
    residual = rows - rows.mean(0) - rows.mean(1)[:, None] + rows.mean()
    e = (residual**2).sum() / ((r - 1) * (n - 1)) / (r * n)
    return rows.mean(1).var(ddof=1) / r, rows.mean(0).var(ddof=1) / n, e


def test_the_interval_of_several_trainings_by_hand(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((3, 1)) + rng.standard_normal(40) + rng.standard_normal((3, 40))
    u, b, e = by_hand(rows)
    t = scipy.stats.t.ppf(0.975, [2, 39])
    half = math.sqrt((u + b - e) * ((u * t[0]) ** 2 + (b * t[1]) ** 2) / (u**2 + b**2))
    wanted = (rows.mean() - half, rows.mean() + half)
    assert mean_interval(torch.from_numpy(rows), PLAIN) == pytest.approx(wanted)


def test_the_interval_of_several_trainings_holds_their_spread(rng: np.random.Generator) -> None:
    episodes = rng.binomial(75, 0.8, 600) / 75
    alike, apart = (over(np.stack([episodes + shift for shift in (-d, 0.0, d)])) for d in (0.0, 0.05))
    assert apart.mean == pytest.approx(alike.mean) and apart.interval > 10 * alike.interval
    assert alike.interval == pytest.approx(score_of(episodes).interval, rel=1e-6)
    assert "over 600 episodes and 3 trainings" in str(apart)


def test_a_difference_of_one_training_each_is_the_paired_t_test(rng: np.random.Generator) -> None:
    a, b = rng.uniform(0.6, 1, (2, 50))
    found, wanted = qs.compare(score_of(a), score_of(b)), scipy.stats.ttest_rel(a, b)
    ends = wanted.confidence_interval()
    assert (found.p, found.low, found.high) == pytest.approx((wanted.pvalue, ends.low, ends.high))
    assert found.trainings == (1, 1) and "these trainings alone" in str(found)


def test_trainings_are_paired_over_episodes_and_not_over_seeds(rng: np.random.Generator) -> None:
    a, b = (rng.normal(0.8, 0.1, (4, 60)) + rng.normal(0, 0.05, (4, 1)) for _ in range(2))
    found, mixed = qs.compare(over(a), over(b)), qs.compare(over(a), over(b[[2, 0, 3, 1]]))
    assert (mixed.mean, mixed.interval, mixed.p) == pytest.approx((found.mean, found.interval, found.p))
    elsewhere = qs.compare(over(a), over(b[:, rng.permutation(60)]))
    assert elsewhere.mean == pytest.approx(found.mean) and elsewhere.interval != pytest.approx(found.interval)
    assert "over 4 trainings" in str(found)


def test_a_baseline_of_one_training_adds_no_spread(rng: np.random.Generator) -> None:
    """Minus a constant the difference has the interval of the score itself."""
    rows = rng.normal(2.0, 0.1, (3, 60)) + rng.normal(0, 0.05, (3, 1))
    found = qs.compare(over(rows, "reward"), score_of(np.full(60, 1.5), metric="reward"))
    alone = over(rows, "reward")
    assert (found.low, found.high) == pytest.approx((alone.low - 1.5, alone.high - 1.5))
    assert found.trainings == (3, 1) and "over 3 against 1 trainings" in str(found)


@pytest.mark.parametrize("trainings", [(1, 1), (2, 2), (3, 1), (5, 3)])
def test_the_p_value_is_below_a_twentieth_exactly_where_the_interval_excludes_zero(trainings: tuple[int, int]) -> None:
    decided = 0
    for i in range(150):
        rng = np.random.default_rng(i)
        a, b = (rng.normal(0.5, 0.3, (n, 20)) + rng.normal(0.1, 0.1, (n, 1)) for n in trainings)
        found = qs.compare(over(a, "reward"), over(b - 0.15, "reward"))
        assert (found.p < 0.05) == found.decided == (not found.low <= 0 <= found.high)
        decided += found.decided
    assert 10 < decided < 140


def test_the_p_value_is_where_an_end_of_the_interval_is_zero(rng: np.random.Generator) -> None:
    a, b = (torch.from_numpy(rng.normal(m, 0.3, (3, 20))) for m in (0.5, 0.3))
    mean, found, p = mean_difference(a, b.mean(0)[None])
    ends = mean_interval(a - b.mean(0), PLAIN, p)
    assert min(abs(ends.low), abs(ends.high)) < 1e-9 * abs(mean) and found.low < mean < found.high


def test_differences_that_are_all_alike_are_decided_by_their_signs() -> None:
    """Two episodes whose differences happen to be equal prove nothing; six of one sign do (2 / 2^6 = 0.03)."""
    few, many = (qs.compare(score_of(np.full(n, 0.9)), score_of(np.full(n, 0.5))) for n in (2, 6))
    assert (few.p, few.decided) == (0.5, False) and (many.p, many.decided) == (2**-5, True)
    same = qs.compare(score_of(np.ones(600)), score_of(np.ones(600)))
    assert (same.mean, same.p, same.decided) == (0, 1, False)


def test_a_difference_of_shares_stays_within_one() -> None:
    found = qs.compare(score_of([1.0, 1.0, 0.2]), score_of([0.0, 0.1, 0.0]))
    assert found.high == 1 and found.low > -1


def ends(values: Tensor) -> tuple[float, float]:
    return mean_interval(values, PERCENT)


def test_scores_of_earlier_versions_load_with_one_training() -> None:
    plain = score_of([0.2, 0.4, 0.9]).to_dict()
    for key in ("low", "high"):
        del plain[key]
    again = Score.from_dict(plain)
    assert again.trainings is None and (again.low, again.high) == pytest.approx(ends(again.values))
