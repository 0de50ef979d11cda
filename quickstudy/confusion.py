"""What is taken for what: how often examples of class A were answered B, of those asked while B was in the task too.

    rate(A, B) = (queries of A answered B) / (queries of A in episodes with both classes)

Tasks of a pool hold a few of its classes each, so most pairs meet in few episodes, and a rate counts only where its
classes met. The rates of one class add up to 1 only where every task has all classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quickstudy.amount import aligned
from quickstudy.learner import Episode, Learner

READABLE = 25  # classes up to which a matrix can be read; of more, pairs that were never confused are not kept
PRINTED = 10  # pairs


@dataclass(frozen=True)
class Pair:
    """How examples of one class were answered by another, or by itself."""

    truth: str
    answer: str
    answered: int  # queries of `truth` that were answered so
    asked: int  # queries of `truth` in episodes that had both classes
    episodes: int  # so many episodes

    @property
    def rate(self) -> float:
        return self.answered / self.asked

    @property
    def at_least(self) -> float:
        """Lower end of Wilson's 95 % interval for the rate, each episode one trial: its queries err together."""
        n, p, z = self.episodes, self.rate, 1.96
        return (p + z**2 / (2 * n) - z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)


@dataclass(frozen=True)
class Confusion:
    """The pairs of named classes that met in test episodes."""

    pairs: tuple[Pair, ...]

    def __getitem__(self, names: tuple[str, str]) -> Pair:
        """How `truth` was answered by `answer`: confusion["seal", "otter"]. Raises KeyError for what never met."""
        return {(one.truth, one.answer): one for one in self.pairs}[names]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that were asked for, in the order of names."""
        return tuple(sorted({one.truth for one in self.pairs}))

    @property
    def confused(self) -> list[Pair]:
        """Pairs of different classes that were taken for each other, the clearest (largest `at_least`) first."""
        wrong = [one for one in self.pairs if one.truth != one.answer and one.answered]
        return sorted(wrong, key=lambda one: (-one.at_least, one.truth, one.answer))

    def __str__(self) -> str:
        head = ("truth", "answer", "rate", "queries", "episodes")
        rows = [
            (one.truth, one.answer, f"{100 * one.rate:.1f} %", f"{one.answered} of {one.asked}", str(one.episodes))
            for one in self.confused[:PRINTED]
        ]
        return "\n".join(aligned([head, *rows])) if rows else "no class was taken for another"

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for answers.json: a column for each field, classes as places in `names`."""
        names = sorted({name for one in self.pairs for name in (one.truth, one.answer)})
        place = {name: i for i, name in enumerate(names)}
        columns = {key: [place[getattr(one, key)] for one in self.pairs] for key in ("truth", "answer")}
        columns |= {key: [getattr(one, key) for one in self.pairs] for key in ("answered", "asked", "episodes")}
        return {"names": names} | columns

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Confusion:
        """What `to_dict` wrote. Raises ValueError, KeyError, IndexError or TypeError for anything else."""
        names = [str(name) for name in plain["names"]]
        columns = [plain[key] for key in ("truth", "answer", "answered", "asked", "episodes")]
        pairs = tuple(Pair(names[t], names[a], *map(int, numbers)) for t, a, *numbers in zip(*columns, strict=True))
        if any(not (0 <= one.answered <= one.asked and 0 < one.episodes <= one.asked) for one in pairs):
            raise ValueError("a pair of classes has more answers than queries")
        return cls(pairs)

    def plot(self, path: str | os.PathLike) -> None:
        """Write the matrix of rates as a picture. The ending of `path` says how: .png, .svg or .pdf."""
        from quickstudy.report.confused import write_figure  # matplotlib takes a second to import

        write_figure(self, path)


# --- measuring -------------------------------------------------------------------------------------------------------


def confusion_of(episodes: Iterable[tuple[Sequence[str], Tensor]]) -> Confusion:
    """From each episode's class names and its table [ways or more, the same] of queries by truth and answer.

    Answers that are no class of the task, as a learner with outputs to spare may give them, belong to no pair.
    """
    totals: dict[tuple[str, str], list[int]] = {}
    for names, table in episodes:
        for truth, row in zip(names, table.long().tolist(), strict=False):
            asked = sum(row)
            for answer, answered in zip(names, row if asked else (), strict=False):
                total = totals.setdefault((truth, answer), [0, 0, 0])
                for i, n in enumerate((answered, asked, 1)):
                    total[i] += n
    few = len({truth for truth, _ in totals}) <= READABLE
    kept = ((pair, total) for pair, total in sorted(totals.items()) if few or total[0] or pair[0] == pair[1])
    return Confusion(tuple(Pair(*pair, *total) for pair, total in kept))


def told_of(
    tasks: Any, generator: torch.Generator, learner: Learner, fitted: Learner, episode: Episode
) -> dict[str, Any]:
    """What the source tells of the task that it draws from the generator, its classes by the numbers of the answers.

    `episode` is as it was drawn, `fitted` the learner in its ways: where that is another one, classes were renumbered.
    """
    known = tasks.told(generator) if hasattr(tasks, "told") else {}
    if fitted is not learner and "classes" in known:
        known["classes"] = [known["classes"][k] for k in episode.support.y.unique().tolist()]
    return known
