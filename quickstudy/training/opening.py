"""Begins a training: theta, optimizer and run folder, checks before anything is written, the choice of an engine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from quickstudy.base import files
from quickstudy.base.machine import machine
from quickstudy.engine import numerics, ranks
from quickstudy.engine.choice.choose import choose_engine, error_in_words
from quickstudy.engine.fitting import check_episodes
from quickstudy.episodes import Episodes, first_tasks, moved, unstack
from quickstudy.errors import DataError
from quickstudy.evaluation.metric import find_metric, named
from quickstudy.learner import Learner, Theta, describe_learner, networks
from quickstudy.nn.parameters import constants
from quickstudy.tasks.source import Source, source_of
from quickstudy.trained.trained import Trained
from quickstudy.training.checkpoint import TrainingState, begin_run, open_run, save_checkpoint, schedule_state
from quickstudy.training.loop import drawn_tasks
from quickstudy.training.outer import described_outer, optimizer_of, schedule_of
from quickstudy.training.settings import TrainSettings

MakeOptimizer = Callable[[list[Tensor]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True, eq=False)
class Session:
    """One training: what stays the same in it, and its state."""

    trained: Trained  # the learner, and the theta that is updated in place
    source: Source  # the training tasks; pooled for a learner that is not episodic
    val: Any  # validation tasks, or None
    settings: TrainSettings
    state: TrainingState
    folder: Path | None  # the run folder; None: nothing is written

    @property
    def learner(self) -> Learner:
        return self.trained.learner


def training_source(learner: Learner, tasks: Any) -> Source:
    """What the learner trains on: the tasks, or their pooled examples for a learner that is not episodic."""
    return source_of(tasks) if learner.episodic else source_of(tasks).pooled()


def untrained(
    learner: Learner, tasks: Any, described: Mapping[str, Any], device: str | torch.device, channels_last: bool
) -> Trained:
    """The learner with its initial theta on `device`; `described`: what the tasks it trains on say of themselves."""
    theta = {name: value.detach().clone().to(device) for name, value in learner.init().items()}
    theta = numerics.channels_last(theta) if channels_last else theta
    source = source_of(tasks)
    preprocess, extractor, encoder = dict(source.preprocess), source.extractor, source.text_encoder
    return Trained(learner, theta, described, preprocess, extractor=extractor, text_encoder=encoder)


def new_state(
    trained: Trained, settings: TrainSettings, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None
) -> TrainingState:
    """The state before the first iteration; what is None is the learner's own choice."""
    outer = trained.learner.outer()
    values = list(trained.theta.values()) or [torch.zeros(())]  # torch refuses an optimizer without parameters
    moves = (optimizer or optimizer_of(outer))(values)
    schedule = scheduler or schedule_of(outer.schedule, settings.iterations)
    return TrainingState(trained.theta, moves, schedule(moves) if schedule else None, keep=settings.keep)


def first_episodes(session: Session) -> Episodes:
    """The first meta-batch, of all ranks. Raises DataError where the learner cannot use it."""
    settings, theta, source = session.settings, session.trained.theta, session.source
    drawn = drawn_tasks(
        source.draw, source, session.learner, theta, settings.meta_batch, settings.seed, 0, settings.iterations
    )
    first = moved(drawn, next(iter(theta.values())).device)
    if session.learner.episodic:
        check_episodes(session.learner, theta, first)
    else:
        _check_pretraining(session.learner, theta, first)
    return first


def _check_pretraining(learner: Learner, theta: Theta, episodes: Episodes) -> None:
    try:
        with torch.no_grad():
            learner.meta_loss(theta, unstack(episodes)[0])
    except (RuntimeError, IndexError) as error:
        raise DataError(
            f"{type(learner).__name__} cannot pretrain on these tasks: {str(error).splitlines()[0]}. Its model needs "
            "an output for each training class (len(tasks.classes)) and the inputs' channels and size."
        ) from error


# --- the run folder --------------------------------------------------------------------------------------------------


def opened(session: Session, resume: bool, about: Mapping[str, Any]) -> tuple[Session, bool]:
    """The session with its run folder begun, and whether it goes on from a checkpoint there.

    Raises what `open_run` and `begin_run` raise, and ConfigError where the ranks of a process group begin differently.
    """
    settings, state, config = session.settings, session.state, _config(session)
    resumed = open_run(session.folder, config, settings.iterations, state, resume or ranks.restarted())
    sizes = {name: vars(settings)[name] for name in ("iterations", "val_every", "val_episodes")} | {"keep": state.keep}
    if ranks.size() > 1:
        _check_ranks(session, config | sizes)
        sizes["ranks"] = ranks.size()
        # All ranks have read the folder, but only one writes to it.
        session = dataclasses.replace(session, folder=session.folder if ranks.first() else None)
    begin_run(session.folder, config | {"iterations": settings.iterations, **about}, state)
    _write_protocol(session.folder, config | sizes)
    state.chunk = settings.chunk or state.chunk
    return session, resumed


def _config(session: Session) -> dict[str, Any]:
    """What must be the same for a run to go on, as plain values."""
    settings, state = session.settings, session.state
    config = {
        "learner": describe_learner(session.learner),
        "tasks": dict(session.trained.tasks),
        "meta_batch": settings.meta_batch,
        "seed": settings.seed,
        "optimizer": described_outer(state.optimizer, state.optimizer.defaults),
        "scheduler": described_outer(state.scheduler, schedule_state(state.scheduler)),
    }
    # None stands for what is usual: runs of earlier versions have no such entry, and go on.
    return config | {
        "precision": settings.precision if settings.precision != "float32" else None,
        "channels_last": settings.channels_last or None,
        "metric": None if settings.metric is None else named(find_metric(settings.metric)),
    }


def _check_ranks(session: Session, described: dict[str, Any]) -> None:
    """Refuse ranks that start with different weights, iterations or settings: their mean would be meaningless."""
    settings, models = session.settings, networks(session.learner)
    asked = {"patience": settings.patience, "clip": settings.clip}
    asked |= {"val": session.val is not None, "out": session.folder is not None}
    fixed = {f"{n}.{k}": v for n, model in models.items() for k, v in constants(model).items()}
    theta, constant = files.fingerprint(session.trained.theta), files.fingerprint(fixed)
    ranks.check_same(settings=described | asked, iteration=session.state.iteration, theta=theta, network=constant)


def _write_protocol(folder: Path | None, training: dict[str, Any]) -> None:
    """Write the training settings to protocol.json; evaluation adds the protocol of its scores."""
    if folder is not None:
        kept = {name: value for name, value in training.items() if name != "learner"}
        files.write_json(folder / "protocol.json", {"training": kept, "machine": machine()})


# --- the engine ------------------------------------------------------------------------------------------------------


def choose(session: Session, first: Episodes) -> None:
    """Choose the engine on the first meta-batch, keep it in the state, and write the first checkpoint."""
    settings, state, learner, theta = session.settings, session.state, session.learner, session.trained.theta
    began = time.monotonic()
    few = first_tasks(first, -(-settings.meta_batch // ranks.size()))  # as many as the first rank's share
    few = numerics.images_channels_last(few) if settings.channels_last else few
    wanted = (settings.engine, settings.seed, settings.iterations, settings.chunk, settings.precision)
    choice = ranks.same_engine(choose_engine(learner, theta, few, *wanted))
    state.engine, state.reason, state.chunk, state.checked = choice
    if settings.precision != "float32" or settings.channels_last:
        numbers = (settings.seed, settings.precision, settings.channels_last)
        state.reason += f"; {error_in_words(learner, theta, few, *numbers)}"
    state.timing["choosing"] = state.timing["total"] = time.monotonic() - began
    save_checkpoint(session.folder, state)
