"""The pass over the training examples with which some learners end their training."""

from __future__ import annotations

from itertools import islice

import torch

from quickstudy.base import seeds, trees
from quickstudy.engine.fitting import device_of
from quickstudy.learner import Batch, Theta, offers
from quickstudy.training.opening import Session

FEW = 10  # blocks of examples that a validation makes do with


def finished(session: Session, theta: Theta, blocks: int | None = None) -> Theta:
    """`learner.finish(theta, examples)` on the training examples, or on the first `blocks` blocks of them.

    It depends on theta and the seed alone, so a resumed run gives what an uninterrupted one gives.
    """
    if not offers(session.learner, "finish"):
        return theta
    device, generator = device_of(theta), seeds.generator(session.settings.seed, "finish")
    examples = islice(session.source.pooled().once(generator), blocks)
    with torch.no_grad():
        return session.learner.finish(theta, (_on(device, batch) for batch in examples))


def _on(device: torch.device, batch: Batch) -> Batch:
    return Batch(*(trees.mapped(lambda t: t.to(device), part) for part in batch))
