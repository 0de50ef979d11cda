"""Chooses how a training runs its tasks: the fastest engine, in chunks that fit into memory.

The measurement for a learner and these task shapes is reused for the rest of the process. For another learner with the
same description only the check is repeated, which is cheap. Other processes measure again, because the machine may be
busier.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from quickstudy.base import memory, seeds
from quickstudy.engine import agreement, mapping
from quickstudy.engine.choice import forecast, race
from quickstudy.episodes import Episodes, count, mapped, whole
from quickstudy.errors import OutOfMemoryError, first_line
from quickstudy.learner import Learner, Theta, describe_learner

T = TypeVar("T")

# Tolerance between engines. In bf16, rounding changes which side of a kink (ReLU, pooling) a value falls on.
APART = {"float32": race.ROUNDING, "bf16": 1.0}
_known: dict[str, race.Choice] = {}


def choose_engine(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    engine: str,
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
    together = chunk

    def attempt(name: str) -> tuple[Tensor, Theta]:
        return mapping.meta_gradient(learner, theta, episodes, name, together, precision)

    def check(name: str) -> None:
        nonlocal together
        if name in mapping.PROGRAMS and learner.at(0.0) is not learner:
            raise RuntimeError("the learner changes in the course of training")
        fits = _checked_and_measured(learner, theta, episodes, name)
        if chunk is None and fits is not None and fits < count(episodes):
            together = fits

    key = _key(learner, theta, episodes, (iterations, chunk, precision, torch.get_num_threads()))
    before = _known.get(key) if engine == "auto" else None
    with seeds.seeded(seed, "choose"):
        device = whole(episodes)[0].query.y.device
        asked = before.engine if before else engine
        choose = functools.partial(race.choose, attempt, asked, count(episodes), device, check, iterations)
        found = _within_memory(lambda: choose(APART[precision]), learner, theta, episodes, "loop", None, precision)
    if before and found.engine == before.engine:
        found = found._replace(reason=before.reason)
    if engine == "auto":
        _known[key] = found
    if together != chunk and found.engine in mapping.TOGETHER:
        return found._replace(chunk=together, reason=f"{found.reason}; {together} tasks at a time, for memory")
    return found._replace(chunk=chunk)


def _key(learner: Learner, theta: Theta, episodes: Episodes, more: tuple[Any, ...]) -> str:
    shapes = [(str(t.shape), str(t.dtype), str(t.device)) for t in theta.values()]
    mapped(lambda t: shapes.append((str(t.shape), str(t.dtype), str(t.device))) or t, episodes)
    return json.dumps([type(learner).__qualname__, describe_learner(learner), shapes, more], default=str)


def _checked_and_measured(learner: Learner, theta: Theta, episodes: Episodes, engine: str) -> int | None:
    """How many tasks an engine can run together in the free memory, estimated from its check on two; None: unknown.

    The check computes two tasks in float64, which takes the memory of four in float32. It is divided by two only, as a
    safety margin: memory cannot be used to the last byte.
    """
    device = whole(episodes)[0].query.y.device
    before = memory.taken(device)
    with memory.peak(device) as peak:
        agreement.check_engine(learner, theta, episodes, engine)
    return forecast.tasks_within((peak.bytes - before) / 2, device) if peak.bytes and before else None


def share_gradient(
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    engine: str,
    chunk: int | None = None,
    precision: str = "float32",
) -> tuple[Tensor, Theta]:
    """`engine.meta_gradient`, with an explanation where memory runs out.

    Raises OutOfMemoryError, with a setting that fits, where memory runs out.
    """
    given = (learner, theta, episodes, engine, chunk, precision)
    return _within_memory(lambda: mapping.meta_gradient(*given), *given)


def _within_memory(
    compute: Callable[[], T],
    learner: Learner,
    theta: Theta,
    episodes: Episodes,
    engine: str,
    chunk: int | None,
    precision: str,
) -> T:
    """compute(), which runs this engine.

    Raises OutOfMemoryError, with a setting that was tried and fits, where memory runs out.
    """
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        said = first_line(error)
    # Outside the except block the error is freed, and with it the frames that held the large tensors.
    fits = forecast.first_that_fits(learner, theta, episodes, engine, chunk, precision)
    together = f" of {min(chunk or count(episodes), count(episodes))} tasks" if engine in mapping.TOGETHER else ""
    raise OutOfMemoryError(
        f"memory ran out in the meta-gradient{together} with engine {engine!r}: {said}. "
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
            return share_gradient(learner.at(0.0), theta, episodes, "loop", None, precision)[1]

    exact = gradient(plain, mapped(lambda t: t.contiguous(), episodes), "float32")
    off = agreement.relative_difference(gradient(theta, episodes, precision), exact)
    what = " and ".join([precision] * (precision != "float32") + ["channels last"] * channels_last)
    return f"{what}: the first meta-gradient is {off:.1e} off float32's"
