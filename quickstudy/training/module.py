"""A learner as an `nn.Module`, for people who bring their own loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quickstudy.episodes import unstack
from quickstudy.learner import Episode, Learner, Theta


def as_module(learner: Learner) -> nn.Module:
    """An `nn.Module` whose parameters are theta and whose `forward(episode)` is the meta-loss.

    Use it with your own training loop, Lightning, Accelerate or DistributedDataParallel. `forward(episode)` takes one
    episode; `forward(episodes, batched=True)` takes a batch of episodes and returns their mean loss.
    """
    return _LearnerModule(learner)


class _LearnerModule(nn.Module):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        # theta's keys contain dots, which names of module attributes must not: keep names and values in separate lists.
        theta = learner.init()
        self.names = tuple(theta)
        self.values = nn.ParameterList(nn.Parameter(value) for value in theta.values())

    def theta(self) -> Theta:
        return dict(zip(self.names, self.values, strict=True))

    def forward(self, episode: Episode, batched: bool = False) -> Tensor:
        if not batched:
            return self.learner.meta_loss(self.theta(), episode)
        return torch.stack([self.learner.meta_loss(self.theta(), one) for one in unstack(episode)]).mean()
