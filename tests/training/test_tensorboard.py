"""TensorBoard's event files hold what metrics.jsonl holds, each step once, however often a run was interrupted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.errors import ConfigError
from quickstudy.training.checkpoint import read_metrics
from quickstudy.training.tensorboard import TAGS, events


def train(out: Path | None, iterations: int = 50, resume: bool = False, tensorboard: bool = True) -> None:
    learner = qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), loss=qs.mse_loss, lr=0.01, steps=1)
    tasks, val = (qs.tasks.sinusoid(split, 5, 5) for split in ("train", "val"))
    settings = {"meta_batch": 2, "val_every": 25, "val_episodes": 4, "engine": "loop", "progress": False}
    settings |= {"iterations": iterations, "resume": resume, "tensorboard": tensorboard}
    qs.train(learner, tasks, val=val, out=out, **settings)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, read without any repair of repeated steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def lines(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same, from metrics.jsonl."""
    found = read_metrics(folder)
    known = {
        tag: [(one["iteration"], float(np.float32(one[name]))) for one in found if name in one]
        for name, tag in TAGS.items()
    }
    return {tag: values for tag, values in known.items() if values}


def test_the_events_are_the_lines(tmp_path):
    train(tmp_path / "run")
    found = curves(tmp_path / "run")
    assert found == lines(tmp_path / "run")
    assert found.keys() == {"train/loss", "train/error", "val/score"} and len(found["val/score"]) == 2


def test_a_run_that_goes_on_writes_no_step_twice(tmp_path):
    run = tmp_path / "run"
    train(run)
    # As a kill leaves it: the curve is ahead of the checkpoint.
    with events(run, 0.0) as write:
        for iteration in (60, 80):
            write({"iteration": iteration, "loss": 9.0, "seconds": 1.0})
    assert [step for step, _ in curves(run)["train/loss"]][-2:] == [60, 80]
    train(run, iterations=100, resume=True)
    found = curves(run)
    assert found == lines(run) and found["train/loss"][-1][0] == 100
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


def test_a_run_begun_without_gets_its_whole_curve(tmp_path):
    train(tmp_path / "run", tensorboard=False)
    assert not list((tmp_path / "run").glob("events*"))
    train(tmp_path / "run", iterations=70, resume=True)
    found = curves(tmp_path / "run")
    assert found == lines(tmp_path / "run") and found["train/loss"][0][0] == 20


def test_times_are_those_of_training(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with events(tmp_path, 0.0) as write:
        for iteration, seconds in ((20, 5.0), (40, 65.0)):
            write({"iteration": iteration, "loss": 1.0, "seconds": seconds})
    first, second = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert second.wall_time - first.wall_time == pytest.approx(60, abs=1e-3)


def test_accuracy_is_told_for_classes_and_on_the_command_line(tmp_path):
    for learner, tags in (("nearest_centroid", set()), ("metarnn", {"train/loss", "train/accuracy", "val/score"})):
        out = tmp_path / learner
        sizes = ["--ways", "2", "--iterations", "2", "--meta-batch", "2", "--val-episodes", "2", "--engine", "loop"]
        assert main.run(["train", "glyphs", learner, *sizes, "--out", str(out), "--tensorboard"]) == 0
        assert curves(out) == lines(out) and curves(out).keys() == tags


def test_what_is_lacking_is_said_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="out="):
        train(None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'quickstudy\[tensorboard\]'"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
