"""Averages over training tasks are those of the theta that training ends with, however short it was."""

from __future__ import annotations

from pathlib import Path

import torch

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.episodes import unstack
from quickstudy.tasks.source import source_of
from quickstudy.training.finishing import TASKS


def learner() -> qs.MAMLPlusPlus:
    torch.manual_seed(0)
    network = qs.nn.conv4(channels=1, classes=3, filters=4, size=28, norm="support")
    return qs.MAMLPlusPlus(network, steps=1, per_step_statistics=True)


def train(learner: qs.MAMLPlusPlus, out: Path | None = None, iterations: int = 4, **more: object) -> qs.Trained:
    tasks = qs.tasks.glyphs("train", ways=3, shots=1, queries=1)
    return qs.train(
        learner, tasks, iterations=iterations, meta_batch=1, seed=3, out=out, engine="loop", progress=False, **more  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_averages_are_the_means_over_training_tasks() -> None:
    trained = train(one := learner())
    source, drawn = source_of(qs.tasks.glyphs("train", ways=3, shots=1, queries=1)), seeds.generator(3, "finish")
    with torch.no_grad():
        supports = [unstack(source.sample(1, drawn))[0].support for _ in range(TASKS)]
        observed = [one._observed(trained.theta, one._path(trained.theta, support), support) for support in supports]
    for name in observed[0]:
        torch.testing.assert_close(trained.theta[name], torch.stack([each[name] for each in observed]).mean(0))
        started = one.init()[name]
        assert (trained.theta[name] - started).abs().max() > 0.1, "four small steps would not have come so far"


def test_a_resumed_training_ends_with_the_same_averages(tmp_path: Path) -> None:
    whole = train(learner(), tmp_path / "a")
    train(learner(), tmp_path / "b", iterations=4)
    again = train(learner(), tmp_path / "b", iterations=4, resume=True)
    assert all(torch.equal(whole.theta[name], again.theta[name]) for name in whole.theta)


def test_without_averages_nothing_is_drawn() -> None:
    one = qs.MAMLPlusPlus(qs.nn.mlp(2, 3))
    theta = one.init()
    assert one.finish(theta, iter(())) is theta
