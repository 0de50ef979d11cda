"""Tasks that are groups of rows: what is drawn, from whom, and in which order."""

import pytest
import torch
from problems import assert_close

import quickstudy as qs
from quickstudy import episodes
from quickstudy.base import seeds
from quickstudy.errors import DataError
from quickstudy.evaluation.confidence import mean_interval

SIZES = {"big": 12, "small": 4, "single": 1, "other": 12}


def values(**changes) -> qs.tasks.GroupTasks:
    """x of a row is its number, y is ten times that."""
    x = torch.arange(float(sum(SIZES.values())))[:, None]
    starts = torch.tensor([0, *SIZES.values()]).cumsum(0)
    settings = {"names": list(SIZES), "shots": 3, "queries": 4} | changes
    return qs.tasks.GroupTasks(x, 10 * x, starts, **settings)


def classes(**changes) -> qs.tasks.GroupTasks:
    """Three groups: one with classes 0, 1, 2; one with 0 and 2; one with class 1 alone."""
    y = torch.tensor([0, 1, 2] * 4 + [0, 2] * 5 + [1] * 4)
    starts = torch.tensor([0, 12, 22, 26])
    settings = {"names": ["all", "two", "one"], "shots": 2, "queries": 2, "classes": ("a", "b", "c")} | changes
    return qs.tasks.GroupTasks(torch.arange(26.0)[:, None], y, starts, **settings)


def drawn(tasks, n=60) -> list[tuple[str, qs.Episode]]:
    found = []
    for i in range(n):
        one = episodes.unstack(tasks.sample(1, seeds.generator(0, "t", i)))[0]
        found.append((tasks.facts(1, seeds.generator(0, "t", i))["task"][0], one))
    return found


def rows(batch) -> list[int]:
    return [int(v) for v in batch.x.flatten()]


def test_rows_are_of_one_group_and_never_in_both_sets():
    tasks = values()
    bounds = {name: (int(a), int(b)) for name, a, b in zip(tasks.names, tasks.starts, tasks.starts[1:], strict=False)}
    seen = set()
    for name, (support, query) in drawn(tasks):
        seen.add(name)
        start, end = bounds[name]
        taken = rows(support) + rows(query)
        assert all(start <= row < end for row in taken)
        assert len(set(taken)) == len(taken)
        assert len(support.y) == 3
        assert len(query.y) == (4 if name != "small" else 1)  # four rows: three to learn from, one is asked for
        assert torch.equal(support.y, 10 * support.x) and torch.equal(query.y, 10 * query.x)
    assert seen == {"big", "small", "other"}  # a single row is no task


def test_each_usable_group_is_drawn_as_often():
    names = [name for name, _ in drawn(values(), 600)]
    for name in ("big", "small", "other"):
        assert 150 < names.count(name) < 250


def test_rows_in_time_are_shown_before_they_are_asked_for():
    starts = set()
    for _, (support, query) in drawn(values(ordered=True)):
        shown, asked = rows(support), rows(query)
        assert shown == list(range(shown[0], shown[0] + len(shown)))
        assert asked == list(range(shown[-1] + 1, shown[-1] + 1 + len(asked)))
        starts.add(shown[0])
    assert len(starts) > 5  # at different moments


def test_classes_a_group_lacks_are_not_in_its_task():
    for name, (support, query) in drawn(classes()):
        present = [0, 1, 2] if name == "all" else [0, 2]
        assert name != "one"
        assert support.y.bincount(minlength=3).tolist() == [2 * (k in present) for k in range(3)]
        assert query.y.bincount(minlength=3).tolist() == [2 * (k in present) for k in range(3)]


def test_tasks_that_all_lack_a_class_are_answered_in_their_own_ways():
    """Prototypes of a class nobody has would be 0 / 0."""
    tasks = classes()
    lacking = tasks.replace(y=tasks.y.where(tasks.y < 2, 1))  # of a, b and c no group has c
    trained = qs.Trained(qs.NearestCentroid(3), {})
    score = qs.evaluate(trained, lacking, episodes=30, controls=["shuffled_labels"])
    for i in range(30):
        support, query = episodes.unstack(lacking.sample(1, seeds.generator(1, "test", i)))[0]
        means = torch.stack([support.x[support.y == k].mean(0) for k in (0, 1)])
        answers = (query.x - means[None, :, 0]).abs().argmin(1)
        assert score.values[i] == (answers == query.y).double().mean()
    learner = qs.ProtoNet(torch.nn.Linear(1, 2), ways=3)
    loss, slope = qs.meta_gradient(learner, learner.init(), lacking.sample(4, seeds.generator(0, "x")), "vmap")
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in slope.values())


def test_classes_in_time_are_asked_for_once_they_were_shown():
    for _, (support, query) in drawn(classes(ordered=True)):
        assert max(rows(support)) < min(rows(query))
        assert set(query.y.tolist()) <= set(support.y.tolist())
        assert len(support.y.unique()) >= 2 and len(query.y) >= 1
        assert int(support.y.bincount().max()) <= 2 and int(query.y.bincount().max()) <= 2


def test_a_class_that_never_comes_again_makes_no_moment():
    # a, a, b, c: after two classes were shown nothing of theirs is left to ask for
    tasks = qs.tasks.GroupTasks(
        torch.zeros(8, 1), torch.tensor([0, 0, 1, 2, 0, 1, 0, 1]), torch.tensor([0, 4, 8]), ["never", "again"],
        classes=("a", "b", "c"), ordered=True,
    )  # fmt: skip
    assert tasks.usable == [1]


def test_a_batch_of_unequal_tasks_is_a_list_and_of_equal_ones_is_stacked():
    assert isinstance(values().sample(30, seeds.generator(0, "x")), list)
    even = values(shots=2, queries=2)
    assert isinstance(even.sample(30, seeds.generator(0, "x")), qs.Episode)


def test_too_small_groups_and_settings_are_refused():
    with pytest.raises(DataError, match="none of its 2 groups has two rows"):
        qs.tasks.GroupTasks(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 1, 2]), ["a", "b"])
    with pytest.raises(DataError, match="shots must be at least 1, got 0"):
        values(shots=0)


def test_a_score_counts_each_task_once():
    tasks = values()
    trained = qs.train(
        qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=1e-6), tasks, iterations=1, meta_batch=2, progress=False
    )
    score = qs.evaluate(trained, tasks, episodes=40)
    names = [tasks.facts(1, seeds.generator(1, "test", i))["task"][0] for i in range(40)]
    assert score.tasks == tuple(names)
    means = {name: score.values[[n == name for n in names]].mean() for name in set(names)}
    assert score.mean == pytest.approx(float(torch.stack(list(means.values())).mean()))
    assert "over 3 tasks, 40 episodes" in str(score)
    again = qs.evaluation.Score.from_dict(score.to_dict())
    assert again.tasks == score.tasks and again.interval == pytest.approx(score.interval, rel=1e-6)
    # Three tasks, however many episodes: the interval is over three numbers.
    three = torch.stack([means[n] for n in sorted(means)])
    assert score.ends == pytest.approx(mean_interval(three, qs.Metric.ERROR), rel=1e-9)


def test_differences_are_over_tasks_too():
    a = qs.evaluation.Score(torch.tensor([1.0, 1.0, 0.0]).double(), _protocol(), tasks=("x", "x", "y"))
    b = qs.evaluation.Score(torch.tensor([0.0, 0.0, 1.0]).double(), _protocol(), tasks=("x", "x", "y"))
    found = qs.evaluation.compare(a, b)
    assert found.mean == 0.0  # +1 on x, -1 on y; over episodes it would be 1/3
    assert not found.decided


def _protocol() -> qs.Protocol:
    return qs.Protocol("L", "t", "test", None, 1, 1, "mean squared error", 3, 1, False, "none")


def test_errors_are_told_in_the_answers_own_unit():
    plain, scaled = values(), values(unit=5.0)
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=1e-6)
    trained = qs.train(learner, plain, iterations=1, meta_batch=2, progress=False)
    one, other = (qs.evaluate(trained, tasks, episodes=5, controls=["linear_probe"]) for tasks in (plain, scaled))
    assert_close(other.values, 25 * one.values, 1e-12)
    assert_close(other.controls["linear_probe"].values, 25 * one.controls["linear_probe"].values, 1e-12)
