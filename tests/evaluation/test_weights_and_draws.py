"""What an evaluation must not lean on: the weights that lie in a learner's network, and torch's random state."""

from __future__ import annotations

import pytest
import torch
from problems import clusters
from torch import nn

import quickstudy as qs


@pytest.mark.parametrize("kind", ["maml", "protonet"])
def test_training_from_scratch_begins_with_new_weights(kind):
    """NaN in the network itself, beside a sound theta: a control that began there would diverge and be left out."""
    model = qs.nn.mlp(4, 3 if kind == "maml" else None, hidden=(8,))
    learner = qs.MAML(model, lr=0.1) if kind == "maml" else qs.ProtoNet(model, ways=3)
    trained = qs.Trained(learner, learner.init())
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(torch.nan)
    score = qs.evaluate(trained, clusters(), episodes=10, controls=["from_scratch"], engine="loop")
    assert score.controls["from_scratch"].mean > 0.6


def test_a_learner_that_draws_while_it_adapts_has_one_score():
    """Reptile draws minibatches of the support set: they follow from the seed of the test, not from the caller."""
    torch.manual_seed(0)
    learner = qs.Reptile(nn.Linear(4, 3), lr=0.5, steps=3, batch=2, rule="sgd")
    trained = qs.Trained(learner, learner.init())
    tasks = clusters(spread=1.5, queries=10)
    scores = []
    for state in (1, 2):
        torch.manual_seed(state)
        scores.append(qs.evaluate(trained, tasks, episodes=30, engine="loop").values)
    assert torch.equal(*scores)
    assert not torch.equal(scores[0], qs.evaluate(trained, tasks, episodes=30, seed=2, engine="loop").values)
