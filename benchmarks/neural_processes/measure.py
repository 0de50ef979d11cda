"""Trains neural processes on sinusoids and on curves of subjects, and measures what their intervals hold."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import quickstudy as qs
from benchmarks.neural_processes import subjects
from benchmarks.neural_processes.subjects import TABLES, Subjects
from benchmarks.provenance import COMMIT
from quickstudy.base import files
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.metric import ERROR, PERCENT, PLAIN
from quickstudy.evaluation.scoring import sample_blocks
from quickstudy.experiments.recipes import find_learner
from quickstudy.training.outer import optimizer_of, schedule_of

LEVELS = (0.5, 0.8, 0.9, 0.95)
EPISODES = 600  # test tasks on sinusoids, and validation tasks for the factors
ROUNDS = (100, 200, 400, 800)  # numbers of iterations; validation subjects choose one of them
SPLITS = 40  # random divisions of each test subject's points into support and query


@dataclass(frozen=True)
class Wave:
    """A training on sinusoids with 10 support and 20 query points."""

    name: str
    learner: str
    iterations: int
    fields: dict[str, Any] = field(default_factory=dict)
    noise: float = 0.0
    remark: str = ""


WAVES = [
    Wave("cnp", "cnp", 8000, remark="0 to 10 support points in training, drawn anew"),
    Wave("anp", "anp", 4000, remark="attention"),
    Wave("anp-latent", "anp", 2500, {"latent": 32}, remark="attention and a latent code"),
]
CURVES = [(table, learner) for table in TABLES for learner in ("cnp", "anp")]


def build(name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return find_learner(name)[1](nn.Flatten(), width=1, **fields)


def kept(folder: Path, settings: dict[str, Any], known: dict[str, Any] | None, make: Callable[[], dict]) -> dict:
    """The existing result for these settings, from the result file or the run folder; a new one where there is none."""
    plain, path = json.loads(json.dumps(settings)), folder / "results.json"
    for found in (known, files.read_json(path) if path.exists() else None):
        if found is not None and found["settings"] == plain:
            return found
    made = {"settings": plain, "commit": COMMIT, **make()}
    files.write_json(path, made)
    return made


# --- sinusoids -------------------------------------------------------------------------------------------------------


def measure_wave(wave: Wave, folder: Path) -> dict[str, Any]:
    """Coverage on unseen sinusoids: as trained, and with factors on the standard deviations from validation tasks."""
    trained = qs.train(
        build(wave.learner, y_scale=2.0, **wave.fields),
        qs.tasks.sinusoid("train", 10, 20, wave.noise),
        iterations=wave.iterations,
        engine="vmap",
        scheduler=schedule_of("cosine", wave.iterations),
        out=folder,
        resume=True,
    )
    test, val = (qs.tasks.sinusoid(split, 10, 50, wave.noise) for split in ("test", "val"))
    mended = qs.recalibrated(trained, val, episodes=EPISODES)
    plain, after = (qs.interval_coverage(t, test, episodes=EPISODES, levels=LEVELS) for t in (trained, mended))
    facts = {"timing": files.read_json(folder / "timing.json"), "factors": list(mended.learner.std_factors)}
    return facts | {"plain": plain.to_dict(), "recalibrated": after.to_dict()}


# --- curves of subjects ----------------------------------------------------------------------------------------------


def measure_curves(table: str, learner: str, data: str, folder: Path) -> dict[str, Any]:
    """Coverage and error on every subject; the learner that is tested on a subject never saw it in training."""
    curves, t = subjects.read(data, table), TABLES[table]
    found: dict[str, list[Tensor]] = {"plain": [], "recalibrated": []}
    chosen, seconds = [], 0.0
    for number in range(t.folds):
        units, sources = subjects.fold_sources(curves, table, number)
        trained, iterations, spent = train_curves(learner, sources, t.points, folder / f"fold{number}")
        mended = qs.recalibrated(trained, sources["val"], episodes=400, points=t.points)
        mended.save(folder / f"fold{number}" / "recalibrated.qs")
        found["plain"].append(on_subjects(trained, sources["test"], t.points, units.value[1]))
        found["recalibrated"].append(on_subjects(mended, sources["test"], t.points, units.value[1]))
        chosen, seconds = [*chosen, iterations], seconds + spent
    sizes = {name: over_subjects(torch.cat(parts), t.points) for name, parts in found.items()}
    protocol = asdict(t) | {"subjects": len(curves), "splits": SPLITS}
    return {"protocol": protocol, "iterations": chosen, "processor": seconds, **sizes}


def train_curves(
    name: str, sources: dict[str, Subjects], points: Sequence[int], folder: Path
) -> tuple[qs.Trained, int, float]:
    """Train in rounds until the negative log-likelihood on validation subjects rises.

    Returns the best learner, its iterations, and the seconds of one core.
    """
    learner, best, found = build(name, representation=64), (math.inf, 0), None
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted fold starts again, because it takes only seconds
    for iterations in ROUNDS:
        trained = qs.train(
            learner,
            sources["train"],
            iterations=iterations,
            engine="vmap",
            optimizer=optimizer_of(qs.Outer(lr=0.002)),
            out=folder,
            resume=True,
            progress=False,
        )
        measured = qs.interval_coverage(trained, sources["val"], episodes=200, points=points, levels=[0.9])
        validated = sum(one.negative_log_likelihood.mean for one in measured.sizes)
        if validated > best[0]:
            break
        best, found = (validated, iterations), trained
    assert found is not None
    return found, best[1], files.read_json(folder / "timing.json")["processor"]


def on_subjects(trained: qs.Trained, source: Subjects, points: Sequence[int], unit: float) -> Tensor:
    """Measurements on each subject, in the units of the table: [subjects, points, levels + 3].

    The last axis holds the coverage of each level, the negative log-likelihood, and the squared errors of the predicted
    means and of interpolation, all averaged over SPLITS divisions of a subject's points.
    """
    rows = []
    for curve in source.curves:
        one = Subjects([curve], source.shots, source.queries, source.name, source.split)
        found = qs.interval_coverage(trained, one, episodes=SPLITS, levels=LEVELS, points=points)
        other = interpolation(one, points)
        rows.append(
            [
                [
                    *(a.mean for a in s.coverage),
                    s.negative_log_likelihood.mean + math.log(unit),
                    s.error.mean * unit**2,
                    o * unit**2,
                ]
                for s, o in zip(found.sizes, other, strict=True)
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


def interpolation(source: Subjects, points: Sequence[int]) -> list[float]:
    """Mean squared error of linear interpolation between the support points, for each number of points.

    Outside the support points the interpolation is constant; without support points it predicts 0.
    """
    episodes = list(sample_blocks(source, SPLITS, 1, torch.device("cpu")))
    errors = []
    for k in points:
        for (x, y), (xq, yq) in episodes:
            for i in range(len(x)):
                order = x[i, :k, 0].argsort()
                xs, ys = x[i, :k, 0][order].numpy(), y[i, :k, 0][order].numpy()
                answer = np.interp(xq[i, :, 0].numpy(), xs, ys) if k else np.zeros(len(xq[i]))
                errors.append(float(((answer - yq[i, :, 0].numpy()) ** 2).mean()))
    return torch.tensor(errors).reshape(len(points), -1).mean(1).tolist()


def over_subjects(values: Tensor, points: Sequence[int]) -> list[dict[str, Any]]:
    """For each number of points, the mean over subjects and its 95 % interval; each subject counts once."""
    kinds = {f"{100 * level:g} %": PERCENT for level in LEVELS}
    kinds |= {"negative log-likelihood": PLAIN, "error": ERROR, "interpolation": ERROR}
    return [
        {"points": k}
        | {name: Amount.of(v, kinds[name]).to_dict() for name, v in zip(kinds, values[:, i].T, strict=True)}
        for i, k in enumerate(points)
    ]
