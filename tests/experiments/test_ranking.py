"""The rule behind the verdicts: how often it is wrong where nothing is true, what it finds, and that it is consistent.

All scores are made up: theta_i + task + training + rest, as in a real comparison, with tasks shared by all.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from made_up import PROTOCOL, comparison

from quickstudy.base.words import size
from quickstudy.evaluation.score import Score
from quickstudy.experiments.advice import BELIEVED, Advice, advise, as_good
from quickstudy.experiments.comparison import Entry, LearnerComparison, Trial
from quickstudy.experiments.ranking import Standing, holm, standings

EPISODES = 60


def drawn(
    random: np.random.Generator,
    truths: Sequence[float],
    metas: Sequence[bool],
    seeds: int,
    between: float,
    trained: Sequence[bool] | None = None,
) -> LearnerComparison:
    """A comparison of entries whose true scores are `truths`; trainings deviate by `between` from seed to seed."""
    tasks, entries = random.normal(0, 0.05, EPISODES), []
    for i, (truth, meta) in enumerate(zip(truths, metas, strict=True)):
        learned = trained is None or trained[i]
        of_learner = truth + tasks + random.normal(0, 0.05, EPISODES)
        values = [
            of_learner + random.normal(0, between if learned else 0) + random.normal(0, 0.05, EPISODES)
            for _ in range(seeds if learned else 1)
        ]
        spent = (100, 60.0) if learned else (0, 0.0)
        trials = tuple(Trial(s, Score(torch.from_numpy(v), PROTOCOL), *spent) for s, v in enumerate(values))
        entries.append(Entry(f"{'learner' if meta else 'baseline'}{i}", "ProtoNet", meta, trials, 0.01, 0.01, 10_000))
    return comparison(*entries)


def pays(found: LearnerComparison) -> str:
    return next(one for one in advise(found) if "pay" in one.question).reason.split(":")[0]


# --- Holm's adjustment -----------------------------------------------------------------------------------------------


def test_holm_as_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_holm_rejects_falsely_in_at_most_five_percent_of_families() -> None:
    random = np.random.default_rng(0)
    false = sum(min(holm(random.uniform(size=10).tolist())) <= 0.05 for _ in range(2000))
    assert abs(false / 2000 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)  # exact but for 0.001, where all are null
    half = [min(holm([*random.uniform(size=5), *[1e-9] * 5])[:5]) <= 0.05 for _ in range(2000)]
    assert abs(sum(half) / 2000 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)  # Bonferroni would reject half as often


# --- under the null --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "learners", "baselines", "between", "n"),
    [(3, 2, 1, 0.02, 150), (5, 2, 1, 0.005, 150), (3, 3, 3, 0.02, 60), (3, 10, 1, 0.02, 50), (5, 10, 1, 0.005, 50)],
)
def test_it_pays_falsely_in_at_most_five_percent(
    seeds: int, learners: int, baselines: int, between: float, n: int
) -> None:
    """All are equally good: the best of ten learners must not beat the baseline by being picked."""
    random = np.random.default_rng(seeds + learners)
    metas = [True] * learners + [False] * baselines
    told = [pays(drawn(random, [0.7] * len(metas), metas, seeds, between)) for _ in range(n)]
    assert told.count("Yes") <= 0.05 * n and told.count("No") <= 0.05 * n


def test_against_a_baseline_that_is_not_trained_either() -> None:
    random, n = np.random.default_rng(0), 100
    metas, trained = [True] * 4 + [False] * 2, [True] * 4 + [False] * 2
    truths = [0.7] * 5 + [0.3]
    told = [pays(drawn(random, truths, metas, 3, 0.02, trained)) for _ in range(n)]
    assert told.count("Yes") <= 0.05 * n


@pytest.mark.parametrize("learners", [2, 10])
def test_one_training_says_nothing_beyond_itself(learners: int) -> None:
    """Most of these would be false: the spread from seed to seed is twice what 60 episodes leave open."""
    random, metas = np.random.default_rng(learners), [True] * learners + [False]
    told = [pays(drawn(random, [0.7] * len(metas), metas, 1, 0.03)) for _ in range(60)]
    assert set(told) <= {"Not shown", "In these trainings, yes", "In these trainings, no"}
    assert told.count("In these trainings, yes") > 0.05 * len(told)


@pytest.mark.parametrize("seeds", [1, 3])
def test_trainings_that_do_not_differ_are_told_apart_falsely_in_at_most_five_percent(seeds: int) -> None:
    random, n = np.random.default_rng(seeds), 100
    found = [drawn(random, [0.7] * 4, [True] * 3 + [False], seeds, 0.0) for _ in range(n)]
    assert sum(pays(one).endswith(("Yes", "yes")) for one in found) <= 0.05 * n
    best = [next(one for one in standings(each) if one.entry.name == "learner0") for each in found]
    assert sum(not one.may_be_best for one in best) <= 0.05 * n


# --- what is true is found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truths", "seeds", "between", "least"),
    [
        ([0.75, 0.70], 3, 0.005, 0.95),
        ([0.75, 0.70], 5, 0.015, 0.7),
        ([0.75, 0.70, 0.70, 0.65, 0.70, 0.70], 5, 0.01, 0.7),
        ([0.75] * 5 + [0.70], 3, 0.01, 0.6),
        ([0.75] * 8 + [0.70], 5, 0.01, 0.9),
    ],
)
def test_five_points_are_found(truths: list[float], seeds: int, between: float, least: float) -> None:
    random, n = np.random.default_rng(3), 30
    metas = [True] * (len(truths) - 1) + [False]
    told = [pays(drawn(random, truths, metas, seeds, between)) for _ in range(n)]
    assert told.count("Yes") >= least * n and not told.count("No")


def test_baselines_far_behind_cost_no_power() -> None:
    """Holm's steps: they are told apart first, and what is left is hardly multiplied."""
    truths, random, n = [0.75, 0.70] + [0.3] * 8, np.random.default_rng(4), 20
    found = [drawn(random, truths, [True] + [False] * 9, 3, 0.005) for _ in range(n)]
    assert sum(pays(one) == "Yes" for one in found) >= 0.9 * n


# --- consistent ------------------------------------------------------------------------------------------------------


def arbitrary(random: np.random.Generator) -> LearnerComparison:
    """A comparison in which anything may be: ties, wild spreads, missing files, one training or more."""
    n, seeds = int(random.integers(1, 7)), int(random.integers(1, 4))
    truths = random.choice([0.7, 0.705, 0.72, 0.8, 0.4], n)
    metas, trained = random.random(n) < 0.6, random.random(n) < 0.8
    found = drawn(random, truths, metas.tolist(), seeds, float(random.choice([0.0, 0.01, 0.1])), trained.tolist())
    return comparison(*(_with_costs(one, random) for one in found.entries))


def _with_costs(one: Entry, random: np.random.Generator) -> Entry:
    off = random.choice([0.001, 0.04, 0.05, 0.06, 0.3])
    return Entry(
        one.name,
        one.learner,
        one.meta,
        one.trials,
        float(random.choice([0.001, 0.0011, 0.0012, 0.002, 0.1])),
        0.01,
        int(random.choice([8_470_000, 9_110_000, 20_000_000])) if random.random() < 0.8 else None,
        one.score if random.random() < 0.5 else None,
        float(off) if random.random() < 0.7 else None,
    )


class Case(NamedTuple):
    """A comparison, and what is made of it."""

    found: LearnerComparison
    ranked: list[Standing]
    good: list[Entry]
    told: dict[str, Advice]


@pytest.fixture(scope="module")
def many() -> list[Case]:
    random, cases = np.random.default_rng(7), []
    for _ in range(100):
        found = arbitrary(random)
        words = ("accurate", "pay", "fastest", "smallest", "believed", "before")
        told = dict(zip(words, advise(found), strict=True))
        cases.append(Case(found, standings(found), as_good(found), told))
    return cases


def test_the_best_is_best_and_may_be(many: list[Case]) -> None:
    for _, ranked, _, told in many:
        means = [one.entry.score.mean for one in ranked]
        assert means == sorted(means, reverse=True) and ranked[0].may_be_best and ranked[0].as_good
        assert told["accurate"].choice == ranked[0].entry.name


def test_whether_it_pays_agrees_with_who_may_be_the_best(many: list[Case]) -> None:
    seen = set()
    for found, ranked, good, told in many:
        verdict = told["pay"].reason.split(":")[0]
        kinds = {one.entry.meta for one in ranked if one.may_be_best}
        if {one.entry.meta for one in ranked} == {True, False}:
            expected = "Not shown" if len(kinds) == 2 else "yes" if kinds == {True} else "no"
            seen.add(verdict)
            assert verdict.lower().endswith(expected.lower()), told
            assert verdict == "Not shown" or verdict.startswith("In these trainings") == found.alone
            assert ("simpler" in told["pay"].reason) <= (found[told["pay"].choice] in good)
    assert {"Yes", "No", "Not shown", "In these trainings, yes", "In these trainings, no"} <= seen


def test_a_yes_shows_a_difference_without_zero(many: list[Case]) -> None:
    for found, _, _, told in many:
        reason = told["pay"].reason
        if (verdict := reason.split(":")[0].lower()).endswith(("yes", "no")):
            name, bar = reason.split(": ")[1].split(" ")[0], reason.split("the baseline ")[1].split(" ")[0]
            shown = found.difference(found[name], found[bar])
            assert shown.decided and (shown.mean > 0) == verdict.endswith("yes"), reason


def test_the_cheapest_has_none_cheaper_among_those_as_good(many: list[Case]) -> None:
    for found, _, good, told in many:
        filed = [one for one in good if one.bytes is not None]
        assert found[told["fastest"].choice].adapt_seconds == min(one.adapt_seconds for one in good)
        if filed:
            assert found[told["smallest"].choice].bytes == min(one.bytes or 0 for one in filed)
        assert bool(filed) == bool(told["smallest"].choice)


def test_a_cheaper_one_that_may_be_the_best_is_never_passed_over(many: list[Case]) -> None:
    for found, ranked, _, told in many:
        if name := told["smallest"].choice:
            chosen = found[name].bytes or 0
            others = [one.entry for one in ranked if one.may_be_best and (one.entry.bytes or math.inf) < chosen]
            prices = [f"takes less, {size(one.bytes or 0)}" in told["smallest"].reason for one in others]
            assert not others or any(prices)


def test_who_is_believed_is_as_good_and_close(many: list[Case]) -> None:
    chosen = 0
    for found, _, good, told in many:
        if name := told["believed"].choice:
            chosen += 1
            assert found[name].calibration_error <= BELIEVED and found[name] in good  # type: ignore[operator]
        else:
            assert all((one.calibration_error or 1.0) > BELIEVED for one in good)
    assert 20 < chosen < 90


def test_verdicts_do_not_depend_on_the_order_of_the_learners(many: list[Case]) -> None:
    for found, _, _, told in many[:30]:
        for order in itertools.islice(itertools.permutations(found.entries), 1, 8, 3):
            assert advise(comparison(*order)) == list(told.values())


def test_verdicts_are_the_same_when_they_are_read_again(many: list[Case]) -> None:
    for found, _, _, told in many[:30]:
        assert advise(LearnerComparison.from_dict(json.loads(json.dumps(found.to_dict())))) == list(told.values())


def test_those_in_between_are_as_good_too() -> None:
    """Of two that cannot be ruled out, or two that are beaten, what loses less is as good if the other is."""
    random = np.random.default_rng(9)
    for _ in range(40):
        ranked = standings(arbitrary(random))
        for kind in (True, False):
            alike = [one for one in ranked if one.may_be_best == kind]
            assert [one.as_good for one in alike] == sorted((one.as_good for one in alike), reverse=True)
