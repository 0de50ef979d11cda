"""Tasks that differ in size: a batch of them is a list, and every engine gives what single tasks give."""

from dataclasses import dataclass

import pytest
import torch
from problems import assert_close, cores, random_episodes
from torch import nn

import quickstudy as qs
from quickstudy import episodes
from quickstudy.base import seeds, trees
from quickstudy.engine import fitting, mapping
from quickstudy.errors import DataError
from quickstudy.learner import Batch, Episode

SIZES = [(3, 2, 2), (2, 1, 3), (3, 2, 2), (2, 4, 1), (4, 1, 1)]  # ways, shots, queries


def ragged() -> list[Episode]:
    return [
        mapping.unstack(random_episodes(1, ways=ways, shots=shots, queries=queries, seed=i))[0]
        for i, (ways, shots, queries) in enumerate(SIZES)
    ]


@dataclass(frozen=True)
class Ragged:
    """A task source of the tasks above, one after the other from a random place."""

    ways: int = 4

    def sample(self, n, generator=None):
        start = int(torch.randint(len(SIZES), (), generator=generator))
        return episodes.stack([ragged()[(start + i) % len(SIZES)] for i in range(n)], self.ways)


def protonet() -> qs.ProtoNet:
    torch.manual_seed(0)
    return qs.ProtoNet(nn.Sequential(nn.Linear(4, 5), nn.GELU()), ways=4)


def maml() -> qs.MAML:
    torch.manual_seed(0)
    return qs.MAML(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4)), lr=0.1, steps=2)


def test_equal_tasks_stack_and_others_stay_a_list():
    three = random_episodes(3)
    again = episodes.stack(mapping.unstack(three), 3)
    assert isinstance(again, Episode)
    assert all(torch.equal(a, b) for x, y in zip(again, three, strict=True) for a, b in zip(x, y, strict=True))
    assert isinstance(episodes.stack(ragged(), 4), list)
    assert episodes.count(ragged()) == 5 and episodes.count(three) == 3
    # Classes 0 and 2 of three: equal sizes, but no task of ways 0..1.
    gap = three._replace(support=three.support._replace(y=torch.tensor([[0, 0, 2, 2, 0, 2]])))
    one = Episode(*(Batch(b.x[:1], b.y[:1]) for b in gap))
    assert isinstance(episodes.stack(mapping.unstack(one), 3), list)
    # All three have the classes 0..2 of a source that has a fourth: their ways are not the source's.
    assert isinstance(episodes.stack(mapping.unstack(three), 4), list)
    values = random_episodes(2, ways=None)
    assert isinstance(episodes.stack(mapping.unstack(values), None), Episode)


def test_batches_join_to_one():
    a, b = random_episodes(2, seed=0), random_episodes(1, seed=1)
    joined = episodes.concat([a, b])
    assert isinstance(joined, Episode) and episodes.count(joined) == 3
    assert torch.equal(joined.query.x[2], b.query.x[0])
    assert episodes.count(episodes.concat([a, ragged()])) == 7
    assert isinstance(episodes.concat([a, random_episodes(1, shots=1)]), list)


@pytest.mark.parametrize("kind", ["loop", "vmap", "threads"])
@pytest.mark.parametrize("make", [protonet, maml], ids=["protonet", "maml"])
def test_the_meta_gradient_is_the_mean_of_the_tasks_own(make, kind):
    learner, tasks = make(), ragged()
    theta = learner.init()
    ones = [qs.meta_gradient(*_in_its_ways(learner, theta, task)) for task in tasks]
    with cores(2 if kind == "threads" else 1):
        loss, slope = qs.meta_gradient(learner, theta, tasks, kind)
    assert_close(loss, torch.stack([one for one, _ in ones]).mean(), 1e-6)
    for name in theta:
        assert_close(slope[name], torch.stack([g[name] for _, g in ones]).mean(0), 1e-6)


def _in_its_ways(learner, theta, task):
    """By hand: ProtoNet's ways are a task's own, MAML has four outputs whatever comes."""
    ways = int(task.support.y.max()) + 1
    fits = qs.ProtoNet(learner.encoder, ways=ways) if isinstance(learner, qs.ProtoNet) else learner
    return fits, theta, Episode(*(Batch(b.x[None], b.y[None]) for b in task))


@pytest.mark.parametrize("kind", ["loop", "vmap", "threads"])
def test_results_come_back_in_the_order_of_the_tasks(kind):
    with cores(2 if kind == "threads" else 1):
        sums = mapping.map_learner(lambda learner, e: e.query.x.sum(), protonet(), ragged(), kind)
        ways = mapping.map_learner(lambda learner, e: torch.tensor(learner.ways), protonet(), ragged(), kind)
    assert_close(sums, torch.stack([task.query.x.sum() for task in ragged()]), 1e-6)
    assert ways.tolist() == [ways for ways, _, _ in SIZES]


def test_classes_are_renumbered_for_learners_that_compare():
    task = ragged()[0]
    other = Episode(*(b._replace(y=torch.tensor([1, 4, 7])[b.y]) for b in task))
    learner, same = fitting.fitted(protonet(), other)
    assert learner.ways == 3
    assert torch.equal(same.support.y, task.support.y) and torch.equal(same.query.y, task.query.y)
    fixed, unchanged = fitting.fitted(maml(), other)  # has no ways: its outputs are the classes
    assert isinstance(fixed, qs.MAML) and torch.equal(unchanged.query.y, other.query.y)


def test_a_query_of_an_unseen_class_is_refused():
    task = ragged()[0]
    odd = task._replace(query=task.query._replace(y=task.query.y + 1))
    with pytest.raises(DataError, match="asks for class 3, of which its support set has no example"):
        fitting.fitted(protonet(), odd)


def test_training_and_evaluation_take_them():
    learner = protonet()
    trained = qs.train(learner, Ragged(), iterations=3, meta_batch=4, seed=0, progress=False)
    assert any(not torch.equal(value, trained.theta[name]) for name, value in learner.init().items())
    score = qs.evaluate(trained, Ragged(), episodes=10, seed=0, controls=["shuffled_labels", "nearest_centroid"])
    assert len(score.values) == 10 and set(score.controls) == {"shuffled_labels", "nearest_centroid"}
    by_hand = []
    for i in range(10):
        task = episodes.unstack(Ragged().sample(1, seeds.generator(0, "test", i)))[0]
        fits, one = fitting.fitted(learner, task)
        output = fits.predict(trained.theta, fits.adapt(trained.theta, one.support), one.query.x)
        by_hand.append((output.argmax(1) == one.query.y).double().mean())
    assert_close(score.values, torch.stack(by_hand), 1e-12)


def test_regression_of_unequal_sizes_trains_too():
    class Waves:
        def sample(self, n, generator=None):
            shots = [int(k) for k in torch.randint(2, 6, (n,), generator=generator)]
            tasks = [qs.tasks.sinusoid("train", shots=k, queries=3).sample(1, generator) for k in shots]
            return episodes.concat(tasks)

    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    trained = qs.train(learner, Waves(), iterations=2, meta_batch=3, progress=False)
    score = qs.evaluate(trained, Waves(), episodes=4)
    assert score.protocol.metric == "mean squared error" and score.protocol.ways is None


# --- nested inputs and answers ---------------------------------------------------------------------------------------


def nested(episode: Episode) -> Episode:
    """The same task with two inputs and two targets."""
    return Episode(*(Batch({"x": b.x, "sign": (b.x > 0).long()}, (b.y, b.x[..., :1])) for b in episode))


def same(a: Episode, b: Episode) -> bool:
    return episodes.tensor_sizes(a) == episodes.tensor_sizes(b) and all(
        torch.equal(x, y)
        for p, q in zip([*a.support, *a.query], [*b.support, *b.query], strict=True)
        for x, y in zip(trees.tensors(p), trees.tensors(q), strict=True)
    )


def test_batches_of_nested_tasks_are_cut_and_joined_as_plain_ones_are():
    plain = random_episodes(5)
    batch, ones = nested(plain), [nested(one) for one in episodes.unstack(plain)]
    assert episodes.count(batch) == 5
    assert all(same(a, b) for a, b in zip(episodes.unstack(batch), ones, strict=True))
    assert same(episodes.stacked(ones), batch) and same(episodes.stack(ones, None), batch)
    assert same(episodes.first_tasks(batch, 2), nested(episodes.first_tasks(plain, 2)))
    assert same(episodes.concat(list(episodes.chunks(batch, 2))), batch)
    assert isinstance(episodes.concat([batch, nested(random_episodes(1, shots=1))]), list)
    assert same(episodes.mapped(torch.neg, episodes.mapped(torch.neg, batch)), batch)
    assert not same(episodes.mapped(torch.neg, batch), batch)
    assert episodes.device_of_tasks(batch) == torch.device("cpu")
    joined = episodes.joined(ones[0])
    assert torch.equal(joined.x["sign"], torch.cat([ones[0].support.x["sign"], ones[0].query.x["sign"]]))
    assert torch.equal(episodes.examples(joined, [1, 0]).y[0], joined.y[0][[1, 0]])


def test_what_counts_as_classes():
    """One class number for each example; several targets, values, and sequences of tokens are something else."""
    plain = random_episodes(2)
    assert episodes.is_classification(plain) and episodes.is_classification(episodes.unstack(plain))
    assert not episodes.is_classification(random_episodes(2, ways=None))
    assert not episodes.is_classification(nested(plain))
    tokens = Episode(*(b._replace(y=torch.zeros(2, len(b.y[0]), 7, dtype=torch.long)) for b in plain))
    assert not episodes.is_classification(tokens) and not episodes.is_classification(episodes.unstack(tokens))
    assert episodes.class_numbers(episodes.unstack(nested(plain))[0]) == ()


def test_tasks_nested_in_another_way_are_not_computed_together():
    one = episodes.unstack(random_episodes(1))[0]
    by_name = Episode(*(Batch({"x": b.x}, b.y) for b in one))
    assert isinstance(episodes.stack([one, by_name], 3), list)
    assert len(fitting.alike(protonet(), [one, by_name, one])) == 2


def test_values_that_are_not_finite_are_named_by_their_place():
    bad = nested(random_episodes(1))
    bad.query.x["x"][0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"the query inputs \['x'\] hold NaN"):
        fitting.check_values(bad, None)
