"""The outer loop: `meta_steps`, a generator that meta-trains any learner, and `train` on top of it."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from quickstudy.base import files, seeds
from quickstudy.base.machine import machine
from quickstudy.base.progress import training_bar
from quickstudy.engine import mapping, numerics, ranks
from quickstudy.engine.choice.choose import choose_engine, error_in_words
from quickstudy.engine.fitting import check_episodes
from quickstudy.episodes import Episodes, first_tasks, is_classification, moved, unstack
from quickstudy.errors import ConfigError, DataError, EngineWarning
from quickstudy.evaluation.scoring import episode_score, evaluate
from quickstudy.learner import Learner, Theta, describe_learner, networks
from quickstudy.nn.parameters import constants
from quickstudy.tasks.source import describe
from quickstudy.trained.trained import Trained
from quickstudy.training.checkpoint import (
    TrainingState,
    append_metrics,
    begin_run,
    open_run,
    save_checkpoint,
    schedule_state,
)
from quickstudy.training.loop import Step, meta_steps
from quickstudy.training.outer import described_outer, optimizer_of, schedule_of
from quickstudy.training.tensorboard import check_tensorboard, events

LOG_EVERY = 20  # iterations per line of metrics.jsonl
SHOWN_TASKS = 4  # tasks whose training accuracy is computed for that line
CHECKPOINT_SECONDS = 15.0  # between checkpoints: about this much work is lost if the process is killed


# --- train -----------------------------------------------------------------------------------------------------------


def train(
    learner: Learner,
    tasks: Any,
    *,
    iterations: int,
    meta_batch: int = 16,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    val: Any = None,
    val_every: int | None = None,
    val_episodes: int = 100,
    patience: int | None = None,
    keep: int = 1,
    engine: str = "auto",
    compile: bool = False,
    chunk: int | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    clip: float | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
    tensorboard: bool = False,
    about: dict[str, Any] | None = None,
) -> Trained:
    """Meta-train a learner on a task source.

    learner, tasks   the learner, and any object with `sample(n, generator) -> Episode`
    iterations       outer updates; meta_batch tasks each
    seed             determines every random draw of the run (but not the initial weights, which come with the model)
    out              run folder: config, protocol, metrics, checkpoint, learner.qs; None keeps everything in memory
    val              validation tasks: every `val_every` iterations (default: a tenth of all) theta is scored on
                     `val_episodes` episodes. The best theta is kept, and after `patience` validations without a
                     better one training stops
    keep             how many of the best thetas are kept in `Trained.best`, for an ensemble at evaluation
    engine           "auto" times vmap, threads and loop on the first iteration. In longer trainings it also times the
                     recorded programs "replay" and "replay-threads", and in a long training of a small model
                     "compile". The time for choosing is reported and included in the run's timing
    chunk            the most tasks that run together: fewer need less memory and more time; None: as many as fit
    compile          the same as engine="compile": the meta-gradient as one compiled program, where possible
    precision        "bf16" computes meta-losses under torch's autocast to bfloat16; theta and its updates stay float32
    channels_last    store images and convolution kernels in channels-last layout. The effect of this and of
                     `precision` on the meta-gradient is measured on the first meta-batch, reported, and kept in
                     timing.json
    optimizer        maps parameters to a torch optimizer; `scheduler` maps that to a learning-rate schedule, stepped
                     once per iteration. None: the learner's `outer()` decides, which for most is Adam with learning
                     rate 1e-3. `clip` bounds the gradient norm
    resume           continue from the run folder's checkpoint; the result is bit-identical to an uninterrupted run
    device           where theta and the episodes are, such as "cpu" or "cuda"
    progress         show a progress bar
    tensorboard      also write the learning curve to the run folder as TensorBoard event files (needs the package)
    about            plain values to keep in config.json

    Inside a process group (`qs.ranks.joined`, or one of your own) every rank makes the same call and computes its share
    of each meta-batch; the first rank writes the folder, which all ranks must see. See docs/scaling.md.

    Returns the trained learner, with the best theta on validation if there are validation tasks, else the last one.

    Raises ConfigError where a setting is wrong, DataError where the learner cannot use the tasks, RunError where the
    run folder cannot be used, NonFiniteError where the loss or a gradient is not finite, OutOfMemoryError where memory
    runs out, and RankError where other ranks cannot be reached. Ctrl-C saves a checkpoint, then raises
    KeyboardInterrupt.
    """
    _check_settings(iterations, meta_batch, val_episodes, val_every, patience, keep, chunk)
    if compile and engine not in ("auto", *mapping.TOGETHER):
        raise ConfigError(
            f"compile=True compiles what all tasks compute together; it does not go with engine={engine!r}."
        )
    engine = "compile" if compile else engine
    numerics.check_precision(precision)
    if keep > 1 and val is None:
        raise ConfigError(f"keep={keep} keeps the best thetas on validation, but there are no validation tasks (val).")
    folder = None if out is None else Path(out)
    if tensorboard:
        check_tensorboard(folder)
    preprocess = dict(getattr(tasks, "preprocess", {}))
    extractor, text_encoder = (getattr(tasks, name, None) for name in ("extractor", "text_encoder"))
    if not learner.episodic and hasattr(tasks, "pooled"):
        tasks = tasks.pooled()
    theta = {name: value.detach().clone().to(device) for name, value in learner.init().items()}
    trained = Trained(learner, theta, describe(tasks), preprocess, extractor=extractor, text_encoder=text_encoder)
    if channels_last:
        theta.update(numerics.channels_last(theta))
    state = _prepare(trained, optimizer, scheduler or schedule_of(learner.outer().schedule, iterations))
    config = {
        "learner": describe_learner(learner),
        "tasks": describe(tasks),
        "meta_batch": meta_batch,
        "seed": seed,
        "optimizer": described_outer(state.optimizer, state.optimizer.defaults),
        "scheduler": described_outer(state.scheduler, schedule_state(state.scheduler)),
        **({"precision": precision} if precision != "float32" else {}),
        **({"channels_last": True} if channels_last else {}),
    }
    if theta:  # check before anything is written, so that a failing run leaves no folder
        first = moved(tasks.sample(meta_batch, seeds.generator(seed, "train", 0)), next(iter(theta.values())).device)
        _check_first(learner, theta, first)
    state.keep = keep
    resumed = open_run(folder, config, iterations, state, resume or ranks.restarted())
    rest = {"iterations": iterations, "val_every": val_every, "val_episodes": val_episodes, "keep": state.keep}
    if ranks.size() > 1:
        given = {"patience": patience, "clip": clip, "val": val is not None, "out": out is not None}
        _check_ranks(trained, state, config | rest | given)
        rest["ranks"] = ranks.size()
        folder = folder if ranks.first() else None  # all ranks have read the folder, but only one writes to it
    begin_run(folder, config | {"iterations": iterations, **(about or {})}, state)
    _write_protocol(folder, config | rest)
    state.chunk = chunk or state.chunk
    if not theta:  # no meta-parameters: there is nothing to train
        return _finish(trained, state, folder)
    if not resumed:
        began = time.monotonic()
        few = first_tasks(first, -(-meta_batch // ranks.size()))  # as many as the first rank's share of an iteration
        few = numerics.images_channels_last(few) if channels_last else few
        choice = choose_engine(learner, theta, few, engine, seed, iterations, chunk, precision)
        state.engine, state.reason, state.chunk = ranks.same_engine(choice)
        if precision != "float32" or channels_last:
            state.reason += f"; {error_in_words(learner, theta, few, seed, precision, channels_last)}"
        state.timing["choosing"] = state.timing["total"] = time.monotonic() - began
        save_checkpoint(folder, state)
    every = val_every or max(1, iterations // 10)
    settings = _Settings(folder, val, every, val_episodes, patience, seed, tensorboard)
    steps = functools.partial(
        meta_steps,
        learner,
        theta,
        tasks,
        state.optimizer,
        iterations=iterations,
        meta_batch=meta_batch,
        seed=seed,
        start=state.iteration,
        engine=state.engine,
        chunk=state.chunk,
        precision=precision,
        channels_last=channels_last,
        clip=clip,
    )
    _run(steps, trained, state, settings, iterations, progress)
    return _finish(trained, state, folder)


class _Settings(NamedTuple):
    folder: Path | None
    val: Any
    val_every: int
    val_episodes: int
    patience: int | None
    seed: int
    tensorboard: bool


def _run(
    steps: Callable[..., Iterator[Step]],
    trained: Trained,
    state: TrainingState,
    settings: _Settings,
    iterations: int,
    progress: bool,
) -> None:
    if _out_of_patience(state, settings):  # this resumes a run that had stopped early
        return
    saved = began = time.monotonic()
    busy = time.process_time()
    before = dict(state.timing)
    engine = f"{state.engine} ({state.reason})"
    board = events(settings.folder if settings.tensorboard else None, before["total"])
    bars = training_bar(iterations, state.iteration, engine, progress and ranks.first())
    with bars as bar, board as show, _interruptible() as interrupted:
        for step in steps(interrupted=interrupted):
            _account(state, step)
            state.timing["total"] = before["total"] + time.monotonic() - began
            state.timing["processor"] = before["processor"] + time.process_time() - busy
            line = _line(trained, state, step, settings, last=step.iteration == iterations)
            bar(step, line)
            append_metrics(settings.folder, line)
            show(line)
            stop = step.interrupted if ranks.size() > 1 else interrupted()  # all ranks stop after the same iteration
            if stop or time.monotonic() - saved >= CHECKPOINT_SECONDS:
                save_checkpoint(settings.folder, state)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt
            if _out_of_patience(state, settings):
                break


def _out_of_patience(state: TrainingState, settings: _Settings) -> bool:
    return settings.patience is not None and state.since_best >= settings.patience


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


def _account(state: TrainingState, step: Step) -> None:
    state.iteration = step.iteration
    state.timing["sampling"] += step.sampling
    state.timing["computing"] += step.computing
    state.window.append(step.loss)
    if state.scheduler is not None:
        state.scheduler.step()


def _line(trained: Trained, state: TrainingState, step: Step, settings: _Settings, last: bool) -> dict[str, Any]:
    """The line of metrics.jsonl for this iteration; empty for most iterations."""
    line: dict[str, Any] = {}
    validate = settings.val is not None and (step.iteration % settings.val_every == 0 or last)
    if step.iteration % LOG_EVERY == 0 or validate or last:
        line = {"iteration": step.iteration, "loss": sum(state.window) / len(state.window)}
        line |= _training_score(trained, step.episodes) if trained.learner.episodic and ranks.first() else {}
        line["seconds"] = round(state.timing["total"], 3)
        state.window.clear()
    if validate:
        line |= _validate(trained, state, settings)
    return line


def _training_score(trained: Trained, episodes: Episodes) -> dict[str, float]:
    if not isinstance(unstack(episodes)[0].query.y, Tensor):
        return {}  # several targets: only a metric of the user's own could score them
    few = first_tasks(episodes, SHOWN_TASKS)
    with seeds.seeded(0, "shown"):
        values = mapping.map_learner(lambda one, e: episode_score(one, trained.theta, e), trained.learner, few)
    if not is_classification(episodes):  # in the squared unit of the answers, like the validation score
        return {"error": float(values.mean()) * trained.preprocess.get("std", 1.0) ** 2}
    return {"accuracy": float(values.mean())}


def _validate(trained: Trained, state: TrainingState, settings: _Settings) -> dict[str, float]:
    engine, seed = mapping.without_program(state.engine), settings.seed + 1_000_003
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EngineWarning)  # a learner that trains with replay may not support vmap
        score = evaluate(trained, settings.val, episodes=settings.val_episodes, seed=seed, engine=engine)
    value = score.mean if score.protocol.metric == "accuracy" else -score.mean
    state.remember(value)
    return {"val": score.mean, "val_interval": score.interval}


def _prepare(
    trained: Trained,
    optimizer: Callable[[list[Tensor]], Optimizer] | None,
    scheduler: Callable[[Optimizer], LRScheduler] | None,
) -> TrainingState:
    values = list(trained.theta.values()) or [torch.zeros(())]  # torch refuses an optimizer without parameters
    built = (optimizer or optimizer_of(trained.learner.outer()))(values)
    return TrainingState(trained.theta, built, scheduler(built) if scheduler else None)


def _finish(trained: Trained, state: TrainingState, folder: Path | None) -> Trained:
    thetas = [theta for _, theta in state.best]
    theta, several = (thetas or [trained.theta])[0], tuple(thetas) if len(thetas) > 1 else ()
    final = dataclasses.replace(trained, theta=theta, best=several)
    if folder is not None:
        save_checkpoint(folder, state)
        final.save(folder / "learner.qs")
        engine = {"engine": state.engine, "reason": state.reason}
        files.write_json(folder / "timing.json", state.timing | engine | {"machine": machine()})
    ranks.barrier()  # no rank reads the folder before the first has written it
    return final


def _check_first(learner: Learner, theta: Theta, episodes: Episodes) -> None:
    if learner.episodic:
        check_episodes(learner, theta, episodes)
        return
    try:
        with torch.no_grad():
            learner.meta_loss(theta, unstack(episodes)[0])
    except (RuntimeError, IndexError) as error:
        raise DataError(
            f"{type(learner).__name__} cannot pretrain on these tasks: {str(error).splitlines()[0]}. Its model needs "
            "an output for each training class (len(tasks.classes)) and the inputs' channels and size."
        ) from error


def _check_ranks(trained: Trained, state: TrainingState, settings: dict[str, Any]) -> None:
    """Refuse ranks that start with different weights, iterations or settings: their mean would be meaningless."""
    fixed = {f"{n}.{k}": v for n, model in networks(trained.learner).items() for k, v in constants(model).items()}
    theta, constant = files.fingerprint(trained.theta), files.fingerprint(fixed)
    ranks.check_same(settings=settings, iteration=state.iteration, theta=theta, network=constant)


def _write_protocol(folder: Path | None, training: dict[str, Any]) -> None:
    """Write the training settings to protocol.json; evaluation adds the protocol of its scores."""
    if folder is not None:
        kept = {name: value for name, value in training.items() if name != "learner"}
        files.write_json(folder / "protocol.json", {"training": kept, "machine": machine()})


def _check_settings(iterations: int, meta_batch: int, val_episodes: int, *others: int | None) -> None:
    named = {"iterations": iterations, "meta_batch": meta_batch, "val_episodes": val_episodes}
    optional = zip(("val_every", "patience", "keep", "chunk"), others, strict=True)
    named |= {name: value for name, value in optional if value is not None}
    for name, value in named.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
