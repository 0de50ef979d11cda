"""The results of a comparison of learners: their scores, their costs, and the paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quickstudy.base.words import size
from quickstudy.evaluation.amount import aligned
from quickstudy.evaluation.score import Difference, Score, compare

FORMER_NAMES = {"dishonest": "calibration_error"}  # of fields of an entry, in files of earlier versions


@dataclass(frozen=True)
class Trial:
    """The result of one training of a learner and its test."""

    seed: int
    score: Score
    iterations: int
    seconds: float  # seconds of training, without validation
    curve: tuple[tuple[float, float], ...] = ()  # (seconds of training, score on validation tasks)

    def to_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("seed", "iterations", "seconds", "curve")}
        return plain | {"score": self.score.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Trial:
        """The trial that `to_dict` wrote."""
        curve = tuple((float(x), float(y)) for x, y in plain["curve"])
        return cls(plain["seed"], Score.from_dict(plain["score"]), plain["iterations"], float(plain["seconds"]), curve)


@dataclass(frozen=True)
class Entry:
    """One learner or baseline of a comparison."""

    name: str
    learner: str  # name of its class
    meta: bool  # whether it was meta-trained on episodes; else it is a baseline
    trials: tuple[Trial, ...]  # one for each seed
    adapt_seconds: float  # seconds to adapt to one task
    predict_seconds: float  # seconds to answer all queries of a task
    bytes: int | None  # size of its `.qs` file; None where it has none
    unlabelled: Score | None = None  # its score on the same queries without a support set, where it can answer them
    calibration_error: float | None = None  # expected, of classes; of values, how far 90 % intervals miss 90 % coverage

    @property
    def dishonest(self) -> float | None:
        """The former name of `calibration_error`."""
        return self.calibration_error

    @property
    def score(self) -> Score:
        """The score over all trainings."""
        return Score.of_trainings([trial.score for trial in self.trials])

    @property
    def spread(self) -> float | None:
        """Standard deviation of the score from seed to seed; None for one seed."""
        means = [trial.score.mean for trial in self.trials]
        return statistics.stdev(means) if len(means) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        names = ("name", "learner", "meta", "adapt_seconds", "predict_seconds", "bytes", "calibration_error")
        plain = {name: getattr(self, name) for name in names} | {"trials": [t.to_dict() for t in self.trials]}
        return plain | {"unlabelled": self.unlabelled.to_dict() if self.unlabelled else None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Entry:
        """The entry that `to_dict` wrote, also under the names of earlier versions."""
        plain = {FORMER_NAMES.get(name, name): value for name, value in plain.items()}
        trials = tuple(map(Trial.from_dict, plain["trials"]))
        unlabelled = Score.from_dict(plain["unlabelled"]) if plain["unlabelled"] else None
        return cls(**{**plain, "trials": trials, "unlabelled": unlabelled})


@dataclass(frozen=True)
class LearnerComparison:
    """The entries of a comparison, best first, and the settings that they share."""

    entries: tuple[Entry, ...]
    settings: Mapping[str, Any]  # minutes, seeds, episodes, and further settings of the training
    failed: Mapping[str, str] = field(default_factory=dict)  # learners that were left out, and the reasons

    def __getitem__(self, name: str) -> Entry:
        """The entry with this name. Raises KeyError where there is none."""
        return {entry.name: entry for entry in self.entries}[name]

    def difference(self, a: Entry, b: Entry) -> Difference:
        """The paired difference, a minus b. With several trainings its interval holds their spread."""
        return compare(a.score, b.score)

    def __str__(self) -> str:
        metric = self.entries[0].score.protocol.metric
        head = ("learner", metric, "minus the best", "iterations", "learns a task in", "file")
        lines = aligned([head, *(self._row(entry) for entry in self.entries)])
        return "\n".join([*lines, *(f"{name} is left out: {reason}" for name, reason in self.failed.items())])

    __repr__ = __str__

    def _row(self, entry: Entry) -> tuple[str, ...]:
        score, best = entry.score, self.entries[0]
        against = "" if entry is best else self.difference(entry, best).signed(points=False)
        iterations, kept = entry.trials[0].iterations, entry.bytes
        costs = [f"{iterations:,}" if iterations else "", f"{1e3 * entry.adapt_seconds:.3g} ms"]
        file = "" if kept is None else size(kept)
        return (entry.name, score.metric.format.between(score.mean, score.low, score.high), against, *costs, file)

    def to_dict(self) -> dict[str, Any]:
        entries = [entry.to_dict() for entry in self.entries]
        return {"settings": dict(self.settings), "failed": dict(self.failed), "entries": entries}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LearnerComparison:
        """The comparison that `to_dict` wrote."""
        return cls(tuple(map(Entry.from_dict, plain["entries"])), plain["settings"], plain["failed"])
