"""Evaluation protocols: the conditions of a measurement, without which scores in this field are not comparable."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from quickstudy.errors import ProtocolError

# Properties of the learner. They are recorded, but learners that differ in them may be compared.
OF_THE_LEARNER = ("learner", "steps", "normalisation", "ensemble")


@dataclass(frozen=True)
class Protocol:
    """Tasks, split, sizes, seed and test settings. Scores are comparable only under the same protocol."""

    learner: str  # name of the learner
    tasks: str  # name of the task source
    split: str
    ways: int | None  # None for regression
    shots: int  # support examples per class (regression: per task)
    queries: int  # query examples per class (regression: per task)
    metric: str  # its name, such as "accuracy" or "mean squared error"; Score.metric is the metric itself
    episodes: int
    seed: int  # of the test episodes
    transductive: bool  # whether the answer to a query depends on the other queries of its task
    normalisation: str  # batch, support, running, layer or none
    steps: int | None = None  # inner steps at test; None if the learner has none
    ensemble: int = 1  # number of models averaged
    control: str | None = None  # name of the control, if this is the score of one

    def describe(self) -> str:
        """The protocol in a few words: '5-way 1-shot, transductive batch norm'."""
        size = f"{self.ways}-way {self.shots}-shot" if self.ways else f"{self.shots}-shot"
        return ", ".join([size, *self.of_the_learner])

    @property
    def of_the_learner(self) -> list[str]:
        """What belongs to the learner and not to the tasks, in words: normalisation, inner steps, ensemble, control."""
        kind = {"none": "no norm", "running": "running batch norm"}.get(
            self.normalisation, f"{self.normalisation} norm"
        )
        together = self.transductive and self.normalisation == "batch"
        words = [f"transductive {kind}" if together else kind]
        words += ["transductive"] if self.transductive and not together else []
        words += [f"{self.steps} inner step{'s' * (self.steps != 1)}"] if self.steps is not None else []
        words += [f"ensemble of {self.ensemble}"] if self.ensemble > 1 else []
        words += [f"control: {self.control}"] if self.control else []
        return words

    def to_dict(self) -> dict[str, Any]:
        """Plain values: field name -> value."""
        return dataclasses.asdict(self)


def differences(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """The fields whose difference forbids a comparison: name -> both values."""
    names = [f.name for f in dataclasses.fields(Protocol) if f.name not in (*OF_THE_LEARNER, "control")]
    return {name: (getattr(a, name), getattr(b, name)) for name in names if getattr(a, name) != getattr(b, name)}


def require_same(a: Protocol, b: Protocol, allow: tuple[str, ...] = ()) -> None:
    """Raise ProtocolError, naming each difference, where the protocols differ in fields that are not in `allow`."""
    forbidden = {name: pair for name, pair in differences(a, b).items() if name not in allow}
    if forbidden:
        listed = "; ".join(f"{name}: {one!r} against {other!r}" for name, (one, other) in forbidden.items())
        alone = list(forbidden) == ["transductive"]
        hint = " To compare all the same, name it: allow=('transductive',)." if alone else ""
        raise ProtocolError(
            f"these scores were measured under different protocols ({listed}). Evaluate both under the same one.{hint}"
        )


def require_equal(a: Protocol, b: Protocol) -> None:
    """Raise ProtocolError, naming each difference, where the protocols differ in any field, the learner's own too."""
    if a != b:
        pairs = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Protocol))
        listed = "; ".join(f"{name}: {one!r} against {other!r}" for name, one, other in pairs if one != other)
        raise ProtocolError(
            f"trainings of one learner are measured under one protocol, but these differ ({listed}). To compare two "
            "learners use qs.compare."
        )
