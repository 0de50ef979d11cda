"""The results of a comparison of learners: their scores, their costs, and the paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quickstudy.base.words import duration, size
from quickstudy.evaluation.amount import aligned
from quickstudy.evaluation.score import Difference, Score, compare

MINUTES, SEEDS = 1.0, (0, 1, 2)  # three trainings of a minute: their spread says what the next one may be
UNEVEN = 1.2  # training times that differ by more than this factor are told
FORMER_NAMES = {"dishonest": "calibration_error"}  # of fields of an entry, in files of earlier versions


@dataclass(frozen=True)
class Trial:
    """The result of one training of a learner and its test."""

    seed: int
    score: Score
    iterations: int
    seconds: float  # of training that count: without validation, and without what other processes took
    curve: tuple[tuple[float, float], ...] = ()  # (seconds of training that count, score on validation tasks)
    wall_seconds: float | None = None  # of the same training by the clock on the wall; None: not measured

    def to_dict(self) -> dict[str, Any]:
        names = ("seed", "iterations", "seconds", "wall_seconds", "curve")
        plain = {name: getattr(self, name) for name in names}
        return plain | {"score": self.score.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Trial:
        """The trial that `to_dict` wrote."""
        curve = tuple((float(x), float(y)) for x, y in plain["curve"])
        score, wall = Score.from_dict(plain["score"]), plain.get("wall_seconds")
        return cls(plain["seed"], score, plain["iterations"], float(plain["seconds"]), curve, wall)


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
    def trained(self) -> bool:
        """Whether it was trained, so that another training of it would give another score."""
        return any(trial.iterations > 0 for trial in self.trials)

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

    def __post_init__(self) -> None:
        sign = self.entries[0].score.metric.sign
        best_first = sorted(self.entries, key=lambda entry: (-sign * entry.score.mean, entry.name))
        object.__setattr__(self, "entries", tuple(best_first))  # in whatever order they are given

    def __getitem__(self, name: str) -> Entry:
        """The entry with this name. Raises KeyError where there is none."""
        return {entry.name: entry for entry in self.entries}[name]

    def difference(self, a: Entry, b: Entry) -> Difference:
        """The paired difference, a minus b. With several trainings its interval holds their spread."""
        return compare(a.score, b.score)

    @property
    def alone(self) -> bool:
        """Whether it holds for these trainings alone, because a learner was trained only once."""
        return any(entry.trained and len(entry.trials) == 1 for entry in self.entries)

    @property
    def warnings(self) -> list[str]:
        """What the reader must know: learners that were left out, and training times that differ."""
        left_out = [f"{name} is left out: {reason}" for name, reason in self.failed.items()]
        times = {entry.name: [trial.seconds for trial in entry.trials] for entry in self.entries if entry.trained}
        if not times:
            return left_out
        least, most = (pick(times, key=lambda name: pick(times[name])) for pick in (min, max))
        if max(times[most]) <= UNEVEN * min(times[least]):
            return left_out
        longest, shortest = duration(max(times[most])), duration(min(times[least]))
        return [*left_out, f"Training times differ: a training of {most} took {longest}, one of {least} {shortest}."]

    def __str__(self) -> str:
        metric = self.entries[0].score.protocol.metric
        head = ("learner", metric, "minus the best", "iterations", "trained for", "learns a task in", "file")
        lines = aligned([head, *(self._row(entry) for entry in self.entries)])
        return "\n".join([*lines, *self.warnings])

    __repr__ = __str__

    def _row(self, entry: Entry) -> tuple[str, ...]:
        score, best = entry.score, self.entries[0]
        against = "" if entry is best else self.difference(entry, best).signed(points=False)
        file = "" if entry.bytes is None else size(entry.bytes)
        costs = (*had(entry), f"{1e3 * entry.adapt_seconds:.3g} ms", file)
        return (entry.name, score.metric.format.between(score.mean, score.low, score.high), against, *costs)

    def to_dict(self) -> dict[str, Any]:
        entries = [entry.to_dict() for entry in self.entries]
        about = {"settings": dict(self.settings), "failed": dict(self.failed), "warnings": self.warnings}
        return about | {"entries": entries}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LearnerComparison:
        """The comparison that `to_dict` wrote."""
        return cls(tuple(map(Entry.from_dict, plain["entries"])), plain["settings"], plain["failed"])


def had(entry: Entry) -> tuple[str, str]:
    """The iterations and the time that its trainings had, in words: ('118 to 124', '18 s'); empty without training."""
    if not entry.trained:
        return "", ""
    iterations, seconds = ([getattr(trial, name) for trial in entry.trials] for name in ("iterations", "seconds"))
    return from_to(iterations, "{:,}".format), from_to(seconds, duration)


def from_to(values: Sequence[float], in_words: Callable[[Any], str]) -> str:
    """The smallest and the largest value in words: '118 to 124', or '118' where they read the same."""
    least, most = in_words(min(values)), in_words(max(values))
    return least if least == most else f"{least} to {most}"
