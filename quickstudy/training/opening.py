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

from quickstudy.base import files, seeds
from quickstudy.base.machine import machine
from quickstudy.base.timing import timed
from quickstudy.engine import numerics, ranks
from quickstudy.engine.choice.choose import choose_engine, error_in_words, share_gradient
from quickstudy.engine.engines import LOOP
from quickstudy.engine.fitting import check_episodes
from quickstudy.episodes import Episodes, device_of_tasks, first_tasks, moved, unstack
from quickstudy.errors import DataError
from quickstudy.evaluation.metric import ACCURACY, MEAN_SQUARED_ERROR, Metric, find_metric, named
from quickstudy.learner import Learner, Theta, describe_learner, networks
from quickstudy.nn.parameters import constants
from quickstudy.tasks.source import Source, source_of
from quickstudy.trained.trained import Trained
from quickstudy.training.budget import Budget
from quickstudy.training.checkpoint import TrainingState, begin_run, open_run, save_checkpoint, schedule_state
from quickstudy.training.loop import drawn_tasks
from quickstudy.training.outer import described_outer, optimizer_of, schedule_by_share, schedule_of
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
    budget: Budget | None = None  # the time for the training; None: all iterations
    metric: Metric | None = None  # what the curve and validation score; None: nothing, the curve shows the loss alone

    @property
    def learner(self) -> Learner:
        return self.trained.learner

    @property
    def share(self) -> float:
        """The share of the training that is done, from 0 to 1."""
        done = self.state.iteration / self.settings.iterations
        return max(done, self.budget.share(self.state.timing)) if self.budget else done

    def validates(self, before: float) -> bool:
        """Whether a validation is due, after an iteration before which the share `before` was done."""
        if self.val is None:
            return False
        if self.budget:
            return self.budget.validates(before, self.share)
        return self.state.iteration % self.settings.validation_interval == 0 or self.share == 1


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
    trained: Trained,
    settings: TrainSettings,
    optimizer: MakeOptimizer | None,
    scheduler: MakeScheduler | None,
    budget: Budget | None,
) -> TrainingState:
    """The state before the first iteration; what is None is the learner's own choice."""
    outer = trained.learner.outer()
    values = list(trained.theta.values()) or [torch.zeros(())]  # torch refuses an optimizer without parameters
    moves = (optimizer or optimizer_of(outer))(values)
    state = TrainingState(trained.theta, moves, None, keep=settings.keep)
    by_time = schedule_by_share(outer.schedule, lambda: budget.share(state.timing)) if budget else None
    schedule = scheduler or (by_time if budget else schedule_of(outer.schedule, settings.iterations))
    state.scheduler = schedule(moves) if schedule else None
    return state


def first_episodes(session: Session) -> Episodes:
    """The first meta-batch, of all ranks. Raises DataError where the learner cannot use it."""
    settings, theta, source = session.settings, session.trained.theta, session.source
    drawn = drawn_tasks(source.draw, source, session.learner, theta, settings.meta_batch, settings.seed, 0)
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
    length: dict[str, Any] = {"iterations": settings.iterations}
    if session.budget:
        ranks.alone("a training that ends by the clock")  # each rank has a clock of its own
        length["seconds"] = session.budget.seconds
    begin_run(session.folder, config | length | dict(about), state)
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
        "metric": _scored(session),
    }


def _scored(session: Session) -> str | dict[str, Any] | None:
    """What validation goes by, for a file; None where nobody asked, and it is what earlier versions went by."""
    if (asked := session.settings.metric) is not None:
        return named(find_metric(asked))
    return None if session.metric in (None, ACCURACY, MEAN_SQUARED_ERROR) else named(session.metric)


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


def note_iterations(folder: Path, done: int) -> None:
    """Write into the run folder how many iterations a training had time for."""
    config, protocol = (files.read_json(folder / name) for name in ("config.json", "protocol.json"))
    files.write_json(folder / "config.json", config | {"iterations": done})
    files.write_json(folder / "protocol.json", protocol | {"training": protocol["training"] | {"iterations": done}})


# --- the engine ------------------------------------------------------------------------------------------------------


def choose(session: Session, first: Episodes) -> None:
    """Choose the engine on the first meta-batch, keep it in the state, and write the first checkpoint."""
    settings, state, learner, theta = session.settings, session.state, session.learner, session.trained.theta
    began = time.monotonic()
    few = first_tasks(first, -(-settings.meta_batch // ranks.size()))  # as many as the first rank's share
    few = numerics.images_channels_last(few) if settings.channels_last else few
    iterations = _iterations_within(session.budget, session, few) if session.budget else settings.iterations
    wanted = (settings.engine, settings.seed, iterations, settings.chunk, settings.precision)
    choice = ranks.same_engine(choose_engine(learner, theta, few, *wanted))
    state.engine, state.reason, state.chunk, state.checked = choice
    if settings.precision != "float32" or settings.channels_last:
        numbers = (settings.seed, settings.precision, settings.channels_last)
        state.reason += f"; {error_in_words(learner, theta, few, *numbers)}"
    state.timing["choosing"] = state.timing["total"] = time.monotonic() - began
    save_checkpoint(session.folder, state)


def _iterations_within(budget: Budget, session: Session, few: Episodes) -> int:
    """How many iterations the loop would do in the budget: about how often the chosen engine will run at least."""
    learner, theta = session.learner, session.trained.theta
    with seeds.seeded(session.settings.seed, "choose"):
        seconds = timed(lambda: share_gradient(learner, theta, few, LOOP), device_of_tasks(few))[1]
    return max(1, int(budget.seconds / max(seconds, 1e-6)))
