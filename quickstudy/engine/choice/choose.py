"""Chooses how a training runs its tasks: the fastest engine, in chunks that fit into memory.

The measurement for a learner and these task shapes is reused for the rest of the process. For another learner with the
same description only the check is repeated, which is cheap. Other processes measure again, because the machine may be
busier.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.base import memory, seeds
from quickstudy.base.timing import timed
from quickstudy.engine import agreement
from quickstudy.engine.choice import forecast, race
from quickstudy.engine.choice.work import Work
from quickstudy.engine.engines import AUTO, LOOP, Engine, find_engine
from quickstudy.episodes import Episodes, mapped
from quickstudy.errors import OutOfMemoryError, first_line
from quickstudy.learner import Learner, Theta, describe_learner

T = TypeVar("T")

# Tolerance between engines. In bf16, rounding changes which side of a kink (ReLU, pooling) a value falls on.
APART = {"float32": race.ROUNDING, "bf16": 1.0}
_known: dict[str, race.Choice] = {}  # what was measured in this process, by `_key`


def choose_engine(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    engine: str | Engine,
    seed: int,
    iterations: int = 0,
    chunk: int | None = None,
    precision: str = "float32",
) -> race.Choice:
    """The engine and chunk for a training; "auto" tries each engine on these episodes.

    `iterations`: how many meta-gradients the training computes. `chunk` and `precision` are as in
    `engine.meta_gradient`; with None the largest chunk that fits into memory is used.

    Raises ConfigError where the engine is unknown, OutOfMemoryError, with a setting that fits, where memory runs out.
    """
    work = Work(learner, theta, episodes, LOOP, chunk, precision)
    key = _key(work, iterations)
    before = _known.get(key) if engine == AUTO else None
    contest = race.Race(functools.partial(_entrant, work), work.tasks, work.device, iterations, APART[precision])
    asked = before.engine if before else engine
    with seeds.seeded(seed, "choose"):
        choice = _within_memory(lambda: race.chosen(contest, asked), dataclasses.replace(work, chunk=None))
    if before and choice.engine == before.engine:
        choice = choice._replace(reason=before.reason)
    if engine == AUTO:
        _known[key] = choice
    if choice.chunk != chunk:
        return choice._replace(reason=f"{choice.reason}; {choice.chunk} tasks at a time, for memory")
    return choice


def _key(work: Work, iterations: int) -> str:
    """What the measured times depend on, as text."""
    leaves, structure = pytree.tree_flatten((work.theta, work.episodes))
    shapes = [(str(t.shape), str(t.dtype), str(t.device)) for t in leaves]
    how = (iterations, work.chunk, work.precision, torch.get_num_threads())
    learner = (type(work.learner).__qualname__, describe_learner(work.learner))
    return json.dumps([*learner, str(structure), shapes, how], default=str)


def _entrant(work: Work, engine: Engine) -> race.Entrant:
    """The work done by an engine that gives the loop's result, in chunks that fit into memory.

    Raises RuntimeError where the engine cannot be used for it.
    """
    if engine.recorded and work.learner.at(0.0) is not work.learner:
        raise RuntimeError("the learner changes in the course of training")
    fits, checked = (None, 0.0) if engine.in_turn else timed(lambda: _checked_and_measured(work, engine), work.device)
    if engine.together and work.chunk is None and fits is not None and fits < work.tasks:
        work = dataclasses.replace(work, chunk=fits)
    return race.Entrant(dataclasses.replace(work, engine=engine).gradient, work.chunk, checked)


def _checked_and_measured(work: Work, engine: Engine) -> int | None:
    """How many tasks an engine can run together in the free memory, estimated from its check on two; None: unknown.

    The check computes two tasks in float64, which takes the memory of four in float32. It is divided by two only, as a
    safety margin: memory cannot be used to the last byte.
    """
    before = memory.taken(work.device)
    with memory.peak(work.device) as peak:
        agreement.check_engine(work.learner, work.theta, work.episodes, engine)
    return forecast.tasks_within((peak.bytes - before) / 2, work.device) if peak.bytes and before else None


def share_gradient(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    engine: str | Engine,
    chunk: int | None = None,
    precision: str = "float32",
) -> tuple[Tensor, Theta]:
    """`engine.meta_gradient`, with an explanation where memory runs out.

    Raises OutOfMemoryError, with a setting that fits, where memory runs out.
    """
    work = Work(learner, theta, episodes, find_engine(engine), chunk, precision)
    return _within_memory(work.gradient, work)


def _within_memory(compute: Callable[[], T], work: Work) -> T:
    """compute(), which does this work.

    Raises OutOfMemoryError, with a setting that was tried and fits, where memory runs out.
    """
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        said = first_line(error)
    # Outside the except block the error is freed, and with it the frames that held the large tensors.
    fits = forecast.first_that_fits(work)
    together = f" of {work.together} tasks" if work.engine.together else ""
    raise OutOfMemoryError(
        f"memory ran out in the meta-gradient{together} with engine {work.engine.name!r}: {said}. "
        + (
            f"What fits: {fits.options()}. 'quickstudy plan' tells what each setting needs."
            if fits
            else "No exact setting that was tried fits: take fewer ways, queries or a smaller network."
        )
    )


def error_in_words(
    learner: Learner, theta: Theta, episodes: Episodes, seed: int, precision: str, channels_last: bool
) -> str:
    """A sentence: how far `precision` and `channels_last` move the meta-gradient of these episodes.

    The difference from plain float32 is relative to the norm of the meta-gradient.
    """
    plain = {name: value.contiguous() for name, value in theta.items()}

    def gradient(theta: Theta, episodes: Episodes, precision: str) -> Theta:
        with seeds.seeded(seed, "numerics"):  # both gradients use the same random draws
            return share_gradient(learner.at(0.0), theta, episodes, LOOP, None, precision)[1]

    exact = gradient(plain, mapped(lambda t: t.contiguous(), episodes), "float32")
    off = agreement.relative_difference(gradient(theta, episodes, precision), exact)
    what = " and ".join([precision] * (precision != "float32") + ["channels last"] * channels_last)
    return f"{what}: the first meta-gradient is {off:.1e} off float32's"
