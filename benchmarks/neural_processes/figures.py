"""Draws the pictures of `benchmarks.neural_processes` from its runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import quickstudy as qs
from benchmarks.figures import GRID, waves
from benchmarks.neural_processes import subjects
from benchmarks.neural_processes.subjects import TABLES
from benchmarks.provenance import IMAGES
from quickstudy.base import seeds
from quickstudy.engine import mapping

BLUE, DEEP, ORANGE, Z = "#6baed6", "#08519c", "#d94801", 1.6449
PROCESSES = {"cnp": "CNP", "anp": "ANP", "anp-latent": "ANP with\nlatent code"}
EMBEDDED = 400


def load(folder: Path) -> qs.Trained:
    return qs.load(folder, encoder=torch.nn.Flatten())  # type: ignore[return-value]


def band(axes: Axes, trained: qs.Trained, support: qs.Batch, x: Tensor, drawn: tuple[Tensor, ...]) -> None:
    """Draw the mean, the 90 % interval and the curves of a few latent codes at the points x.

    `drawn` holds x in the units of the plot, and the mean and standard deviation that convert values to its units.
    """
    learner, (at, unit) = trained.learner, drawn
    with torch.no_grad():
        phi = learner.adapt(trained.theta, support)
        mean, std = (t[:, 0] for t in learner.distribution(trained.theta, phi, x))  # type: ignore[attr-defined]
        codes = learner.draws(trained.theta, phi, x).mean[:8, :, 0] if getattr(learner, "latent", 0) else []
    low, high = (unit[0] + unit[1] * (mean + sign * Z * std) for sign in (-1, 1))
    axes.fill_between(at[:, 0], low, high, color=BLUE, alpha=0.35, linewidth=0, label="90 % interval")
    for i, sample in enumerate(codes):
        axes.plot(at, unit[0] + unit[1] * sample, color=DEEP, lw=0.6, alpha=0.6, label="a latent code" * (i == 0))
    axes.plot(at, unit[0] + unit[1] * mean, color=DEEP, lw=1.5, label="mean")


def sinusoids(folder: Path) -> None:
    """Draw one test task after 0, 1, 3 and 10 support points, for each learner."""
    source = qs.tasks.sinusoid("test", shots=10, queries=100)
    episode = mapping.unstack(source.sample(1, seeds.generator(1, "test", 4)))[0]
    amplitude, phase = waves(episode.query.x, episode.query.y)
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    grid = figure.subplots(len(PROCESSES), 4, sharex=True, sharey=True, squeeze=False)
    for row, (name, title) in zip(grid, PROCESSES.items(), strict=True):
        trained = load(folder / name)
        for axes, k in zip(row, (0, 1, 3, 10), strict=True):
            support = qs.Batch(*(t[:k] for t in episode.support))
            band(axes, trained, support, GRID, (GRID, torch.tensor([0.0, 1.0])))
            axes.plot(GRID, amplitude * torch.sin(GRID + phase), color="0.25", lw=1.2, ls="--", label="the task")
            axes.plot(*(t[:, 0] for t in support), "o", color=ORANGE, ms=4.5, label="support")
            axes.spines[["top", "right"]].set_visible(False)
            axes.set(xlim=(-5, 5), ylim=(-5.5, 5.5))
        row[0].set_ylabel(title)
    for axes, k in zip(grid[0], (0, 1, 3, 10), strict=True):
        axes.set_title(f"{k} support point{'s' * (k != 1)}", fontsize=10)
    figure.legend(*grid[-1][-1].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(IMAGES / "neural-processes-sinusoid.png", dpi=100)


def curves(folder: Path, data: str) -> None:
    """Draw an unseen subject of each table after 0, 1 and as many support points as in training."""
    figure = Figure(figsize=(9.6, 9.6), layout="constrained")
    for row, (name, table) in zip(figure.subplots(len(TABLES), 3, sharey="row"), TABLES.items(), strict=True):
        found = subjects.read(data, name)
        units, sources = subjects.fold_sources(found, name, 0)
        trained = qs.load(folder / f"{name.lower()}-anp" / "fold0" / "recalibrated.qs", encoder=torch.nn.Flatten())
        subject = sources["test"].curves[0]
        order = torch.randperm(len(subject.x), generator=seeds.generator(0, "shown"))
        raw = [unit[0] + unit[1] * t for t, unit in zip(subject, units, strict=True)]
        x = torch.linspace(float(subject.x.min()), float(subject.x.max()), 200)[:, None]
        at = units.time[0] + units.time[1] * x
        for axes, k in zip(row, (0, 1, table.shots), strict=True):
            rows = order[:k]
            support = qs.Batch(*(t[rows] for t in subject))
            band(axes, trained, support, x, (at, torch.tensor(units.value)))  # type: ignore[arg-type]
            axes.plot(*(t[order[k:], 0] for t in raw), "o", mfc="white", color="0.25", ms=4, label="unseen")
            axes.plot(*(t[rows, 0] for t in raw), "o", color=ORANGE, ms=4.5, label="support")
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel(table.when)
            axes.set_title(f"{name}, {k} support point{'s' * (k != 1)}", fontsize=10)
        row[0].set_ylabel(table.what)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(IMAGES / "neural-processes-curves.png", dpi=100)


def embeddings(folder: Path) -> None:
    """Draw the CNP's embeddings of sinusoids."""
    found = qs.task_embeddings(load(folder / "cnp"), qs.tasks.sinusoid("test", 10, 10), episodes=EMBEDDED)
    found.plot(IMAGES / "embeddings-sinusoid.png")
    print(found)


def alphabets(run: Path, data: str) -> None:
    """Draw a learner's embeddings of Omniglot tasks, each within one alphabet."""
    trained = qs.load(run)
    tasks = qs.tasks.omniglot("test", 5, 5, 5, root=data, rotations=False).replace(grouped=True)
    found = qs.task_embeddings(trained, tasks, episodes=EMBEDDED)
    facts, told = ({"alphabet": known["group"]} for known in (found.facts, found.told))
    found = dataclasses.replace(found, facts=facts, told=told)
    found.plot(IMAGES / "embeddings-omniglot.png")
    print(found)


def draw(folder: Path, data: str, omniglot_run: Path | None = None) -> None:
    """Draw all pictures into docs/images."""
    sinusoids(folder)
    curves(folder, data)
    embeddings(folder)
    if omniglot_run is not None:
        alphabets(omniglot_run, data)
