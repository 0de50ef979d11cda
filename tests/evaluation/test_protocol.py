"""What a number was measured under, and which numbers may stand beside each other."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from problems import clusters, smooth_conv
from torch import nn

import quickstudy as qs
from quickstudy import learner
from quickstudy.engine import fitting
from quickstudy.errors import ProtocolError
from quickstudy.evaluation import protocol
from quickstudy.evaluation.scoring import protocol_of
from quickstudy.learner import Batch, Episode

PLAIN = qs.Protocol(
    learner="MAML",
    tasks="glyphs",
    split="test",
    ways=5,
    shots=1,
    queries=15,
    metric="accuracy",
    episodes=600,
    seed=1,
    transductive=False,
    normalisation="none",
)
OTHER_VALUES = {
    "tasks": "omniglot",
    "split": "val",
    "ways": 20,
    "shots": 5,
    "queries": 1,
    "metric": "mean squared error",
    "episodes": 100,
    "seed": 2,
    "transductive": True,
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_each_field_of_the_measurement_forbids_a_comparison_by_name(name):
    other = dataclasses.replace(PLAIN, **{name: OTHER_VALUES[name]})
    with pytest.raises(ProtocolError, match=f"{name}: {getattr(PLAIN, name)!r} against {OTHER_VALUES[name]!r}"):
        protocol.require_same(PLAIN, other)
    protocol.require_same(PLAIN, other, allow=(name,))
    assert protocol.differences(PLAIN, other) == {name: (getattr(PLAIN, name), OTHER_VALUES[name])}


def test_every_field_is_either_the_measurements_or_the_learners():
    """A new field has to be put on one side; `control` says what was taken away from either."""
    fields = {f.name for f in dataclasses.fields(qs.Protocol)}
    assert fields == {*OTHER_VALUES, *protocol.OF_THE_LEARNER, "control"}


@pytest.mark.parametrize(
    ("name", "value"), [("learner", "ProtoNet"), ("steps", 3), ("normalisation", "layer"), ("control", "x")]
)
def test_what_belongs_to_the_learner_may_differ(name, value):
    protocol.require_same(PLAIN, dataclasses.replace(PLAIN, **{name: value}))


def test_all_differences_are_named_at_once():
    with pytest.raises(ProtocolError, match=r"shots: 1 against 5; seed: 1 against 2"):
        protocol.require_same(PLAIN, dataclasses.replace(PLAIN, shots=5, seed=2))


def test_a_lone_difference_in_transduction_says_how_to_allow_it():
    transductive = dataclasses.replace(PLAIN, transductive=True)
    with pytest.raises(ProtocolError, match=r"allow=\('transductive',\)"):
        protocol.require_same(PLAIN, transductive)
    protocol.require_same(PLAIN, transductive, allow=("transductive",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "5-way 1-shot, no norm"),
        ({"ways": None, "shots": 10}, "10-shot, no norm"),
        ({"transductive": True, "normalisation": "batch"}, "5-way 1-shot, transductive batch norm"),
        ({"normalisation": "support", "steps": 1}, "5-way 1-shot, support norm, 1 inner step"),
        ({"normalisation": "running", "steps": 3}, "5-way 1-shot, running batch norm, 3 inner steps"),
        ({"steps": 0}, "5-way 1-shot, no norm, 0 inner steps"),
        (
            {"ensemble": 5, "control": "shuffled_labels"},
            "5-way 1-shot, no norm, ensemble of 5, control: shuffled_labels",
        ),
    ],
)
def test_a_protocol_in_words(changes, words):
    assert dataclasses.replace(PLAIN, **changes).describe() == words


def test_a_protocol_survives_json():
    full = dataclasses.replace(PLAIN, ways=None, steps=3, ensemble=2, control="zero_steps")
    assert qs.Protocol(**json.loads(json.dumps(full.to_dict()))) == full


def test_the_protocol_of_a_measurement_says_what_was_done():
    learner = qs.MAML(smooth_conv("support"), steps=4)
    tasks = clusters((1, 6, 6), queries=7)
    sizes = {"ways": 3, "shots": 2, "queries": 7, "episodes": 50, "seed": 3}
    done = {"tasks": "clusters", "split": "train", "normalisation": "support", "steps": 4, "control": "zero_steps"}
    measured = protocol_of(learner, tasks, "accuracy", 50, 3, "zero_steps")
    assert measured == dataclasses.replace(PLAIN, **sizes, **done)


def test_a_source_that_describes_nothing_is_named_by_its_type():
    class Mine:
        def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
            one = Batch(torch.zeros(n, 2, 1), torch.zeros(n, 2, 1))
            return Episode(one, one)

    found = protocol_of(qs.NearestCentroid(2), Mine(), "accuracy", 1, 0)
    assert (found.tasks, found.split, found.ways) == ("Mine", "unknown", None)


# --- normalisation of a learner --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learner", "kind"),
    [
        (qs.MAML(smooth_conv("batch")), "batch"),
        (qs.MAML(smooth_conv("support")), "support"),
        (qs.ProtoNet(smooth_conv("layer", None)), "layer"),
        (qs.FineTune(smooth_conv("none")), "none"),
        (qs.NearestCentroid(), "none"),
        (qs.MAML(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))), "batch"),
        (qs.MAML(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).eval()), "running"),
        (qs.MAML(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 3)).eval()), "batch"),
    ],
)
def test_only_batch_statistics_are_transductive(learner, kind):
    assert fitting.normalisation_of(learner) == kind
    assert fitting.is_transductive(learner) == (kind == "batch")


def test_the_networks_of_a_learner_are_its_fields():
    net = smooth_conv("none")
    assert learner.networks(qs.MAML(net)) == {"model": net}
    assert learner.networks(qs.ProtoNet(net)) == {"encoder": net}
    assert learner.networks(qs.NearestCentroid()) == {}


def test_what_belongs_to_the_learner_is_all_but_the_sizes_of_the_tasks():
    protocol = qs.Protocol("MAML", "glyphs", "test", 5, 1, 15, "accuracy", 600, 1, True, "batch", steps=3, ensemble=2)
    assert protocol.of_the_learner == ["transductive batch norm", "3 inner steps", "ensemble of 2"]
    assert protocol.describe() == "5-way 1-shot, transductive batch norm, 3 inner steps, ensemble of 2"
