"""A row of a reproduction table, as plain values: one training and its tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Test:
    """The protocol of one test of a row."""

    ways: int | None
    shots: int
    queries: int
    steps: int | None = None  # inner steps, for learners that take them; None: as in training
    episodes: int = 1000
    ensemble: int = 1  # average the answers of so many of the best checkpoints
    controls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One training and its tests."""

    name: str
    learner: str
    sizes: tuple[int | None, int, int]  # ways, shots, queries in training
    iterations: int
    meta_batch: int
    tests: Sequence[Test]
    fields: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None  # outer learning rate; None: the learner's own, which mostly is 1e-3
    schedule: str | None = "cosine"  # schedule of the outer rate; None: the learner's own outer loop
    seed: int = 0
    keep: int = 1  # keep so many of the best checkpoints; more than one trains with validation
    movement: bool = False  # measure how far each layer moves
    instances: tuple[int, ...] = ()  # accuracy at these instances of a class in a stream
    clip: float | None = None  # largest norm of the meta-gradient
    features: str = ""  # an earlier row whose frozen encoder makes the input features
    published: str = ""  # the paper's number, under the paper's protocol
    differs: str = ""  # differences from the paper

    def settings(self) -> dict[str, Any]:
        """All settings that its numbers depend on, as plain values. A result is valid as long as these are the same."""
        unset = {
            name for name in ("instances", "clip", "features", "lr") if not getattr(self, name)
        }  # older results lack these
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in unset | {"published", "differs"}}
