"""Reads and writes the run folder during training: configuration, checkpoints, metrics."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from quickstudy.base import files
from quickstudy.engine.watch import Watch
from quickstudy.errors import ConfigError, RunError
from quickstudy.learner import Theta

# Fields of the state that are stored as plain JSON values.
PLAIN = ("engine", "reason", "chunk", "iteration", "since_best", "timing", "window")


@dataclass
class TrainingState:
    """The contents of a checkpoint: everything that the rest of the run depends on."""

    theta: Theta
    optimizer: Optimizer
    scheduler: LRScheduler | None
    engine: str = "loop"
    reason: str = ""
    chunk: int | None = None  # the most tasks that run together; None: all
    checked: float = 0.0  # seconds that comparing the engine with the loop took; 0 if that was in another process
    watch: Watch | None = (
        None  # compares the engine of validations with the loop; None before the first of this process
    )
    iteration: int = 0
    keep: int = 1  # how many of the best thetas to keep
    best: list[tuple[float, Theta]] = field(default_factory=list)  # validation scores (higher is better), best first
    since_best: int = 0  # validations since the best one
    timing: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("sampling", "computing", "choosing", "total", "processor"), 0.0)
    )
    window: list[float] = field(default_factory=list)  # losses since the last line of metrics.jsonl

    def remember(self, value: float) -> None:
        """Keep theta if its validation score `value` is among the best. Of equal scores the earlier ranks higher."""
        theta = {name: tensor.detach().clone() for name, tensor in self.theta.items()}
        self.best = sorted([*self.best, (value, theta)], key=lambda pair: -pair[0])[: self.keep]
        self.since_best = 0 if self.best[0][1] is theta else self.since_best + 1


def open_run(folder: Path | None, config: dict[str, Any], iterations: int, state: TrainingState, resume: bool) -> bool:
    """Load the run folder's checkpoint into `state`; returns whether there was one. Nothing is written yet.

    Raises ConfigError where `resume` has no folder. Raises RunError where the folder is a file, is in use without
    `resume`, was started with other settings, or has done more than `iterations` already.
    """
    if folder is None:
        if resume:
            raise ConfigError("resume=True needs a run folder: pass out=...")
        return False
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file, not a folder. Choose another --out.")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not resume:
        raise RunError(
            f"the folder {str(folder)!r} exists and is not empty. To continue that run pass --resume (resume=True); to "
            "start a new one choose another --out or delete the folder."
        )
    if (folder / "config.json").exists():
        _check_config(folder, config)
    known = (folder / "checkpoint.safetensors").exists()
    if known:
        _load_checkpoint(folder, state)
        if state.iteration > iterations:
            raise RunError(
                f"the run in {str(folder)!r} has done {state.iteration} iterations already, more than the "
                f"{iterations} asked for. Ask for as many or more, or start a new run in another folder."
            )
    return known


def begin_run(folder: Path | None, config: dict[str, Any], state: TrainingState) -> None:
    """Create the run folder, or cut its metrics back to the state's iteration, and write config.json.

    Raises RunError where the folder cannot be written.
    """
    if folder is None:
        return
    if (folder / "metrics.jsonl").exists():
        _cut_metrics(folder / "metrics.jsonl", state.iteration)
    files.write_json(folder / "config.json", config)


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    known = files.read_json(folder / "config.json")
    wanted = json.loads(json.dumps(config))
    for name, value in wanted.items():
        if known.get(name) != value:
            raise RunError(
                f"the run in {str(folder)!r} was started with another {name}: {_short(known.get(name))}, now "
                f"{_short(value)}. Resume with the same settings, or start a new run in another folder."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 300 else text[:300] + "..."


def save_checkpoint(folder: Path | None, state: TrainingState) -> None:
    """Write the state to checkpoint.safetensors; without a folder do nothing.

    Raises RunError where it cannot be written.
    """
    if folder is None:
        return
    tensors: dict[str, Tensor] = {}
    plain = {
        "theta": files.pack(state.theta, tensors, "theta"),
        "best": files.pack(state.best, tensors, "best"),
        "optimizer": files.pack(state.optimizer.state_dict(), tensors, "optimizer"),
        "scheduler": files.pack(schedule_state(state.scheduler), tensors, "scheduler"),
    }
    plain |= {name: vars(state)[name] for name in ("keep", *PLAIN)}
    files.write_tensors(folder / "checkpoint.safetensors", "checkpoint", tensors, plain)


def schedule_state(scheduler: LRScheduler | None) -> dict[str, Any] | None:
    """A scheduler's state as plain values; None without a scheduler."""
    if scheduler is None:
        return None
    # Functions (LambdaLR's) cannot be written; the scheduler that the caller builds brings them again.
    return {k: v for k, v in scheduler.state_dict().items() if isinstance(v, (int, float, list, bool, str, type(None)))}


def _load_checkpoint(folder: Path, state: TrainingState) -> None:
    tensors, plain = files.read_tensors(folder / "checkpoint.safetensors", "checkpoint")
    with torch.no_grad():
        for name, value in files.unpack(plain["theta"], tensors).items():
            state.theta[name].copy_(value)
    state.best = _best(plain, tensors)
    _keep_no_fewer(state, plain.get("keep", 1))
    state.optimizer.load_state_dict(files.unpack(plain["optimizer"], tensors))
    schedule = files.unpack(plain["scheduler"], tensors)
    if state.scheduler is not None and schedule is not None:
        state.scheduler.load_state_dict(schedule)
    for name in PLAIN:
        setattr(state, name, plain.get(name, vars(state)[name]))  # older checkpoints have no chunk


def _best(plain: dict[str, Any], tensors: dict[str, Tensor]) -> list[tuple[float, Theta]]:
    best = files.unpack(plain["best"], tensors)
    if "best_value" in plain:  # older checkpoints kept a single best theta, or None
        return [] if best is None else [(plain["best_value"], best)]
    return best


def _keep_no_fewer(state: TrainingState, known: int) -> None:
    """Keep the larger `keep` of a resumed run and its checkpoint, and warn if better thetas may be lost.

    A smaller `keep` on resuming drops no theta that is kept; a larger one cannot restore thetas already dropped.
    """
    if state.keep > known == len(state.best):
        warnings.warn(
            f"this run kept the {known} best of its validations until now: keep={state.keep} counts from here on, and "
            "better ones of before may be missing among them",
            stacklevel=6,  # the caller of `train`
        )
    state.keep = max(state.keep, known)


def append_metrics(folder: Path | None, line: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl; without a folder, or for an empty line, do nothing.

    Raises RunError where it cannot be written.
    """
    if folder is None or not line:
        return
    try:
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot write metrics to {str(folder)!r}: {error.strerror}. The last checkpoint is kept."
        ) from error


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without a last line that was cut short when the process was killed."""
    path = Path(folder) / "metrics.jsonl"
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _cut_metrics(path: Path, iteration: int) -> None:
    """Drop the lines written after the checkpoint, because those iterations will run again."""
    kept = [line for line in read_metrics(path.parent) if line["iteration"] <= iteration]
    files.write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
