"""Layers that draw at random: inside a meta-loss and nowhere else."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import clusters, random_episodes
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.engine import mapping
from quickstudy.learner import Episode, training
from quickstudy.nn import model

pytestmark = pytest.mark.usefixtures("double")


class Own(nn.Module):
    """A layer of the user's that draws in training mode."""

    draws = True

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, None], x[:, None], x[:, None], need_weights=False)[0][:, 0]


DRAWING = {
    "dropout": lambda: nn.Dropout(0.5),
    "attention": Attention,
    "leaky": nn.RReLU,
    "lstm": lambda: Net(nn.LSTM(4, 4, 2, dropout=0.5)),
    "own": Own,
}


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def drawing(name: str) -> qs.MAML:
    return qs.MAML(nn.Sequential(nn.Linear(4, 4), DRAWING[name](), nn.Linear(4, 3)), lr=0.3, steps=1)


def one_episode() -> Episode:
    return mapping.unstack(random_episodes(1))[0]


def drew(function: Any) -> bool:
    return seeds.watching_generator(function)[1]


@pytest.mark.parametrize("name", DRAWING)
def test_a_meta_loss_draws_and_an_answer_does_not(name):
    learner, episode = drawing(name), one_episode()
    theta = learner.init()
    assert drew(lambda: learner.meta_loss(theta, episode))
    assert not drew(lambda: learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x))
    assert not drew(lambda: qs.evaluate(qs.Trained(learner, theta), clusters(), episodes=2, engine="loop"))
    assert drew(lambda: learner.meta_loss(theta, episode)), "the drawing copy was changed"


@pytest.mark.parametrize("name", DRAWING)
def test_a_module_in_eval_mode_never_draws(name):
    learner, episode = drawing(name), one_episode()
    learner.model.eval()
    assert not drew(lambda: learner.meta_loss(learner.init(), episode))


def test_an_answer_without_chance_is_that_of_the_module_without_dropout():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)), torch.randn(5, 4)
    plain = nn.Sequential(net[0], nn.Identity(), net[2])
    assert torch.equal(model.call(net, {}, x), model.call(plain, {}, x))


def test_being_in_training_belongs_to_a_thread_and_ends_with_the_loss():
    seen: list[bool] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            here = [training()]
            other = threading.Thread(target=lambda: here.append(training()))
            other.start()
            other.join()
            seen.extend(here)
            return x

    learner = qs.ProtoNet(nn.Sequential(nn.Linear(4, 2), Watching()), ways=3)
    learner.meta_loss(learner.init(), one_episode())
    assert seen[:2] == [True, False] and not training()
    with pytest.raises(RuntimeError):
        learner.meta_loss(learner.init(), random_episodes(1, (5,)))
    assert not training()


def test_the_two_copies_of_a_model_share_their_tensors():
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    own = model.own_copy(net)
    assert own.module is not own.still
    assert all(a is b for a, b in zip(own.module.parameters(), own.still.parameters(), strict=True))
