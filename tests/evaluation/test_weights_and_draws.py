"""What an evaluation must not lean on (a network's weights, torch's random state), and what a control must share."""

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


def groups(unit: float) -> qs.tasks.GroupTasks:
    """Six groups of eight rows: a level for each, and a line."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(48, 1, generator=drawn)
    y = x + torch.randn(6, generator=drawn).repeat_interleave(8)[:, None]
    names = [f"group {i}" for i in range(6)]
    return qs.tasks.GroupTasks(x, y, torch.arange(0, 49, 8), names, shots=4, queries=4, unit=unit)


def test_a_control_is_told_in_the_unit_and_over_the_tasks_of_the_score():
    """Errors are squares: in a unit of 10 all are a hundred times as large, also with the support answers shuffled."""
    torch.manual_seed(0)
    learner = qs.MAML(nn.Linear(1, 1), loss=qs.mse_loss, lr=0.1, steps=3)
    trained = qs.Trained(learner, learner.init())
    one, ten = (
        qs.evaluate(trained, groups(unit), episodes=20, controls=["shuffled_labels"], engine="loop")
        for unit in (1.0, 10.0)
    )
    for a, b in ((one, ten), (one.controls["shuffled_labels"], ten.controls["shuffled_labels"])):
        torch.testing.assert_close(b.values, 100 * a.values)
    control = one.controls["shuffled_labels"]
    assert control.tasks == one.tasks and len(set(one.tasks)) > 2
    places = {name: [i for i, task in enumerate(one.tasks) if task == name] for name in set(one.tasks)}
    means = [control.values[of_task].mean() for of_task in places.values()]
    assert control.mean == pytest.approx(float(torch.stack(means).mean()))


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
