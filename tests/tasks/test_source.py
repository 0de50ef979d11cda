"""What a task source declares, and what holds where it says nothing."""

from dataclasses import dataclass

import pytest
import torch
from problems import clusters, random_episodes

import quickstudy as qs
from quickstudy.episodes import Episodes, count
from quickstudy.tasks.changed import ChangedSupport, shuffled, without_support
from quickstudy.tasks.source import Source, describe, source_of


class Bare:
    """The least that a task source can be."""

    def sample(self, n, generator=None) -> Episodes:
        return random_episodes(n, seed=int(torch.randint(1000, (), generator=generator)))


@dataclass(frozen=True)
class Rollouts:
    """Episodes that depend on what acts in them."""

    on_policy: bool = True

    def sample(self, n, generator=None, *, learner, theta) -> Episodes:
        episodes = random_episodes(n)
        return episodes._replace(query=episodes.query._replace(x=episodes.query.x * 0 + theta["w"] + learner.level))


@dataclass(frozen=True)
class Actor:
    level: float = 100.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_source_that_declares_nothing_has_every_default():
    source = source_of(Bare())
    assert source.ways is None and source.unit == 1.0 and source.on_policy is False
    assert source.preprocess == {} and tuple(source.notes) == () and tuple(source.groups) == ()
    assert source.extractor is None and source.text_encoder is None
    assert source.describe() == {"name": "Bare"} == describe(Bare())
    assert source.facts(2, seeded()) == {} and source.told(seeded()) == {}
    assert source.replace(shots=3) is None
    assert source.pooled() is source and source_of(source) is source


def test_a_share_of_a_source_without_one_is_a_part_of_all():
    source = source_of(Bare())
    all_of_them, some = source.sample(4, seeded()), source.share(4, range(1, 3), seeded())
    assert count(some) == 2 and torch.equal(some.query.x, all_of_them.query.x[1:3])


def test_what_a_source_declares_is_handed_on():
    tasks = clusters()
    source = source_of(tasks)
    assert source.ways == tasks.ways == 3
    assert source.describe() == tasks.describe()
    assert source.told(seeded()) == tasks.told(seeded())
    replaced, pooled = source.replace(ways=2), source.pooled()
    assert isinstance(replaced, Source) and replaced.ways == 2
    assert isinstance(pooled, Source) and pooled.describe()["pooled"]
    assert torch.equal(source.share(3, range(2), seeded()).query.x, tasks.share(3, range(2), seeded()).query.x)
    waves = source_of(qs.tasks.sinusoid())
    assert waves.ways is None and set(waves.facts(2, seeded())) == {"amplitude", "phase"}


def test_an_on_policy_source_is_given_learner_and_theta_at_each_draw():
    source = source_of(Rollouts())
    for w in (1.0, 2.0):
        drawn = source.draw(2, seeded(), Actor(), {"w": torch.tensor(w)})
        assert (drawn.query.x == 100 + w).all()


def test_others_are_drawn_without_them():
    source = source_of(Bare())
    drawn = source.draw(2, seeded(), Actor(), {})
    assert torch.equal(drawn.query.x, source.sample(2, seeded()).query.x)


def test_a_changed_support_set_leaves_the_declarations_as_they_are():
    for tasks in (clusters(), Bare()):
        changed, source = source_of(ChangedSupport(tasks, shuffled)), source_of(tasks)
        assert changed.ways == source.ways and changed.unit == source.unit
        assert changed.describe() == source.describe() and changed.facts(1, seeded()) == source.facts(1, seeded())
    rollouts = source_of(ChangedSupport(Rollouts(), without_support))
    assert rollouts.on_policy
    drawn = rollouts.draw(2, seeded(), Actor(), {"w": torch.tensor(3.0)})
    assert (drawn.query.x == 103).all() and drawn.support.y.shape == (2, 0)


def test_a_changed_support_set_of_several_targets():
    support = qs.Batch(torch.arange(6.0), {"class": torch.arange(6), "value": torch.arange(6.0)[:, None]})
    mixed = shuffled(support, seeded())
    assert torch.equal(mixed.y["class"].float(), mixed.y["value"][:, 0])  # the targets of an example stay together
    assert sorted(mixed.y["class"].tolist()) == list(range(6)) != mixed.y["class"].tolist()
    assert without_support(support, None).y["value"].shape == (0, 1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_source_of_ours_is_a_plain_frozen_value(split):
    with pytest.raises(AttributeError):
        clusters(split=split).ways = 4
