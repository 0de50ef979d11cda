"""Reads a run folder into checked values. A report uses only these values, so it needs nothing but the folder."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from quickstudy.base import files
from quickstudy.errors import FileFormatError, RunError
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.embeddings import TaskEmbeddings
from quickstudy.evaluation.measures.instances import InstanceAccuracy
from quickstudy.evaluation.measures.intervals import Calibration
from quickstudy.evaluation.measures.movement import Movement
from quickstudy.evaluation.measures.probabilities import Answers
from quickstudy.evaluation.metric import ACCURACY, MEAN_SQUARED_ERROR, METRICS, Metric, metric_named
from quickstudy.evaluation.score import Score
from quickstudy.nn.parameters import part
from quickstudy.training import curve
from quickstudy.training.checkpoint import read_metrics

Value = TypeVar("Value")
SCORES = {column: METRICS[name] for name, column in curve.COLUMNS.items()}  # column of metrics.jsonl: the metric in it
OTHER_SCORES = curve.OTHER  # column of all other metrics
COLUMNS = (
    "loss",
    *SCORES,
    OTHER_SCORES,
    "val",
    "val_interval",
    "val_low",
    "val_high",
)  # in metrics.jsonl
EVALUATED = (  # the files that `evaluate` writes
    "scores.json",
    "examples.safetensors",
    "movement.json",
    "embeddings.json",
    "calibration.json",
    "instances.json",
    "answers.json",
)
PARTS = ("support.x", "support.y", "query.x", "query.y", "output")  # tensors of an episode in examples.safetensors


class Config(NamedTuple):
    """config.json: the settings of the training."""

    learner: str
    fields: dict[str, Any]  # the learner's hyper-parameters
    tasks: dict[str, Any]
    meta_batch: int
    seed: int
    iterations: int
    metric: Metric | None = None  # of training and validation; None in files that name none


class StepsPoint(NamedTuple):
    """The score after `steps` inner steps."""

    steps: int
    mean: float
    interval: float  # half the width of the 95 % interval
    low: float
    high: float


class Evaluation(NamedTuple):
    """scores.json: the result of the evaluation. The first score is the main one."""

    scores: list[Score]
    steps: list[StepsPoint]
    adapt_seconds: float
    predict_seconds: float
    machine: dict[str, Any]
    theta: str | None = None  # fingerprint of the theta that was scored; None in older files, which lack it


class Timing(NamedTuple):
    """timing.json: where the training time went, in seconds."""

    sampling: float
    computing: float
    total: float
    engine: str
    reason: str
    choosing: float = 0.0  # for trying engines and compiling


class Example(NamedTuple):
    """One test episode with the learner's answers: x [n, ...], y [n] or [n, d], output [m, ways] or [m, d]."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    output: Tensor
    grid: Tensor | None  # [g, 1] for regression of one number
    curves: dict[str, Tensor]  # the adapted function on the grid, by number of inner steps
    described: Mapping[str, Any] = {}  # in words: task, classes (their names), support and query (texts)


@dataclass(frozen=True, eq=False)
class Run:
    """All that a report needs from a run folder. Values whose file is missing are None or empty."""

    folder: Path
    config: Config
    metrics: list[dict[str, float]]
    evaluation: Evaluation | None
    examples: list[Example]
    timing: Timing | None
    parameters: int | None  # numbers in theta; None while training has not finished
    movement: Movement | None  # None for learners whose layers do not move
    instances: InstanceAccuracy | None = None  # None for learners that read no streams
    embeddings: TaskEmbeddings | None = None  # None for learners that make no vector of a task
    calibration: Calibration | None = None  # None for learners without a distribution of values
    answers: Answers | None = None  # None for regression
    theta: str | None = None  # fingerprint of learner.qs

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def argument(self) -> str:
        """The run as a command-line argument. A page may be shared, so it shows no absolute path."""
        return shlex.quote(self.name if self.folder.is_absolute() else str(self.folder))

    @property
    def score(self) -> Score | None:
        """The main score; None before the run is evaluated."""
        return self.evaluation.scores[0] if self.evaluation else None

    @property
    def metric(self) -> Metric:
        """The metric of training and validation, which the learning curves show."""
        if (named := self.config.metric) is not None:  # a name alone, where only the score knows the user's own metric
            return self.score.metric if self.score and self.score.metric.name == named.name else named
        logged = next((metric for name, metric in SCORES.items() if self.column(name)[0]), None)
        if logged is not None or self.score is not None:
            return logged or self.score.metric  # type: ignore[union-attr]
        return ACCURACY if self.config.tasks.get("ways") else MEAN_SQUARED_ERROR

    @property
    def training_scores(self) -> tuple[list[float], list[float]]:
        """The iterations at which training tasks were scored, and these scores."""
        return self.column(next((name for name, metric in SCORES.items() if metric == self.metric), OTHER_SCORES))

    @property
    def outdated(self) -> bool:
        """Whether training continued after the evaluation, so that the scores belong to an older theta."""
        scored = self.evaluation.theta if self.evaluation else None
        return None not in (scored, self.theta) and scored != self.theta

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """The iterations at which a column of metrics.jsonl has a value, and these values."""
        lines = [line for line in self.metrics if name in line]
        return [line["iteration"] for line in lines], [line[name] for line in lines]


def read_run(folder: Path) -> Run:
    """Read and check a run folder.

    Raises RunError where `folder` is not a run folder, FileFormatError where a file in it is broken.
    """
    if not folder.is_dir():
        raise RunError(f"there is no run folder {str(folder)!r}. Check the path; `quickstudy train --out` makes one.")
    if not (folder / "config.json").exists():
        raise RunError(
            f"{str(folder)!r} is not a run folder: it holds no config.json. `quickstudy train --out` makes one."
        )
    config = _checked(folder / "config.json", files.read_json, _config)
    assert config is not None  # the file exists
    return Run(
        folder,
        config,
        _checked(folder / "metrics.jsonl", lambda path: read_metrics(path.parent), _metrics) or [],
        _checked(folder / "scores.json", files.read_json, _evaluation),
        _checked(folder / "examples.safetensors", _read_examples, _examples) or [],
        _checked(folder / "timing.json", files.read_json, _timing),
        _checked(folder / "learner.qs", lambda path: files.read_tensors(path, "trained")[0], _parameters),
        _checked(folder / "movement.json", files.read_json, Movement.from_dict),
        _checked(folder / "instances.json", files.read_json, InstanceAccuracy.from_dict),
        _checked(folder / "embeddings.json", files.read_json, TaskEmbeddings.from_dict),
        _checked(folder / "calibration.json", files.read_json, Calibration.from_dict),
        _checked(folder / "answers.json", files.read_json, Answers.from_dict),
        _checked(folder / "learner.qs", lambda path: files.read_tensors(path, "trained")[0], _theta),
    )


def _theta(tensors: Mapping[str, Tensor]) -> str:
    return files.fingerprint(part(tensors, "theta."))


def _checked(path: Path, read: Callable[[Path], Any], parse: Callable[[Any], Value]) -> Value | None:
    """The parsed content of a file of the run; None where the file does not exist."""
    if not path.exists():
        return None
    try:
        return parse(read(path))
    except FileFormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        command = "evaluate" if path.name in EVALUATED else "train"
        raise FileFormatError(
            f"{str(path)!r} is not what Quickstudy writes there ({type(error).__name__}: {error}). Restore it, or make "
            f"it again with `quickstudy {command}`."
        ) from error


def _check_sizes(sizes: Mapping[str, Any]) -> None:
    for name in ("ways", "shots", "queries", "classes"):
        if not isinstance(sizes.get(name), int | None):
            raise ValueError(f"{name} is {sizes[name]!r}, not a whole number")


def _config(plain: Mapping[str, Any]) -> Config:
    learner = plain["learner"]
    _check_sizes(plain["tasks"])
    meta_batch, seed, iterations = (int(plain[key]) for key in ("meta_batch", "seed", "iterations"))
    sizes = (meta_batch, seed, iterations)
    return Config(str(learner["name"]), dict(learner["fields"]), dict(plain["tasks"]), *sizes, _metric(plain))


def _metric(plain: Mapping[str, Any]) -> Metric | None:
    """The metric that config.json names, or describes where it is the user's own."""
    metric = plain.get("metric")
    return Metric.from_dict(metric) if isinstance(metric, Mapping) else metric and metric_named(str(metric))


def _metrics(lines: list[Mapping[str, Any]]) -> list[dict[str, float]]:
    wanted = ("iteration", *COLUMNS)
    if any("iteration" not in line for line in lines):
        raise ValueError("a line has no iteration")
    return [{key: float(line[key]) for key in wanted if key in line} for line in lines]


def _evaluation(plain: Mapping[str, Any]) -> Evaluation:
    scores = [Score.from_dict(score) for score in plain["scores"]]
    if not scores:
        raise ValueError("there is no score in it")
    for score in (one for whole in scores for one in (whole, *whole.controls.values())):
        _check_sizes(score.protocol.to_dict())
        if len(score.values) != score.protocol.episodes or not torch.isfinite(score.values).all():
            raise ValueError(
                f"{len(score.values)} values for {score.protocol.episodes} episodes, or some are not finite"
            )
    curve = [_steps_point(p) for p in plain["steps"]]
    adapt, predict = (float(plain["timing"][key]) for key in ("adapt_seconds", "predict_seconds"))
    return Evaluation(scores, curve, adapt, predict, dict(plain["machine"]), plain.get("theta"))


def _steps_point(plain: Mapping[str, Any]) -> StepsPoint:
    found = Amount.from_dict(plain)
    return StepsPoint(int(plain["steps"]), found.mean, found.interval, found.low, found.high)


def _timing(plain: Mapping[str, Any]) -> Timing:
    sampling, computing, total = (float(plain[key]) for key in ("sampling", "computing", "total"))
    choosing = float(plain.get("choosing", 0.0))  # older runs lack it
    return Timing(sampling, computing, total, str(plain["engine"]), str(plain["reason"]), choosing)


def _read_examples(path: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    tensors, header = files.read_tensors(path, "examples")
    return tensors, header.get("told") or [{}] * int(header["episodes"])


def _examples(read: tuple[dict[str, Tensor], list[dict[str, Any]]]) -> list[Example]:
    tensors, described = read
    return [
        _example({k.removeprefix(f"{i}."): v for k, v in tensors.items() if k.startswith(f"{i}.")}, of_task)
        for i, of_task in enumerate(described)
    ]


def _example(parts: dict[str, Tensor], described: Mapping[str, Any]) -> Example:
    curves = {name.removeprefix("curve."): value for name, value in parts.items() if name.startswith("curve.")}
    x, y, queries, truth, output = (parts[name] for name in PARTS)
    example = Example(x, y, queries, truth, output, parts.get("grid"), curves, described)
    _check_example(example)
    return example


def _check_example(e: Example) -> None:
    if not (len(e.output) == len(e.query_y) == len(e.query_x) > 0 and len(e.support_x) == len(e.support_y) > 0):
        raise ValueError(f"{len(e.output)} answers to {len(e.query_y)} queries")
    if e.query_y.is_floating_point():
        if e.output.shape != e.query_y.shape:
            raise ValueError(f"answers {tuple(e.output.shape)} to truths {tuple(e.query_y.shape)}")
    elif e.output.dim() != 2 or not 0 <= int(torch.cat([e.support_y, e.query_y]).max()) < e.output.shape[1]:
        raise ValueError(f"answers {tuple(e.output.shape)} do not fit the labels")
    texts = [len(e.described.get(part, y)) for part, y in (("support", e.support_y), ("query", e.query_y))]
    if texts != [len(e.support_y), len(e.query_y)]:
        raise ValueError("the texts are not as many as the examples")
    if any(e.grid is None or len(curve) != len(e.grid) for curve in e.curves.values()):
        raise ValueError("the curves do not fit their grid")


def _parameters(tensors: Mapping[str, Tensor]) -> int:
    return sum(math.prod(value.shape) for name, value in tensors.items() if name.startswith("theta."))
