"""Task sources: what is drawn, how often, and that the same seed draws it again."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import clusters
from torch import Tensor

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.errors import ConfigError, DataError
from quickstudy.learner import Episode
from quickstudy.tasks.arrays import from_arrays
from quickstudy.tasks.changed import ChangedSupport, shuffled
from quickstudy.tasks.classes import ClassTasks, PooledTasks, stack_classes
from quickstudy.tasks.sinusoid import Sinusoids


def numbered(counts: list[int], **sizes: int) -> ClassTasks:
    """A pool whose examples are their own row numbers, so that a drawn example says which one it is."""
    examples, starts = stack_classes([torch.zeros(n, 1) for n in counts])
    examples = torch.arange(len(examples), dtype=torch.float64)[:, None]
    return ClassTasks(examples, starts, [f"class {i}" for i in range(len(counts))], **sizes)


def same(a: Episode, b: Episode) -> bool:
    return all(torch.equal(s, t) for one, other in zip(a, b, strict=True) for s, t in zip(one, other, strict=True))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(observed: Tensor, expected: float, trials: int, errors: float = 5.0) -> bool:
    """Whether each count of `trials` draws is within `errors` standard errors of the expected one (binomial)."""
    p = expected / trials
    return bool(((observed - expected).abs() <= errors * math.sqrt(trials * p * (1 - p))).all())


# --- classes ---------------------------------------------------------------------------------------------------------


@st.composite
def pools(draw: Any) -> ClassTasks:
    """Pools of unequal classes, of which some may be no larger than an episode needs."""
    counts = draw(st.lists(st.integers(2, 9), min_size=2, max_size=7))
    shots = draw(st.integers(1, min(counts) - 1))
    queries = draw(st.integers(1, min(counts) - shots))
    return numbered(counts, ways=draw(st.integers(1, len(counts))), shots=shots, queries=queries)


@settings(max_examples=60, deadline=None)
@given(pools(), st.integers(1, 5), st.integers(0, 2**40))
def test_an_episode_is_what_it_says(tasks, n, seed):
    """Exact counts, distinct classes, and no example twice, in support or query or both."""
    episodes = tasks.sample(n, generator(seed))
    for batch, each in zip(episodes, (tasks.shots, tasks.queries), strict=True):
        assert batch.x.shape == (n, tasks.ways * each, 1) and batch.y.shape == (n, tasks.ways * each)
        assert batch.y.dtype == torch.int64
        assert all(Counter(y.tolist()) == dict.fromkeys(range(tasks.ways), each) for y in batch.y)
    for i in range(n):
        rows = torch.cat([batch.x[i, :, 0] for batch in episodes]).long()
        labels = torch.cat([batch.y[i] for batch in episodes])
        assert len(rows.unique()) == len(rows)
        owners = torch.searchsorted(tasks.starts, rows, right=True) - 1
        classes = [owners[labels == k].unique().tolist() for k in range(tasks.ways)]
        assert all(len(owner) == 1 for owner in classes)
        assert len({owner[0] for owner in classes}) == tasks.ways


@settings(max_examples=20, deadline=None)
@given(pools(), st.integers(0, 2**40))
def test_the_same_seed_gives_the_same_episodes(tasks, seed):
    assert same(tasks.sample(3, generator(seed)), tasks.sample(3, generator(seed)))


def test_other_seeds_give_other_episodes():
    tasks = clusters()
    assert not any(same(tasks.sample(2, generator(0)), tasks.sample(2, generator(seed))) for seed in range(1, 6))


def test_a_generator_that_goes_on_gives_other_episodes():
    tasks, drawn = clusters(), generator()
    assert not same(tasks.sample(2, drawn), tasks.sample(2, drawn))


def test_without_a_generator_torchs_own_is_used():
    tasks = clusters()
    torch.manual_seed(5)
    first = tasks.sample(2)
    torch.manual_seed(5)
    assert same(first, tasks.sample(2)) and not same(first, tasks.sample(2))


def test_with_a_generator_torchs_own_is_left_alone():
    before = torch.get_rng_state()
    for tasks in (clusters(), clusters().pooled(), qs.tasks.sinusoid(), ChangedSupport(clusters(), shuffled)):
        tasks.sample(3, generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "tasks",
    [numbered([300, 200, 1000], ways=2, shots=90, queries=90), Sinusoids(shots=500)],
    ids=["classes", "sinusoid"],
)
def test_the_number_of_threads_changes_no_draw(tasks):
    """Large enough that torch would share the work."""
    one = tasks.sample(40, generator())
    torch.set_num_threads(2)
    assert same(one, tasks.sample(40, generator()))


def test_every_class_is_drawn_equally_often_under_every_label():
    """Class c gets label k with probability 1 / classes, however unequal the classes are."""
    tasks, n = numbered([2, 3, 30, 4, 5], ways=3, shots=1, queries=1), 6000
    support = tasks.sample(n, generator()).support
    owners = torch.searchsorted(tasks.starts, support.x[..., 0].long(), right=True) - 1
    counts = torch.stack([torch.bincount(owners[:, k], minlength=5) for k in range(3)])
    assert within(counts, n / 5, n)


def test_every_example_of_the_smallest_and_the_largest_class_is_drawn_equally_often():
    """With classes of 2 to 40 examples in one pool: as support and as query."""
    tasks, n = numbered([2, 40, 7], ways=2, shots=1, queries=1), 12000
    episodes = tasks.sample(n, generator())
    for batch in episodes:
        drawn = torch.bincount(batch.x[..., 0].long().flatten(), minlength=49)
        for size, counts in zip((2, 40, 7), drawn.split([2, 40, 7]), strict=True):
            assert within(counts, n * 2 / 3 / size, n)


def test_a_class_of_just_enough_examples_gives_all_of_them():
    episode = numbered([3, 9], ways=2, shots=2, queries=1).sample(50, generator())
    for i in range(50):
        rows = torch.cat([batch.x[i, :, 0] for batch in episode])
        assert set(rows[rows < 3].tolist()) == {0.0, 1.0, 2.0}


def test_pairs_of_examples_are_independent():
    """Support and query of one class: all ordered pairs equally often, so nothing is learned from the order."""
    tasks, n = numbered([4, 4], ways=1, shots=1, queries=1), 12000
    episodes = tasks.sample(n, generator())
    pairs = Counter(zip(*(batch.x.flatten().long().tolist() for batch in episodes), strict=True))
    assert len(pairs) == 24 and within(torch.tensor(list(pairs.values())), n / 24, n)


def test_bytes_become_numbers_from_zero_to_one_and_nothing_else_does():
    pixels = torch.tensor([[0], [255], [51], [102]], dtype=torch.uint8)
    drawn = (
        ClassTasks(pixels, torch.tensor([0, 2, 4]), ["a", "b"], ways=2, shots=1, queries=1)
        .sample(20, generator())
        .support.x
    )
    assert drawn.dtype == torch.float32
    assert set(drawn.flatten().tolist()) == set(torch.tensor([0, 1.0, 0.2, 0.4]).tolist())
    assert numbered([300, 2], ways=2, shots=1, queries=1).sample(30, generator()).support.x.max() > 1


def test_a_pool_too_small_is_refused_with_the_class_and_the_numbers():
    with pytest.raises(DataError, match=r"has 2 classes, but ways=3"):
        numbered([5, 5], ways=3, shots=1, queries=1)
    with pytest.raises(DataError, match=r"'class 1'.* has 3 examples, but shots=2 and queries=2 need 4"):
        numbered([5, 3], ways=2, shots=2, queries=2)


@pytest.mark.parametrize("word", ["ways", "shots", "queries"])
def test_sizes_below_one_are_refused_by_name(word):
    with pytest.raises(DataError, match=f"{word} must be at least 1, got 0"):
        clusters(**{word: 0})
    with pytest.raises(DataError, match=word):
        clusters().replace(**{word: -1})


def test_starts_that_do_not_fit_the_examples_are_refused():
    """Or rows of another class, or of none, would be drawn in silence."""
    for starts in ([0, 2, 5], [0, 2], [1, 2, 4], [0, 4, 2]):
        with pytest.raises(DataError):
            ClassTasks(torch.zeros(4, 1), torch.tensor(starts), ["a", "b"], ways=1, shots=1, queries=1)


def test_replacing_sizes_keeps_the_pool():
    tasks = clusters()
    other = tasks.replace(ways=2, shots=5, queries=3)
    assert other.examples is tasks.examples and tasks.ways == 3
    assert other.sample(1, generator()).support.x.shape == (1, 10, 4)


def test_a_pool_describes_itself():
    assert clusters(queries=7).describe() == {
        "name": "clusters",
        "split": "train",
        "ways": 3,
        "shots": 2,
        "queries": 7,
        "classes": 6,
    }


# --- pooled examples -------------------------------------------------------------------------------------------------


def test_pooled_labels_are_class_numbers_of_the_whole_pool():
    tasks = numbered([5, 9, 6], ways=2, shots=1, queries=4)
    pooled = tasks.pooled()
    assert isinstance(pooled, PooledTasks)
    support, query = pooled.sample(50, generator())
    assert support.x.shape == (50, 2, 1) and query.x.shape == (50, 8, 1)
    for batch in (support, query):
        rows = batch.x[..., 0]
        wanted = (rows >= 5).long() + (rows >= 14).long()
        assert torch.equal(batch.y, wanted)


def test_pooled_examples_are_drawn_equally_often():
    tasks, n = numbered([5, 9, 6], ways=2, shots=2, queries=3), 3000
    support, query = tasks.pooled().sample(n, generator())
    rows = torch.cat([support.x, query.x], 1).flatten().long()
    assert within(torch.bincount(rows, minlength=20), len(rows) / 20, len(rows))


def test_a_pooled_source_says_so():
    assert clusters().pooled().describe()["pooled"] is True


# --- sinusoids -------------------------------------------------------------------------------------------------------


def waves(n: int = 500, **sizes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Amplitude, phase and squared misfit of n tasks, by least squares on a sin(x) + b cos(x)."""
    torch.set_default_dtype(torch.float64)
    support, query = Sinusoids(**({"shots": 7, "queries": 9} | sizes)).sample(n, generator())
    x, y = (torch.cat(pair, 1) for pair in ((support.x, query.x), (support.y, query.y)))
    basis = torch.cat([x.sin(), x.cos()], 2)
    ab = torch.linalg.lstsq(basis, y).solution
    misfit = (basis @ ab - y).square().sum((1, 2))
    return ab.square().sum((1, 2)).sqrt(), torch.atan2(ab[:, 1, 0], ab[:, 0, 0]), misfit


def test_support_and_query_lie_on_one_sine_wave():
    assert float(waves()[2].max()) < 1e-16


def test_amplitudes_and_phases_fill_the_published_ranges():
    """U[0.1, 5] and U[0, pi]: range, mean and spread, to four standard errors."""
    amplitude, phase, _ = waves(2000)
    for found, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi)):
        assert low - 1e-6 <= float(found.min()) and float(found.max()) <= high + 1e-6
        width = high - low
        assert float(found.mean()) == pytest.approx((low + high) / 2, abs=4 * width / math.sqrt(12 * 2000))
        # The fourth central moment of a uniform variable is width^4 / 80.
        spread = width**2 * math.sqrt((1 / 80 - 1 / 144) / 2000)
        assert float(found.var()) == pytest.approx(width**2 / 12, abs=4 * spread)


def test_inputs_fill_the_published_range():
    x = torch.cat([batch.x for batch in Sinusoids().sample(500, generator())], 1)
    assert -5 <= float(x.min()) < -4.9 and 4.9 < float(x.max()) <= 5
    assert float(x.mean()) == pytest.approx(0, abs=4 * 10 / math.sqrt(12 * x.numel()))


def test_splits_are_different_streams():
    one, other, third = (Sinusoids(split).sample(4, generator()) for split in ("train", "val", "test"))
    assert not same(one, other) and not same(one, third) and not same(other, third)
    assert same(one, Sinusoids("train").sample(4, generator()))


def test_sinusoid_shapes_and_sizes():
    episode = qs.tasks.sinusoid("test", shots=3, queries=8).sample(2, generator())
    assert [tuple(t.shape) for batch in episode for t in batch] == [(2, 3, 1)] * 2 + [(2, 8, 1)] * 2
    assert qs.tasks.sinusoid("val", shots=3).describe()["split"] == "val"


def test_wrong_sinusoid_settings_are_refused():
    with pytest.raises(ConfigError, match=r"'tset'\. Did you mean 'test'"):
        qs.tasks.sinusoid("tset")
    with pytest.raises(DataError, match="at least 1, got 0 and 10"):
        qs.tasks.sinusoid(shots=0)


# --- arrays ----------------------------------------------------------------------------------------------------------


def task(**changes: Any) -> dict[str, Any]:
    """A task of two classes with inputs of three numbers."""
    plain = {
        "support": np.arange(12.0).reshape(4, 3),
        "support_labels": np.array([0, 1, 0, 1]),
        "query": np.ones((2, 3)),
        "query_labels": [1, 0],
    }
    return plain | changes


def test_arrays_become_episodes():
    tasks = from_arrays([task(), task(query=2 * np.ones((2, 3)))], split="test")
    assert tasks.ways == 2
    assert tasks.describe() == {"name": "arrays", "split": "test", "ways": 2, "shots": 2, "queries": 1, "tasks": 2}
    support, query = tasks.sample(40, generator())
    assert support.x.shape == (40, 4, 3) and support.y.dtype == torch.int64 and support.x.dtype == torch.float32
    assert set(query.x.flatten().tolist()) == {1.0, 2.0}


def test_tasks_given_as_arrays_are_drawn_equally_often():
    tasks, n = from_arrays([task(query=np.full((2, 3), float(i))) for i in range(5)]), 4000
    drawn = tasks.sample(n, generator()).query.x[:, 0, 0].long()
    assert within(torch.bincount(drawn, minlength=5), n / 5, n)


def test_real_answers_make_regression():
    values = {"support_labels": np.ones((4, 1)), "query_labels": np.zeros((2, 1), dtype=np.float32)}
    tasks = from_arrays([task(**values)])
    assert tasks.ways is None and tasks.describe()["shots"] == 4
    assert tasks.sample(1, generator()).support.y.dtype == torch.float32


def test_bytes_are_scaled_and_tensors_taken():
    white, black = torch.full((4, 3), 255, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8)
    tasks = from_arrays([task(support=white, query=black)])
    assert torch.equal(tasks.sample(1, generator()).support.x, torch.ones(1, 4, 3))


BAD_TASKS = {
    "a missing key": ({"query": None}, "lacks 'query'"),
    "a key misspelt": ({"query_labels": None, "query_label": [0]}, "It has 'query_label' instead"),
    "words": ({"support": [["a", "b"]]}, "'support' is not an array of numbers"),
    "ragged rows": ({"support": [[1.0], [1.0, 2.0]]}, "'support' is not an array of numbers"),
    "lengths": ({"support_labels": [0, 1, 0]}, "4 support examples and 3 support_labels"),
    "no query": ({"query": np.ones((0, 3)), "query_labels": []}, "0 query examples"),
    "nan": ({"query": np.full((2, 3), np.nan)}, "'query' holds NaN"),
    "infinity": ({"support": np.full((4, 3), np.inf)}, "'support' holds NaN or infinity"),
    "negative label": ({"support_labels": [0, 1, -1, 1]}, "label -1"),
    "unseen class": ({"query_labels": [2, 0]}, r"no example of class\(es\) \[2\]"),
    "skipped class": ({"support_labels": [0, 2, 0, 2], "query_labels": [0, 2]}, r"no example of class\(es\) \[1\]"),
    "other shape": ({"query": np.ones((2, 4))}, r"'query' is \(2, 4\).*task 0 has \(2, 3\)"),
    "other number of classes": ({"support_labels": [0, 1, 2, 1], "query_labels": [1, 2]}, "classes"),
    "one class": ({"support_labels": [0, 0, 0, 0], "query_labels": [0, 0]}, "class"),
    "values for classes": ({"support_labels": np.ones((4, 1)), "query_labels": np.ones((2, 1))}, "support_labels"),
    "queries of another kind": ({"query_labels": [0.5, 1.5]}, "query_labels"),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_arrays_are_refused_by_task_and_key(name):
    changes, message = BAD_TASKS[name]
    bad = {key: value for key, value in task(**changes).items() if value is not None}
    with pytest.raises(DataError, match=message) as caught:
        from_arrays([task(), bad])
    assert "task 1" in str(caught.value)


def test_no_tasks_are_refused():
    with pytest.raises(DataError, match="got no task"):
        from_arrays([])


# --- shuffled answers ------------------------------------------------------------------------------------------------


def test_shuffling_keeps_everything_but_the_order_of_the_supports_answers():
    tasks = clusters(shots=4)
    plain, mixed = (source.sample(30, generator()) for source in (tasks, ChangedSupport(tasks, shuffled)))
    assert same(Episode(plain.query, plain.query), Episode(mixed.query, mixed.query))
    assert torch.equal(plain.support.x, mixed.support.x)
    assert torch.equal(plain.support.y.sort(1)[0], mixed.support.y.sort(1)[0])
    n = plain.support.y.numel()
    agreement = int((plain.support.y == mixed.support.y).sum())
    # Within a task the agreements are nearly independent, each with probability 1 / ways.
    assert agreement == pytest.approx(n / 3, abs=5 * math.sqrt(n * 2 / 9))


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_streams_and_indices_and_seeds_are_all_different():
    derived = {seeds.derive(s, stream, i) for s in range(20) for stream in ("train", "test", "t") for i in range(20)}
    assert len(derived) == 20 * 3 * 20
    assert all(0 <= seed < 2**63 for seed in derived)


def test_names_and_numbers_do_not_run_together():
    assert seeds.derive(1, "a/1", 2) != seeds.derive(1, "a", 12)
    assert seeds.derive(11, "a", 1) != seeds.derive(1, "1a", 1)


def test_derived_seeds_never_change():
    """Published scores hang on them."""
    assert seeds.derive(0, "test", 0) == 3494780237346305856
    assert seeds.derive(7, "train", 3) == 7137631672708323211


def test_a_seeded_block_repeats_itself_and_leaves_the_callers_stream_alone():
    torch.manual_seed(9)
    wanted = torch.rand(3)
    torch.manual_seed(9)
    with seeds.seeded(1, "x", 2):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), wanted)
    with seeds.seeded(1, "x", 2):
        assert torch.equal(torch.rand(3), first)
    with seeds.seeded(1, "x", 3):
        assert not torch.equal(torch.rand(3), first)
