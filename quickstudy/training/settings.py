"""The settings of a training. They are the options of `quickstudy train`, too, so each is named and explained once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from quickstudy.base.options import number, switch, word
from quickstudy.engine import numerics
from quickstudy.engine.engines import TOGETHER
from quickstudy.errors import ConfigError
from quickstudy.evaluation.metric import find_metric
from quickstudy.training.tensorboard import check_tensorboard

AT_LEAST_ONE = ("iterations", "meta_batch", "val_episodes", "val_every", "patience", "keep", "chunk")


@dataclass(frozen=True)
class TrainSettings:
    """What `train` and `quickstudy train` can be told in plain values.

    seed             in Python without the initial weights, which come with the model
    engine           "auto" times vmap, threads and loop on the first iteration. In longer trainings it also times the
                     recorded programs "replay" and "replay-threads", and in a long training of a small model
                     "compile". The time for choosing is reported and included in the run's timing
    chunk            fewer tasks need less memory and more time
    precision        "bf16" computes meta-losses under torch's autocast to bfloat16; theta and its updates stay float32.
                     The effect of this and of `channels_last` on the meta-gradient is measured on the first
                     meta-batch, reported, and kept in timing.json
    val_every        validation scores theta on `val_episodes` episodes of the validation tasks and keeps the best
    keep             the thetas are in `Trained.best`, for an ensemble at evaluation
    metric           a name or a `Metric` of your own: what the learning curve shows and validation goes by. None: what
                     fits the learner's loss; where none is certain, the curve shows the loss
    """

    iterations: int = 2000  # updates of the outer loop
    meta_batch: int = 16  # tasks per update
    seed: int = 0  # determines every random draw of the run
    # how the tasks of an update are computed together
    engine: Literal["auto", "vmap", "threads", "loop", "replay", "replay-threads", "compile"] = "auto"
    chunk: Annotated[int | None, number("all that fit")] = None  # at most so many tasks are computed together
    precision: Literal["float32", "bf16"] = "float32"  # of the meta-loss; the error of bf16 is measured and reported
    channels_last: Annotated[bool, switch] = False  # store images in memory with their channels last
    val_every: Annotated[int | None, number("a tenth of all")] = None  # iterations between validations
    val_episodes: int = 100  # episodes of a validation
    patience: Annotated[int | None, number("never")] = None  # stop after so many validations without improvement
    keep: int = 1  # how many checkpoints, the best on validation, are kept for 'evaluate --ensemble'
    metric: Annotated[str | None, word("what fits the loss")] = None  # what is scored, such as 'mean absolute error'
    clip: Annotated[float | None, number("none")] = None  # largest norm of the meta-gradient
    tensorboard: Annotated[bool, switch] = False  # also write the curve for TensorBoard to the run folder

    @property
    def validation_interval(self) -> int:
        """Iterations between validations."""
        return self.val_every or max(1, self.iterations // 10)


def settings_among(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are settings of a training, by name."""
    return {field.name: values[field.name] for field in dataclasses.fields(TrainSettings)}


def train_settings(values: Mapping[str, Any], compile: bool) -> TrainSettings:
    """The settings among these values; `compile` is another word for the engine "compile".

    Raises ConfigError where `compile` contradicts the engine.
    """
    settings = TrainSettings(**settings_among(values))
    if not compile:
        return settings
    if settings.engine not in ("auto", *TOGETHER):
        raise ConfigError(
            f"compile=True compiles what all tasks compute together; it does not go with engine={settings.engine!r}."
        )
    return dataclasses.replace(settings, engine="compile")


def check_settings(settings: TrainSettings, folder: Path | None, validates: bool) -> None:
    """Raise ConfigError where a setting is impossible, or does not go with the run folder or the validation tasks."""
    for name in AT_LEAST_ONE:
        value = vars(settings)[name]
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    numerics.check_precision(settings.precision)
    if settings.metric is not None:
        find_metric(settings.metric)
    if settings.keep > 1 and not validates:
        raise ConfigError(
            f"keep={settings.keep} keeps the best thetas on validation, but there are no validation tasks (val)."
        )
    if settings.tensorboard:
        check_tensorboard(folder)
