"""One training and its tests, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Test:
    """A protocol under which a row is tested."""

    ways: int | None
    shots: int
    queries: int
    steps: int | None = None  # inner steps, for learners that take them; None: as in training
    episodes: int = 1000
    ensemble: int = 1  # best checkpoints averaged
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
    lr: float | None = None  # of the outer loop; None: the learner's own, for most 1e-3
    schedule: str | None = "cosine"  # of the outer rate; None: the learner's own outer loop
    seed: int = 0
    keep: int = 1  # best checkpoints kept; more than one trains with validation
    movement: bool = False  # measure how far each layer moves
    instances: tuple[int, ...] = ()  # accuracy at these instances of a class in a stream
    clip: float | None = None  # norm that a gradient is cut to
    features: str = ""  # the row before it whose encoder, frozen, makes the features that it learns from
    published: str = ""  # the paper's number, under the paper's protocol
    differs: str = ""  # what we did otherwise

    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, as plain values: a result stands as long as these are the same."""
        unset = {
            name for name in ("instances", "clip", "features", "lr") if not getattr(self, name)
        }  # older results do not know them
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in unset | {"published", "differs"}}
