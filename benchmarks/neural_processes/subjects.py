"""Growth and concentration curves of real subjects as tasks: some points of a subject are the support set.

The tables come from R: Orthodont (children's jaws), ChickWeight, Spruce (trees) and Theoph (a drug in the blood).
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.learner import Batch, Episode


@dataclass(frozen=True)
class Table:
    """A file, its columns, and how a subject's points are divided."""

    subject: str  # name of the column, as are the next two
    time: str
    value: str
    shots: int  # support points
    queries: int
    folds: int
    what: str  # label of the y axis in a plot
    when: str  # label of the x axis

    @property
    def points(self) -> list[int]:
        """The numbers of support points at which learners are tested."""
        return sorted({k for k in (0, 1, 2, 3, 5, self.shots) if k <= self.shots})


TABLES = {
    "Orthodont": Table("Subject", "age", "distance", 3, 1, 3, "pituitary to maxilla (mm)", "age (years)"),
    "ChickWeight": Table("Chick", "Time", "weight", 6, 4, 3, "weight of a chick (g)", "days since birth"),
    "Spruce": Table("Tree", "days", "logSize", 8, 5, 3, "log size of a tree", "days"),
    "Theoph": Table("Subject", "Time", "conc", 6, 5, 4, "theophylline (mg/l)", "hours since the dose"),
}


class Units(NamedTuple):
    """The means and standard deviations of the training subjects, which standardise times and values."""

    time: tuple[float, float]  # mean, standard deviation
    value: tuple[float, float]

    def scaled(self, curve: Batch) -> Batch:
        return Batch(*((t - mean) / std for t, (mean, std) in zip(curve, self, strict=True)))


def units_of(curves: Sequence[Batch]) -> Units:
    times, values = (torch.cat(parts) for parts in zip(*curves, strict=True))
    return Units(*((float(t.mean()), float(t.std())) for t in (times, values)))


@dataclass(frozen=True, eq=False, repr=False)
class Subjects:
    """A task source of subjects. An episode is one subject with its points in random order: the first `shots` points
    are the support set, and the next `queries` points the queries.
    """

    curves: Sequence[Batch]  # times and values [n, 1] of each subject, n at least shots + queries
    shots: int
    queries: int
    name: str = "subjects"
    split: str = "train"

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        """n episodes with subjects drawn with replacement: x and y [n, shots, 1], and for queries [n, queries, 1]."""
        drawn = [self._drawn(i, generator) for i in torch.randint(len(self.curves), (n,), generator=generator).tolist()]
        x, y = (torch.stack(parts).split([self.shots, self.queries], 1) for parts in zip(*drawn, strict=True))
        return Episode(*(Batch(a, b) for a, b in zip(x, y, strict=True)))

    def _drawn(self, i: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        rows = torch.randperm(len(self.curves[i].x), generator=generator)[: self.shots + self.queries]
        return tuple(t[rows] for t in self.curves[i])

    def describe(self) -> dict[str, Any]:
        """The task part of a protocol."""
        sizes = {"ways": None, "shots": self.shots, "queries": self.queries}
        return {"name": self.name, "split": self.split, **sizes, "subjects": len(self.curves)}


def read(data: str | Path, name: str) -> dict[str, Batch]:
    """Read a table: subject -> times [n, 1] and values [n, 1], ordered by time; only subjects with enough points."""
    table, points = TABLES[name], defaultdict(list)
    with gzip.open(Path(data) / "grouped_tabular" / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[row[table.subject]].append((float(row[table.time]), float(row[table.value])))
    return {
        subject: Batch(*torch.tensor(sorted(rows))[..., None].unbind(1))
        for subject, rows in points.items()
        if len(rows) >= table.shots + table.queries
    }


class Fold(NamedTuple):
    """The names of the subjects in each split."""

    train: Sequence[str]
    val: Sequence[str]
    test: Sequence[str]


def fold_of(subjects: Sequence[str], number: int, folds: int, seed: int = 0) -> Fold:
    """The subjects of a fold. Every subject is in the test split of one fold; a quarter of the others validates."""
    order = [subjects[i] for i in torch.randperm(len(subjects), generator=seeds.generator(seed, "folds")).tolist()]
    test = order[number::folds]
    others = [name for name in order if name not in test]
    cut = len(others) // 4
    return Fold(others[cut:], others[:cut], test)


def fold_sources(curves: Mapping[str, Batch], table: str, number: int) -> tuple[Units, dict[str, Subjects]]:
    """The task sources of a fold's splits, standardised by its training subjects, and these units."""
    t, fold = TABLES[table], fold_of(list(curves), number, TABLES[table].folds)
    units = units_of([curves[name] for name in fold.train])
    scaled = {split: [units.scaled(curves[name]) for name in names] for split, names in fold._asdict().items()}
    return units, {split: Subjects(c, t.shots, t.queries, table, split) for split, c in scaled.items()}
