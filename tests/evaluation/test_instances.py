"""Accuracy at the n-th instance of a class: what is possible, what is measured, and what a leak looks like."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch
from problems import clusters
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.errors import ConfigError, DataError
from quickstudy.evaluation.measures.instances import in_words, stream_accuracy
from quickstudy.learner import Batch, Learner
from quickstudy.report.sections.instances import conclusion

WAYS = 3


@dataclass(frozen=True, eq=False)
class Stub(Learner):
    """A learner that only answers streams, as `answer(x, y)` says; theta is a number that nobody uses."""

    ways: int = WAYS

    def init(self):
        return {"unused": torch.zeros(1)}

    def adapt(self, theta, support):
        return theta

    def predict(self, theta, phi, x):
        return torch.zeros(len(x), self.ways)

    def meta_loss(self, theta, episode):
        return theta["unused"].sum()

    def stream(self, theta, batch) -> Tensor:
        return self.answer(*batch)

    def answer(self, x, y):
        raise NotImplementedError


class Excluding(Stub):
    """Knows every class that it has seen; among the others it guesses. The most that is possible."""

    def answer(self, x, y):
        before = torch.tril(torch.ones(len(y), len(y)), -1)
        kinds = torch.nn.functional.one_hot(y, self.ways).float()
        seen = (before @ kinds).clamp(max=1)
        # Generators of the examples themselves: the guess is random, but knows nothing of the label.
        guess = torch.frac(1e4 * x.sum(1, keepdim=True) * torch.arange(1, self.ways + 1)).abs()
        nearest = ((torch.cdist(x, x) < 0.2).float() * before) @ kinds
        return 10 * nearest + (1 - seen) * (1 + guess)


class Leaking(Excluding):
    """The same, but now and then it has seen the label."""

    def answer(self, x, y):
        peeks = (torch.frac(1e3 * x.sum(1)).abs() < 0.3).float()[:, None]
        return super().answer(x, y) + 100 * peeks * torch.nn.functional.one_hot(y, self.ways)


def measured(learner, episodes=300, **fields):
    tasks = clusters(classes=12, each=10, spread=0.01, ways=WAYS)
    return qs.instance_accuracy(
        qs.Trained(learner, learner.init()),
        tasks,
        **{"instances": (1, 2, 4)} | fields,
        episodes=episodes,
        engine="vmap",
    )


def test_the_most_that_is_possible_is_reached_by_excluding_and_is_no_leak():
    found = measured(Excluding())
    assert found.by_exclusion == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert abs(found[1].mean - found.by_exclusion) < 1.5 * found[1].interval
    assert abs(found.first.mean - found.chance) < 1.5 * found.first.interval
    assert found[2].mean == found[4].mean == 1.0
    assert not found.leaks and "SEEN LABELS" not in str(found)


def test_a_leak_is_found():
    found = measured(Leaking())
    assert found.leaks and "SEEN LABELS" in str(found)


def test_an_instance_is_counted_within_its_class():
    class Always(Stub):
        def answer(self, x, y):
            return torch.tensor([[0.0, 1.0]]).repeat(len(y), 1)

    batch = Batch(torch.zeros(6, 1), torch.tensor([1, 0, 1, 1, 0, 0]))
    assert stream_accuracy(Always(2), {}, batch, (1, 2, 3)).tolist() == [1.0, 0.5, 0.5, 0.5]


def test_the_first_example_is_at_chance_untrained_and_trained_and_later_ones_are_not():
    learner = qs.SNAIL(nn.Flatten(), 4, ways=WAYS, length=15, causal_filters=16, objective="stream")
    sizes = {"classes": 60, "each": 6, "spread": 0.1, "ways": WAYS, "shots": 1, "queries": 4}
    tasks, test = (clusters(**sizes, seed=seed) for seed in (0, 1))
    settings = {"meta_batch": 16, "engine": "vmap", "progress": False, "clip": 1.0}
    trained = qs.train(learner, tasks, iterations=150, optimizer=lambda v: torch.optim.Adam(v, 3e-3), **settings)
    for one in (qs.Trained(learner, learner.init()), trained):
        found = qs.instance_accuracy(one, test, instances=(1, 2, 5), episodes=400, engine="vmap")
        assert abs(found.first.mean - found.chance) < 1.5 * found.first.interval
        assert found[1].mean < found.by_exclusion + 1.5 * found[1].interval
        assert not found.leaks
    for n in (2, 5):
        assert found[n].mean - found[n].interval > found.by_exclusion + 0.1


def test_it_comes_back_from_plain_values_and_can_be_drawn(tmp_path):
    found = measured(Excluding(), episodes=10)
    again = qs.InstanceAccuracy.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found and str(again) == str(found)
    assert in_words(found[2]) in str(found)
    found.plot(tmp_path / "instances.svg")
    assert "instance 4" in (tmp_path / "instances.svg").read_text()
    with pytest.raises(KeyError):
        found[3]


def test_streams_follow_from_the_seed_alone():
    one, two = (measured(Excluding(), episodes=n).first for n in (30, 30))
    assert one == two
    assert measured(Excluding(), episodes=30, seed=2).first != one or measured(Excluding(), 30, seed=3).first != one


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instances": ()}, "different numbers from 1"),
        ({"instances": (0, 1)}, "different numbers from 1"),
        ({"instances": (2, 2)}, "different numbers from 1"),
        ({"episodes": 0}, "at least 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ConfigError, match=message):
        measured(Excluding(), **fields)


def test_what_cannot_be_asked_is_refused():
    net = qs.ProtoNet(nn.Flatten(), ways=WAYS)
    with pytest.raises(ConfigError, match="does not read streams"):
        qs.instance_accuracy(qs.Trained(net, {}), clusters())
    waves = qs.MetaRNN(qs.nn.mlp(1), 40, loss=qs.mse_loss, ways=None)
    with pytest.raises(ConfigError, match="classification"):
        qs.instance_accuracy(qs.Trained(waves, waves.init()), qs.tasks.sinusoid("test"))
    with pytest.raises(DataError, match="examples"):
        measured(Excluding(), instances=(1, 11))
    source = dataclasses.make_dataclass("Source", ["ways", "sample"])(WAYS, clusters().sample)
    with pytest.raises(DataError, match="instance 5 was asked for"):
        qs.instance_accuracy(qs.Trained(Excluding(), Excluding().init()), source, instances=(5,))


class Listening(Stub):
    """Keeps the labels of the streams that it is given, in their order."""

    def answer(self, x, y):
        HEARD.append(tuple(y.tolist()))
        return torch.zeros(len(y), self.ways)


HEARD: list[tuple[int, ...]] = []


def test_each_stream_has_an_order_of_its_own_that_follows_from_the_seed():
    """In the order of the episodes, class by class, the first of a class would always come after all of another."""

    def orders(seed: int) -> list[tuple[int, ...]]:
        HEARD.clear()
        tasks = clusters(classes=12, each=10, ways=WAYS)
        learner = Listening()
        qs.instance_accuracy(
            qs.Trained(learner, learner.init()), tasks, instances=(1, 2, 4), episodes=20, seed=seed, engine="loop"
        )
        return list(dict.fromkeys(HEARD))

    first = orders(1)
    assert len(first) > 15 and all(sorted(order) == [0] * 4 + [1] * 4 + [2] * 4 for order in first)
    assert len({order[0] for order in first}) == WAYS
    assert orders(1) == first != orders(2)


def test_the_conclusion_goes_from_the_first_instance_to_the_last_whatever_the_order_they_are_asked_in():
    rising, falling = (measured(Excluding(), episodes=10, instances=order) for order in ((1, 2, 4), (4, 1, 2)))
    assert rising == falling and rising.instances == (1, 2, 4)
    earlier = dataclasses.replace(
        rising, instances=rising.instances[::-1], amounts=rising.amounts[::-1]
    )  # as a file may hold it
    assert conclusion(earlier) == conclusion(rising)
