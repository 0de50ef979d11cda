"""`train`: the one outer loop with a run folder, validation, checkpoints and a progress bar around it."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from quickstudy.base import files
from quickstudy.base.machine import machine
from quickstudy.base.progress import training_bar
from quickstudy.engine import ranks
from quickstudy.engine.watch import Watch
from quickstudy.evaluation.metric import Metric
from quickstudy.learner import Learner
from quickstudy.trained.trained import Trained
from quickstudy.training.budget import OWN, Budget, stopwatch, used
from quickstudy.training.checkpoint import TrainingState, append_metrics, save_checkpoint
from quickstudy.training.curve import line_of, with_metric
from quickstudy.training.finishing import finished
from quickstudy.training.loop import Step, meta_steps
from quickstudy.training.opening import (
    Session,
    choose,
    first_episodes,
    new_state,
    note_iterations,
    opened,
    training_source,
    untrained,
)
from quickstudy.training.settings import TrainSettings, check_settings, train_settings
from quickstudy.training.tensorboard import events

CHECKPOINT_SECONDS = 15.0  # between checkpoints: about this much work is lost if the process is killed


def train(
    learner: Learner,
    tasks: Any,
    *,
    iterations: int,
    meta_batch: int = TrainSettings.meta_batch,
    seed: int = TrainSettings.seed,
    out: str | os.PathLike | None = None,
    val: Any = None,
    val_every: int | None = TrainSettings.val_every,
    val_episodes: int = TrainSettings.val_episodes,
    patience: int | None = TrainSettings.patience,
    keep: int = TrainSettings.keep,
    metric: str | Metric | None = TrainSettings.metric,
    engine: str = TrainSettings.engine,
    compile: bool = False,
    chunk: int | None = TrainSettings.chunk,
    precision: str = TrainSettings.precision,
    channels_last: bool = TrainSettings.channels_last,
    optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    clip: float | None = TrainSettings.clip,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
    tensorboard: bool = TrainSettings.tensorboard,
    budget: Budget | None = None,
    about: dict[str, Any] | None = None,
) -> Trained:
    """Meta-train a learner on a task source; returns it with the best theta on validation tasks, else the last one.

    learner, tasks   the learner, and any object with `sample(n, generator) -> Episode`, see `quickstudy.tasks.source`
    out              run folder: config, protocol, metrics, checkpoint, learner.qs; None keeps everything in memory
    val              validation tasks; after `patience` validations without a better score training stops
    optimizer        maps parameters to a torch optimizer, and `scheduler` that to its schedule, stepped once per
                     iteration; None: what the learner's `outer()` says, for most Adam with learning rate 1e-3
    resume           continue from the run folder's checkpoint; the result is bit-identical to an uninterrupted run
    device           where theta and the episodes are, such as "cpu" or "cuda"
    progress, about  show a progress bar; plain values to keep in config.json
    budget           a `quickstudy.training.Budget`, for a training that ends by the clock, after at most `iterations`;
                     validation is then at equal shares of its time. A resumed run goes on with the time it has left

    The rest are settings that the command line shares: `quickstudy.training.TrainSettings` (compile=True is an engine).
    In a process group every rank makes the same call; the first writes the folder, which all must see: docs/scaling.md.

    Raises ConfigError where a setting is wrong, DataError where the learner cannot use the tasks, RunError where the
    run folder cannot be used, NonFiniteError where the loss or a gradient is not finite, OutOfMemoryError where memory
    runs out, EngineError where the engine is found wrong on later tasks, RankError where other ranks cannot be
    reached, KeyboardInterrupt after Ctrl-C and a last checkpoint.
    """
    settings = train_settings(locals(), compile)
    folder = None if out is None else Path(out)
    check_settings(settings, folder, val is not None)
    source = training_source(learner, tasks)
    trained = untrained(learner, tasks, source.describe(), device, channels_last)
    state = new_state(trained, settings, optimizer, scheduler, budget)
    session = Session(trained, source, val, settings, state, folder, budget)
    first = first_episodes(session) if trained.theta else None  # before anything is written; None: nothing to train
    session = with_metric(session, first)
    session, resumed = opened(session, resume, about or {})
    if first is not None:
        if not resumed:
            choose(session, first)
        _run(session, progress)
    return _finish(session)


def _run(session: Session, progress: bool) -> None:
    """The iterations that are left, with their lines of metrics and checkpoints in the run folder."""
    settings, state = session.settings, session.state
    if _over(session):  # this resumes a run that had stopped early
        return
    saved, looked = time.monotonic(), state.timing.get("looking", 0.0)
    clock, counted = _clock(state), stopwatch(next(iter(session.trained.theta.values())).device)
    board = events(session.folder if settings.tensorboard else None, state.timing["total"])
    engine = f"{state.engine} ({state.reason})"
    most = None if session.budget else settings.iterations
    bars = training_bar(most, session.share, engine, progress and ranks.first())
    with bars as bar, board as show, _interruptible() as interrupted:
        watch = Watch(state.engine, settings.seed, cost=state.checked)
        for step in _steps(session, interrupted, watch):
            before = session.share
            _account(session, step, counted)
            state.timing["looking"] = looked + watch.spent
            state.timing |= clock()
            line = line_of(session, step, session.validates(before))
            bar(step, line, session.share)
            append_metrics(session.folder, line)
            show(line)
            stop = step.interrupted if ranks.size() > 1 else interrupted()
            if stop or time.monotonic() - saved >= CHECKPOINT_SECONDS:
                save_checkpoint(session.folder, state)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt
            if _over(session):
                break


def _steps(session: Session, interrupted: Callable[[], bool], watch: Watch) -> Iterator[Step]:
    settings, state = session.settings, session.state
    return meta_steps(
        session.learner,
        session.trained.theta,
        session.source,
        state.optimizer,
        iterations=settings.iterations,
        meta_batch=settings.meta_batch,
        seed=settings.seed,
        start=state.iteration,
        engine=state.engine,
        chunk=state.chunk,
        precision=settings.precision,
        channels_last=settings.channels_last,
        clip=settings.clip,
        interrupted=interrupted,
        watch=watch,
        share=(lambda iteration: session.share) if session.budget else None,
    )


def _clock(state: TrainingState) -> Callable[[], dict[str, float]]:
    """Reads the seconds of the whole training, also before it was resumed: on the wall, and of the processors."""
    wall = state.timing["total"] - time.monotonic()
    processor = state.timing["processor"] - time.process_time()
    return lambda: {"total": wall + time.monotonic(), "processor": processor + time.process_time()}


def _over(session: Session) -> bool:
    """Whether the training ends here: all of it is done, or validation does not get better."""
    patience = session.settings.patience
    return session.share >= 1 or (patience is not None and session.state.since_best >= patience)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C finish the iteration first, so that the checkpoint is consistent; a second Ctrl-C stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda: False
        return

    def handle(number: int, frame: Any) -> None:
        if asked and ranks.size() == 1:  # with several ranks, torchrun ends those that take too long
            raise KeyboardInterrupt
        asked.append(number)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


def _account(session: Session, step: Step, counted: Callable[[float], float]) -> None:
    state = session.state
    state.iteration = step.iteration
    if session.budget:
        state.timing[OWN] = used(state.timing) + counted(step.sampling + step.computing)
    state.timing["sampling"] += step.sampling
    state.timing["computing"] += step.computing
    state.window.append(step.loss)
    if state.scheduler is not None:
        state.scheduler.step()


def _finish(session: Session) -> Trained:
    """The trained learner, written to the run folder with its timing.

    The checkpoint keeps theta as the loop left it, so that a run with more iterations goes on from there.
    """
    state, folder, clock = session.state, session.folder, _clock(session.state)
    save_checkpoint(folder, state)
    thetas = [finished(session, theta) for _, theta in state.best] or [finished(session, session.trained.theta)]
    state.timing |= clock()
    final = dataclasses.replace(session.trained, theta=thetas[0], best=tuple(thetas) if len(thetas) > 1 else ())
    if folder is not None:
        final.save(folder / "learner.qs")
        engine = {"engine": state.engine, "reason": state.reason}
        done = {"iterations": state.iteration}
        files.write_json(folder / "timing.json", state.timing | engine | done | {"machine": machine()})
        if session.budget:
            note_iterations(folder, state.iteration)
    ranks.barrier()  # no rank reads the folder before the first has written it
    return final
