"""What a task source is: any object with `sample(n, generator) -> episodes`, and what else it may declare.

All other declarations have defaults, listed in `Source`, so that no other module probes an object for attributes. The
library wraps what it is given once, `source_of(tasks)`, and reads the declarations from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from quickstudy.episodes import Episodes, joined, part_of, unstack
from quickstudy.learner import Batch, Learner, Theta

DRAWN = 100  # tasks that stand for all examples of a source without an end of them


class TaskSource(Protocol):
    """The one method that a task source must have. `Source` lists what else it may have."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episodes:
        """n tasks, drawn from the generator: an Episode with a task axis, or a list where sizes differ."""
        ...


@dataclass(frozen=True, eq=False)
class Source:
    """A task source with all that it declares, and the default of what it does not.

    ways          classes in a task; None where answers are values. A source that says nothing has None, too.
    unit          the target's own unit: values of y times `unit` are in it
    preprocess    how raw input became numbers, as `Trained.preprocess` keeps it
    extractor     the frozen network that made features of raw input; text_encoder: what made vectors of texts
    notes         what a reader should know of the data, such as rows that were left out
    groups        names of groups of classes, where classes have any
    on_policy     whether an episode depends on what acts in it: `sample` is then also given learner and theta, at every
                  draw, and is never called ahead of an update of theta
    """

    tasks: Any  # what the user gave

    def _declared(self, name: str, default: Any) -> Any:
        return getattr(self.tasks, name, default)

    @property
    def ways(self) -> int | None:
        return self._declared("ways", None)

    @property
    def unit(self) -> float:
        return self._declared("unit", 1.0)

    @property
    def preprocess(self) -> Mapping[str, Any]:
        return self._declared("preprocess", {})

    @property
    def extractor(self) -> nn.Module | None:
        return self._declared("extractor", None)

    @property
    def text_encoder(self) -> Any:
        return self._declared("text_encoder", None)

    @property
    def notes(self) -> Sequence[str]:
        return self._declared("notes", ())

    @property
    def groups(self) -> Sequence[str]:
        return self._declared("groups", ())

    @property
    def on_policy(self) -> bool:
        return self._declared("on_policy", False)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episodes:
        """n tasks of a source that does not depend on a policy."""
        return self.tasks.sample(n, generator)

    def draw(self, n: int, generator: torch.Generator | None, learner: Learner, theta: Theta) -> Episodes:
        """n tasks for this learner at this theta; the same for every learner unless the source is `on_policy`."""
        if self.on_policy:
            return self.tasks.sample(n, generator, learner=learner, theta=theta)
        return self.tasks.sample(n, generator)

    def share(self, n: int, places: range, generator: torch.Generator | None = None) -> Episodes:
        """The tasks at these places of `sample(n, generator)`. By default all are drawn, and the rest is dropped."""
        own = self._declared("share", None)
        return part_of(self.sample(n, generator), places) if own is None else own(n, places, generator)

    def pooled(self) -> Source:
        """The examples of all its tasks as one task, for learners that are not episodic; by default itself."""
        own = self._declared("pooled", None)
        return self if own is None else source_of(own())

    def once(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All its examples, each once, in blocks in random order; by default those of some tasks that it draws."""
        own = self._declared("once", None)
        return map(joined, unstack(self.sample(DRAWN, generator))) if own is None else own(generator)

    def describe(self) -> dict[str, Any]:
        """What it says of itself in a protocol, at least its name."""
        own = self._declared("describe", None)
        return {"name": type(self.tasks).__name__} if own is None else dict(own())

    def facts(self, n: int, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Numbers or words, n values by name, of the tasks that `sample` draws from a generator in the same state."""
        own = self._declared("facts", None)
        return {} if own is None else own(n, generator)

    def told(self, generator: torch.Generator | None = None) -> dict[str, Any]:
        """One such task for people: the names of its classes, and its examples in readable form."""
        own = self._declared("told", None)
        return {} if own is None else own(generator)

    def replace(self, **changes: Any) -> Source | None:
        """The same source with other settings (shots, queries, ...); None where it cannot be changed."""
        own = self._declared("replace", None)
        return None if own is None else source_of(own(**changes))


def source_of(tasks: TaskSource | Source) -> Source:
    """What is given as tasks, with its declarations; a Source as it is."""
    return tasks if isinstance(tasks, Source) else Source(tasks)


def describe(tasks: Any) -> dict[str, Any]:
    """What a task source says of itself, at least its name."""
    return source_of(tasks).describe()
