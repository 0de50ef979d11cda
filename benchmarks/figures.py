"""Draws the figures of the gradient family on sinusoids.

    python -m benchmarks.figures        writes docs/images: sinusoid-curves, sinusoid-steps, cavia

The runs are those of `python -m benchmarks.reproduce sinusoid --family gradient`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import quickstudy as qs
from benchmarks.provenance import IMAGES, RESULTS, ROOT
from benchmarks.reproduce import rows
from quickstudy.base import files, seeds
from quickstudy.engine import mapping
from quickstudy.engine.fitting import for_test
from quickstudy.evaluation.score import Score

RUNS = ROOT / "runs" / "reproduce" / "sinusoid-gradient"
SHOTS, SHOWN = 10, (0, 1, 5, 10)
GRID = torch.linspace(-5, 5, 200)[:, None]
BLUES = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")


def trained(learner: str) -> qs.Trained:
    return qs.load(RUNS / f"{learner}-{SHOTS}shot")  # type: ignore[return-value]


def waves(queries: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitude and phase of y = a sin(x + p) from noise-free points: y = (a cos p) sin x + (a sin p) cos x."""
    basis = torch.cat([queries.sin(), queries.cos()], -1)
    across, along = torch.linalg.lstsq(basis, answers).solution.squeeze(-1).unbind(-1)
    return (across**2 + along**2).sqrt(), torch.atan2(along, across)


def curves() -> None:
    """Draw one test task, and each learner's function for it before and after inner steps."""
    source = qs.tasks.sinusoid("test", shots=SHOTS, queries=100)
    episode = mapping.unstack(source.sample(1, seeds.generator(1, "test", 4)))[0]
    amplitude, phase = waves(episode.query.x, episode.query.y)
    names = list(rows.SINUSOID_FIELDS)
    figure = Figure(figsize=(9.6, 7.6), layout="constrained")
    for axes, name in zip(figure.subplots(3, 3, sharex=True, sharey=True).flat, names, strict=True):
        run = trained(name)
        axes.plot(GRID, amplitude * torch.sin(GRID + phase), color="0.6", lw=3, label="the task")
        for steps, colour in zip(SHOWN, BLUES, strict=True):
            learner = for_test(run.learner, source, steps)
            with torch.no_grad():
                phi = learner.adapt(run.theta, episode.support)
                values = learner.predict(run.theta, phi, GRID)
            axes.plot(GRID, values, color=colour, lw=1.4, label=f"{steps} step{'s' * (steps != 1)}")
        axes.plot(episode.support.x, episode.support.y, "o", color="#d94801", ms=4, label="support")
        axes.set_title(type(run.learner).__name__, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(-1.5 * float(amplitude), 1.5 * float(amplitude))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(IMAGES / "sinusoid-curves.png", dpi=100)


def errors() -> None:
    """Draw the error over inner steps at test, for each number of shots; diverging curves leave the frame."""
    found = {row["name"]: row for row in files.read_json(RESULTS / "sinusoid-gradient.json")["rows"]}
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, shots in zip(figure.subplots(1, 3, sharey=True), (5, 10, 20), strict=True):
        for name, marker in zip(rows.SINUSOID_FIELDS, "osD^v<>Px", strict=True):
            scores = [Score.from_dict(test[0]) for test in found[f"{name}-{shots}shot"]["scores"]]
            steps, means = [s.protocol.steps for s in scores], [s.mean for s in scores]
            axes.plot(steps, means, marker=marker, ms=4, lw=1.2, label=type(trained(name).learner).__name__)
        axes.set(yscale="log", ylim=(0.01, 10), xlabel="inner steps at test", title=f"{shots} shots")
        axes.set_xticks(rows.STEPS)
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("mean squared error, 600 test tasks")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(IMAGES / "sinusoid-steps.png", dpi=100)


def contexts() -> None:
    """Draw CAVIA's context vectors of test tasks in their two principal directions, coloured by amplitude and phase."""
    run, source = trained("cavia"), qs.tasks.sinusoid("test", shots=SHOTS, queries=100)
    episodes = source.sample(600, seeds.generator(1, "contexts"))
    found = qs.map_tasks(lambda e: run.learner.adapt(run.theta, e.support)["context"], episodes, "vmap").numpy()
    amplitude, phase = (value.numpy() for value in waves(episodes.query.x, episodes.query.y))
    centred = found - found.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    for axes, (name, value) in zip(figure.subplots(1, 2), (("amplitude", amplitude), ("phase", phase)), strict=True):
        drawn = axes.scatter(*plane.T, c=value, s=9, cmap="viridis")
        figure.colorbar(drawn, ax=axes, label=f"true {name}")
        axes.set(xlabel="context, first direction", ylabel="second direction")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "cavia.png", dpi=100)
    print(f"share of the context's variance in two directions: {plane.var(0).sum() / centred.var(0).sum():.3f}")
    for name, value in (("a sin p", amplitude * np.sin(phase)), ("a cos p", amplitude * np.cos(phase))):
        print(f"R^2 of a linear map from context to {name}: {explained(found, value):.3f}")


def explained(inputs: np.ndarray, value: np.ndarray) -> float:
    """R^2 of a linear map, fitted by least squares on the first half of the tasks and scored on the second half."""
    half = len(value) // 2
    basis = np.c_[inputs, np.ones(len(value))]
    weights = np.linalg.lstsq(basis[:half], value[:half], rcond=None)[0]
    return 1 - float(np.var(basis[half:] @ weights - value[half:]) / np.var(value[half:]))


def main() -> None:
    for draw in (curves, errors, contexts):
        draw()
    print(f"written: {', '.join(str(Path(p).name) for p in sorted(IMAGES.glob('*.png')))}")


if __name__ == "__main__":
    main()
