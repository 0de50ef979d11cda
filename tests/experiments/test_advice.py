"""Verdicts of comparisons, on made-up scores: who may be the best, who is as good, and what is advised."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from made_up import asked, comparison, entry, metric_called, own

from quickstudy.evaluation.score import half_width
from quickstudy.experiments.advice import as_good, more_trainings
from quickstudy.experiments.comparison import Entry, LearnerComparison

# --- differences -----------------------------------------------------------------------------------------------------


def test_with_one_seed_a_difference_is_that_of_the_episodes() -> None:
    a, b = entry("a", 0.9), entry("bb", 0.88)
    found = comparison(a, b).difference(a, b)
    assert found.mean == pytest.approx(0.02, abs=1e-6)
    assert found.interval == pytest.approx(half_width(a.score.values - b.score.values))


def test_with_several_seeds_the_interval_holds_their_spread() -> None:
    a, b = entry("a", 0.90, 0.94, 0.89), entry("bb", 0.88, 0.87, 0.90)
    found = comparison(a, b).difference(a, b)
    over_episodes = half_width(a.score.values - b.score.values)
    assert found.mean == pytest.approx(0.08 / 3, abs=1e-6) and found.trainings == (3, 3)
    assert found.interval > 10 * over_episodes
    assert not found.decided


def test_a_baseline_of_one_trial_meets_every_seed() -> None:
    a, b = entry("a", 0.90, 0.91), entry("bb", 0.5, meta=False)
    found = comparison(a, b).difference(a, b)
    assert found.mean == pytest.approx(0.405, abs=1e-6)
    assert found.interval == pytest.approx(half_width(torch.tensor([0.40, 0.41])), rel=0.05)


# --- advice ----------------------------------------------------------------------------------------------------------


def test_the_cheapest_of_those_that_are_as_good() -> None:
    best = entry("best", 0.90, adapt_seconds=0.1, bytes=10_000_000)
    near = entry("nearly", 0.895, adapt_seconds=0.01, bytes=50_000)
    cheap = entry("cheapest", 0.80, adapt_seconds=0.001, bytes=1000)
    found = comparison(best, near, cheap)
    assert [one.name for one in as_good(found)] == ["best", "nearly"]
    assert asked(found, "accurate").choice == "best"
    fast, small = asked(found, "fastest"), asked(found, "smallest")
    assert (fast.choice, small.choice) == ("nearly", "nearly")
    assert "cheapest takes less, 1 ms" in fast.reason and "10.0 points" in fast.reason


def test_what_has_no_file_is_named_as_faster_and_never_as_smaller() -> None:
    best, quick = entry("best", 0.9), entry("quick", 0.8, adapt_seconds=0.001, bytes=None)
    fast, small = (asked(comparison(best, quick), question) for question in ("fastest", "smallest"))
    assert fast.choice == "best" and "quick takes less, 1 ms to learn a task" in fast.reason
    assert small.choice == "best" and "quick" not in small.reason
    equal = comparison(entry("filed", 0.9), entry("unfiled", 0.9, adapt_seconds=0.001, bytes=None))
    assert asked(equal, "fastest").choice == "unfiled" and asked(equal, "smallest").choice == "filed"


def test_an_entry_is_read_under_the_names_of_earlier_versions() -> None:
    one = entry("a", 0.9, calibration_error=0.2)
    plain = one.to_dict()
    earlier = {"dishonest": plain.pop("calibration_error"), **plain}
    assert Entry.from_dict(earlier).calibration_error == one.dishonest == 0.2


def test_a_metric_of_ones_own_says_who_is_ahead() -> None:
    reward = metric_called("reward", higher_is_better=True)
    best, bar = (
        own(entry(name, mean, meta=meta), reward) for name, mean, meta in (("a", 9.0, True), ("b", 7.0, False))
    )
    found = comparison(best, bar)
    assert asked(found, "pay").choice == "a" and asked(found, "pay").reason.startswith("In these trainings, yes: a 9 ±")
    assert [one.name for one in as_good(found)] == ["a"]
    cost = metric_called("cost", higher_is_better=False)
    best, bar = (own(entry(name, mean, meta=meta), cost) for name, mean, meta in (("a", 7.0, True), ("b", 9.0, False)))
    found = LearnerComparison.from_dict(json.loads(json.dumps(comparison(best, bar).to_dict())))
    assert asked(found, "pay").choice == "a"
    assert f": {found.difference(*found.entries).signed()} (paired" in asked(found, "pay").reason
    assert not found.entries[0].score.metric.higher_is_better


def test_an_error_is_as_good_within_a_twentieth() -> None:
    metric = "mean squared error"
    best, near, far = (entry(n, v, metric=metric) for n, v in (("a", 1.0), ("bb", 1.04), ("ccc", 1.06)))
    assert [one.name for one in as_good(comparison(best, near, far))] == ["a", "bb"]


def test_what_is_far_off_and_varies_wildly_is_not_as_good() -> None:
    metric = "mean squared error"
    best, wild = entry("best", 1.0, metric=metric), entry("wild", 1.0, metric=metric, adapt_seconds=1e-6)
    values = torch.cat([torch.ones(399), torch.tensor([4e7])]).double()
    trial = dataclasses.replace(wild.trials[0], score=dataclasses.replace(wild.score, values=values))
    found = comparison(best, dataclasses.replace(wild, trials=(trial,)))
    assert not found.difference(*found.entries).decided
    assert [one.name for one in as_good(found)] == ["best"]
    assert asked(found, "fastest").choice == "best" and "wild takes less" in asked(found, "fastest").reason
    assert "wild is behind, but too uncertain to be ruled out" in asked(found, "accurate").reason


@pytest.mark.parametrize(
    ("learner", "baseline", "begins", "choice"),
    [(0.9, 0.8, "Yes", "meta"), (0.8, 0.9, "No", "plain"), (0.8, 0.8002, "Not shown", "plain")],
)
def test_whether_meta_learning_pays(learner: float, baseline: float, begins: str, choice: str) -> None:
    offsets = (-0.0002, 0.0, 0.0002)
    several = [
        entry(name, *(mean + offset for offset in offsets), meta=name == "meta")
        for name, mean in (("meta", learner), ("plain", baseline))
    ]
    told = asked(comparison(*several), "pay")
    assert told.reason.startswith(f"{begins}:") and told.choice == choice and "over 3 trainings" in told.reason
    once = [dataclasses.replace(one, trials=one.trials[:1]) for one in several]
    alone = asked(comparison(*once), "pay")
    assert alone.choice == choice and "these trainings alone" in alone.reason
    assert alone.reason.startswith("Not shown:" if begins == "Not shown" else f"In these trainings, {begins.lower()}:")


def test_a_baseline_far_behind_is_not_called_the_simpler_choice() -> None:
    """Three trainings that differ by 10 points say little: the learner that is 5 points ahead stays the choice."""
    told = asked(comparison(entry("meta", 0.80, 0.90, 0.70), entry("plain", 0.75, meta=False, trained=False)), "pay")
    assert told.choice == "meta" and told.reason.startswith("Not shown:")
    assert "plain is behind, but too uncertain" in told.reason and "simpler" not in told.reason


def test_what_more_trainings_would_cost() -> None:
    bar = entry("plain", 0.5, meta=False, trained=False)
    once = comparison(entry("a", 0.9), entry("bb", 0.8), bar)
    assert "whether the next training comes out alike: --seeds 0 1 2 --resume, 4 more minutes" in more_trainings(once)
    close = comparison(entry("a", 0.90, 0.92), entry("bb", 0.91, 0.90), bar)
    assert "tell more of them apart: --seeds 0 1 2 3 --resume, 4 more" in more_trainings(close)
    assert more_trainings(comparison(entry("a", 0.900, 0.901, 0.902), bar)) == ""


def test_the_smallest_is_the_smallest() -> None:
    """8.47 MB is less than 9.11 MB, by however little."""
    best, other = entry("best", 0.9, bytes=9_110_000), entry("other", 0.899, bytes=8_470_000)
    told = asked(comparison(best, other), "smallest")
    assert told.choice == "other" and "8.47 MB as a file, as good as the best." in told.reason


def test_a_smaller_one_that_may_be_the_best_is_always_told() -> None:
    """Seven points behind, but its trainings differ so much that nothing follows."""
    best = entry("best", 0.9, 0.9, 0.9, bytes=9_110_000)
    told = asked(comparison(best, entry("other", 0.83, 0.73, 0.93, bytes=8_470_000)), "smallest")
    assert told.choice == "best" and "other takes less, 8.47 MB as a file, and is 7.0 points ±" in told.reason
    assert told.reason.endswith("worse, which is not certain.")


def test_times_that_are_about_the_same_are_told_beside_the_fastest() -> None:
    quick, near = entry("quick", 0.899, adapt_seconds=0.010), entry("near", 0.9, adapt_seconds=0.012)
    told = asked(comparison(near, quick), "fastest")
    assert (
        told.choice == "quick" and told.reason == "10 ms to learn a task, as good as the best; near is about the same."
    )


def test_who_answers_without_labels() -> None:
    silent, score = entry("a", 0.9), entry("bb", 0.4).score
    assert asked(comparison(silent), "before").choice == ""
    able = entry("bb", 0.8, unlabelled=score)
    assert asked(comparison(silent, able), "before").choice == "bb"


def test_whose_probabilities_can_be_believed() -> None:
    errors = {"best": (0.9, 0.2), "near": (0.899, 0.05), "far": (0.5, 0.01)}
    best, near, far = (entry(name, mean, calibration_error=error) for name, (mean, error) in errors.items())
    told = asked(comparison(best, near, far), "believed")
    assert told.choice == "near" and "5.0 points" in told.reason and "of the best 20.0" in told.reason
    assert asked(comparison(entry("a", 1.0, metric="mean squared error")), "believed").choice == ""


def test_nobody_is_believed_who_is_off_by_more_than_five_points() -> None:
    values = {"metric": "mean squared error", "calibration_error": 0.12}
    told = asked(comparison(entry("cnp", 1.0, **values)), "believed")  # type: ignore[arg-type]
    assert told.choice == "" and "cnp comes nearest: its 90 % intervals" in told.reason and "12.0" in told.reason
    worse = entry("far", 2.0, metric="mean squared error", calibration_error=0.01)
    told = asked(comparison(entry("cnp", 1.0, **values), worse), "believed")  # type: ignore[arg-type]
    assert told.choice == "" and "far can be, but is 1 ±" in told.reason
    told = asked(comparison(entry("maml", 1.0, metric="mean squared error"), worse), "believed")
    assert told.choice == "" and "they do not tell. far can be" in told.reason
