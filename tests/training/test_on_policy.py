"""Tasks that depend on the policy are drawn with the learner and theta of their moment; all others ahead of time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

import quickstudy as qs
from quickstudy.engine import ranks
from quickstudy.training.loop import meta_steps


@dataclass(frozen=True, eq=False)
class Rollouts:
    """A toy on-policy source: where an episode's inputs lie depends on theta, and on actions from torch's generator."""

    on_policy = True
    seen: list = field(default_factory=list)  # (learner, theta) of every draw

    def sample(self, n, generator=None, *, learner, theta):
        self.seen.append((learner, {name: value.clone() for name, value in theta.items()}))
        x = torch.randn(n, 8, 1, generator=generator) + theta["weight"] + torch.rand(())
        y = 2 * x + torch.randn(n, 1, 1, generator=generator)
        return qs.Episode(qs.Batch(x[:, :4], y[:, :4]), qs.Batch(x[:, 4:], y[:, 4:]))


class Ordinary:
    """The same without a policy; counts its draws."""

    def __init__(self):
        self.draws = 0

    def sample(self, n, generator=None):
        self.draws += 1
        x = torch.randn(n, 8, 1, generator=generator)
        return qs.Episode(qs.Batch(x[:, :4], x[:, :4]), qs.Batch(x[:, 4:], x[:, 4:]))


def maml() -> qs.MAML:
    torch.manual_seed(0)
    return qs.MAML(torch.nn.Linear(1, 1), loss=F.mse_loss, lr=0.01)


def steps(tasks, iterations=4):
    """The steps, the learner, and the live theta."""
    learner = maml()
    theta = {name: value.clone() for name, value in learner.init().items()}
    optimizer = torch.optim.SGD(theta.values(), lr=0.1)
    return meta_steps(learner, theta, tasks, optimizer, iterations=iterations, meta_batch=3), learner, theta


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_draw_has_the_theta_after_the_update_and_none_is_ahead():
    tasks = Rollouts()
    run, learner, theta = steps(tasks)
    before = {name: value.clone() for name, value in theta.items()}
    for step in run:
        time.sleep(0.02)  # a draw in the background would have come by now
        assert len(tasks.seen) == step.iteration
        acting, seen = tasks.seen[-1]
        assert acting is learner and same(seen, before)
        assert not same(theta, before)
        before = {name: value.clone() for name, value in theta.items()}


def test_a_learner_that_changes_acts_as_it_trains_at_that_moment():
    torch.manual_seed(0)
    learner, tasks = qs.MAMLPlusPlus(torch.nn.Linear(1, 1), loss=F.mse_loss, steps=2), Rollouts()
    qs.train(learner, tasks, iterations=4, meta_batch=2, engine="loop", progress=False)
    progress = [acting.progress for acting, _ in tasks.seen]
    assert progress == [0.0, 0.0, 0.25, 0.5, 0.75]  # the first draw is only for checks and the choice of an engine


def test_other_tasks_are_drawn_while_the_iteration_computes():
    tasks = Ordinary()
    run, *_ = steps(tasks)
    next(run)
    deadline = time.monotonic() + 10
    while tasks.draws < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert tasks.draws == 2, "the second iteration's tasks were not drawn ahead"
    run.close()


def test_a_resumed_run_repeats_the_rollouts(tmp_path):
    def train(iterations, out, **more):
        settings = {"meta_batch": 3, "seed": 5, "engine": "loop", "progress": False}
        return qs.train(maml(), Rollouts(), iterations=iterations, out=out, **settings, **more).theta

    torch.manual_seed(1)
    whole = train(6, tmp_path / "whole")
    torch.manual_seed(2)  # what was drawn before does not matter
    train(3, tmp_path / "cut")
    assert same(train(6, tmp_path / "cut", resume=True), whole)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_what_one_process_draws(monkeypatch, size):
    tasks, learner = Rollouts(), maml()
    theta = learner.init()

    def draw():
        torch.manual_seed(4)
        return ranks.draw(tasks, 5, torch.Generator().manual_seed(3), learner, theta)

    whole, parts = draw(), []
    monkeypatch.setattr(ranks, "size", lambda: size)
    for rank in range(size):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(draw())
    assert torch.equal(torch.cat([part.query.x for part in parts]), whole.query.x)
    assert [len(part.query.x) for part in parts] == [len(range(5)[rank::size]) for rank in range(size)]
