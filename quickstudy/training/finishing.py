"""The pass over the training examples, or some training tasks, with which some learners end their training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from quickstudy.base import seeds, trees
from quickstudy.engine.fitting import device_of
from quickstudy.episodes import unstack
from quickstudy.learner import Batch, Theta, offers
from quickstudy.training.opening import Session

FEW = 10  # blocks of examples, or tasks, that a validation makes do with
TASKS = 200  # of an episodic learner at the end of training


def finished(session: Session, theta: Theta, few: bool = False) -> Theta:
    """`learner.finish(theta, examples)` on the training examples; for an episodic learner on support sets of tasks.

    `few`: on FEW of them. The result depends on theta and the seed alone, so a resumed run gives what an uninterrupted
    one gives.
    """
    if not offers(session.learner, "finish"):
        return theta
    device = device_of(theta)
    with torch.no_grad():
        return session.learner.finish(theta, (_on(device, batch) for batch in _examples(session, theta, few)))


def _examples(session: Session, theta: Theta, few: bool) -> Iterator[Batch]:
    generator = seeds.generator(session.settings.seed, "finish")
    if not session.learner.episodic:
        return islice(session.source.pooled().once(generator), FEW if few else None)
    drawn = (session.source.draw(1, generator, session.learner, theta) for _ in range(FEW if few else TASKS))
    return (episode.support for batch in drawn for episode in unstack(batch))


def _on(device: torch.device, batch: Batch) -> Batch:
    return Batch(*(trees.mapped(lambda t: t.to(device), part) for part in batch))
