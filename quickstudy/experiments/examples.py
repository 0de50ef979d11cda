"""A few test episodes with a learner's answers, kept in the run folder so that a report does not need the data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import files, seeds
from quickstudy.engine.fitting import device_of, fitted, for_test
from quickstudy.engine.labels import labelled
from quickstudy.episodes import are_classes, class_numbers, moved, unstack
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.predictions import in_order
from quickstudy.learner import Episode, Learner, setting
from quickstudy.tasks.source import Source, source_of
from quickstudy.tasks.tabular.columns import described
from quickstudy.trained.reading import in_units
from quickstudy.trained.trained import Trained

PICTURED = 3  # test episodes kept for the report


def with_own(counts: Sequence[int], learner: Learner) -> list[int]:
    """The numbers of inner steps to show, including the learner's own; empty for learners without inner steps."""
    own = setting(learner, "steps")
    return [] if own is None else sorted({*counts, own})


def keep_examples(
    folder: Path, trained: Trained, tasks: Any, seed: int, steps: int | None, episodes: int, metric: Metric
) -> None:
    """Write a few test episodes with the learner's answers, so that a report does not need the data set.

    The file holds tensors, and the `metric` of each episode in words. Where inputs, answers or outputs are nested, or
    where there is a label for each position of an example, nothing is kept, and what was there is removed.
    """
    whole, source = for_test(trained.learner, tasks, steps), source_of(tasks)
    tensors: dict[str, Tensor] = {}
    descriptions: list[dict[str, Any]] = []
    for i in range(min(episodes, PICTURED)):
        generator = seeds.generator(seed, "test", i)
        drawn = unstack(moved(source.draw(1, generator, whole, trained.theta), device_of(trained.theta)))[0]
        learner, episode = fitted(whole, drawn)
        example, output = _example(trained, tasks, learner, episode)
        if not _can_be_shown(episode, output):
            (folder / "examples.safetensors").unlink(missing_ok=True)
            return
        about = _described(source, seeds.generator(seed, "test", i), drawn if learner is not whole else None)
        value = float(metric.of(output, episode.query.y)) * source.unit**metric.power
        scored = {"score": f"{metric.name} {metric.format.value(value)}"}
        descriptions.append(about | _rows(trained, drawn) | scored)
        tensors |= {f"{i}.{name}": t.cpu() for name, t in example.items()}
    header = {"episodes": len(descriptions), "told": descriptions}
    files.write_tensors(folder / "examples.safetensors", "examples", tensors, header)


def _can_be_shown(episode: Episode, output: Any) -> bool:
    """Whether each example has one class, with logits [m, ways], or values of the output's shape."""
    (x, shown), (xq, y) = episode
    if not all(isinstance(part, Tensor) for part in (x, shown, xq, y, output)):
        return False
    if y.is_floating_point():
        return output.shape == y.shape
    labels = torch.cat([shown.reshape(-1), y.reshape(-1)])  # a label that the loss ignores has no output
    return are_classes(y) and output.dim() == 2 and 0 <= int(labels.min()) <= int(labels.max()) < output.shape[1]


def _example(trained: Trained, tasks: Any, learner: Learner, episode: Episode) -> tuple[dict[str, Any], Any]:
    """One episode with the learner's answers, in the target's own unit, and the output as it is."""
    with torch.no_grad():
        phi = learner.adapt(trained.theta, episode.support)
        output = learner.predict(trained.theta, phi, episode.query.x)
    parts = {"support.x": episode.support.x, "support.y": episode.support.y}
    parts |= {"query.x": episode.query.x, "query.y": episode.query.y, "output": output}
    if not all(isinstance(part, Tensor) for part in parts.values()):
        return parts, output
    labels = labelled(setting(learner, "loss"))
    if labels is not None:  # a page shows how probable each label is
        return parts | {"output": labels.target(output)}, output
    values = episode.query.y.is_floating_point()
    if values and output.is_floating_point() and episode.query.x.shape[1:] == (1,):
        parts |= _curves(trained, tasks, episode, with_own((0, 1, 10), learner))
    if values:
        answers = ("support.y", "query.y", "output", *(name for name in parts if name.startswith("curve.")))
        parts |= {name: in_units(trained.preprocess, parts[name].cpu()) for name in answers}
    return parts, output


def _described(source: Source, generator: torch.Generator, renumbered: Episode | None) -> dict[str, Any]:
    """What the source says of the task that it draws from the generator, classes in the order of the outputs.

    `renumbered`: the task as it was drawn, where its learner sees its classes as 0..ways-1.
    """
    about = source.told(generator)
    if renumbered is not None and "classes" in about:
        about["classes"] = in_order(about["classes"], class_numbers(renumbered))
    return about


def _rows(trained: Trained, episode: Episode) -> dict[str, Any]:
    """The rows of an episode in words, where its examples are rows of a table."""
    known, (support, query) = trained.preprocess.get("columns"), episode
    if not known:
        return {}
    rows = described(known, torch.cat([support.x, query.x]).cpu().numpy())
    return {"support": rows[: len(support.x)], "query": rows[len(support.x) :]}


def _curves(trained: Trained, tasks: Any, episode: Episode, counts: list[int]) -> dict[str, Tensor]:
    """The adapted function of one number on a grid over its range, after each number of inner steps in `counts`."""
    x = torch.cat([episode.support.x, episode.query.x])
    grid = torch.linspace(float(x.min()), float(x.max()), 200, device=x.device)[:, None]
    curves = {"grid": grid}
    for k in counts or [None]:
        learner = for_test(trained.learner, tasks, k)
        with torch.no_grad():
            phi = learner.adapt(trained.theta, episode.support)
            curves[f"curve.{'adapted' if k is None else k}"] = learner.predict(trained.theta, phi, grid)
    return curves
