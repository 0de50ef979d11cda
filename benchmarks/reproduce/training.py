"""Trains a row of a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import quickstudy as qs
from benchmarks.provenance import COMMIT
from benchmarks.reproduce.rows import Row
from quickstudy.base import files, seeds
from quickstudy.experiments import recipes
from quickstudy.experiments.request import Request, open_tasks
from quickstudy.training.outer import optimizer_of, schedule_of


def run_row(row: Row, tasks: str, data: str | None, folder: Path, device: str) -> dict[str, Any]:
    """Train a row, or continue its training; returns the trained learner with its timing, commit and size."""
    torch.manual_seed(seeds.derive(row.seed, "weights"))
    source = source_of(row, tasks, row.sizes, "train", data, folder)
    cls = recipes.find_learner(row.learner)[1]
    learner = recipes.build_learner(cls, source, dict(row.fields), dict(row.network))
    outer = learner.outer() if row.schedule is None else qs.Outer(schedule=row.schedule)
    outer = outer if row.lr is None else outer._replace(lr=row.lr)
    trained = qs.train(
        learner,
        source,
        iterations=row.iterations,
        meta_batch=row.meta_batch,
        seed=row.seed,
        out=folder / row.name,
        engine=engine_of(learner, tasks, device),
        device=device,
        optimizer=optimizer_of(outer),
        scheduler=schedule_of(outer.schedule, row.iterations),
        resume=True,
        clip=row.clip,
        **({"keep": row.keep, "val": source_of(row, tasks, row.sizes, "val", data, folder)} if row.keep > 1 else {}),
    )
    trained_by = folder / row.name / "commit.json"
    if not trained_by.exists():
        files.write_json(trained_by, {"commit": COMMIT})
    return {
        "trained": trained,
        "timing": files.read_json(folder / row.name / "timing.json"),
        "commit": files.read_json(trained_by)["commit"],
        "parameters": sum(v.numel() for v in trained.theta.values()),
    }


def source_of(
    row: Row, tasks: str, sizes: tuple[int | None, int, int], split: str, data: str | None, folder: Path
) -> Any:
    """The tasks of a row. Inputs are another row's features where `row.features` names that row."""
    source = open_tasks(Request(tasks, *sizes, data=data), split)
    if not row.features:
        return source
    if not (folder / row.features / "learner.qs").exists():
        sys.exit(f"{row.name} learns from the features of {row.features}: train that row first")
    trained = qs.load(folder / row.features)
    encoder = trained.learner.encoder
    encoder.load_state_dict(trained.theta)  # this copy of the encoder belongs to this row alone
    # LayerNorm centres the features, because after a ReLU they are similar for all images, and a memory that is read by
    # cosine similarity learns late to distinguish them.
    width = recipes.shape_of(encoder, source)[-1]
    return qs.tasks.features(source, torch.nn.Sequential(encoder, torch.nn.LayerNorm(width, elementwise_affine=False)))


def engine_of(learner: qs.Learner, tasks: str, device: str) -> str:
    """The same engine for all rows of a kind in a table, independent of the machine."""
    if tasks == "sinusoid" or learner.ordered:  # their many small sequential steps are faster for many tasks at once
        return "vmap"
    return "threads" if device == "cpu" else "auto"
