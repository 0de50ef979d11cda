"""One meta-gradient to compute, as a value: of what, and how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quickstudy.engine import mapping
from quickstudy.engine.engines import LOOP, Engine
from quickstudy.episodes import Episodes, count, device_of_tasks
from quickstudy.learner import Learner, Theta


@dataclass(frozen=True, eq=False)
class Work:
    """A meta-gradient: its learner, where it is taken, on which tasks, and the way it is computed."""

    learner: Learner
    theta: Theta
    episodes: Episodes
    engine: Engine = LOOP
    chunk: int | None = None  # the most tasks that run together; None: all
    precision: str = "float32"  # float32 or bf16

    def gradient(self) -> tuple[Tensor, Theta]:
        """The mean meta-loss and its gradient in theta; errors as `mapping.meta_gradient`."""
        return mapping.meta_gradient(self.learner, self.theta, self.episodes, self.engine, self.chunk, self.precision)

    @property
    def tasks(self) -> int:
        return count(self.episodes)

    @property
    def together(self) -> int:
        """The most tasks that an engine which takes them together holds in memory at once."""
        return min(self.chunk or self.tasks, self.tasks)

    @property
    def device(self) -> torch.device:
        return device_of_tasks(self.episodes)
