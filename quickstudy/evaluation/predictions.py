"""What a learner answered: its outputs on the test episodes beside the truths, from one pass.

The score, the calibration of probabilities and the confusion of classes are functions of these values, so a learner
answers once, whatever is asked of its answers.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.engine.fitting import UNREADABLE, for_test
from quickstudy.engine.watch import Watch
from quickstudy.episodes import Episodes, class_numbers, count, first_tasks, unstack
from quickstudy.errors import ConfigError, EngineError, EngineWarning, NonFiniteError, first_line
from quickstudy.evaluation import passes
from quickstudy.evaluation.choosing import chosen_engine
from quickstudy.evaluation.ensemble import best_thetas, mean_answer
from quickstudy.evaluation.metric import METRICS, Metric, in_shapes
from quickstudy.evaluation.metric_of_loss import chosen_metric
from quickstudy.evaluation.protocol import Protocol
from quickstudy.evaluation.score import Score
from quickstudy.learner import Episode, Learner, Theta, setting
from quickstudy.tasks.source import source_of


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of one learner on test episodes, and what they should have been. Tensors are on the CPU."""

    learner: Learner  # with its test settings
    outputs: tuple[Any, ...]  # of each episode's queries: logits [m, ways, ...], values [m, d], or nested tensors
    truths: tuple[Any, ...]  # of each episode's queries: y, with classes numbered as the columns of the output
    tasks: tuple[str, ...]  # the name of each episode's task; empty if every episode is a new task
    classes: tuple[tuple[int, ...], ...]  # the source's numbers for the output's columns; () where they are the same
    metric: Metric  # what a score counts
    unit: float  # the target's own unit
    protocol: Protocol  # of a score
    engine: str  # that computed them

    def first(self, n: int) -> Predictions:
        """Those of the first n episodes."""
        cut = {name: getattr(self, name)[:n] for name in ("outputs", "truths", "tasks", "classes")}
        protocol = dataclasses.replace(self.protocol, episodes=min(n, self.protocol.episodes))
        return dataclasses.replace(self, **cut, protocol=protocol)

    def named(self, control: str) -> Predictions:
        """The same as those of the control with this name."""
        return dataclasses.replace(self, protocol=dataclasses.replace(self.protocol, control=control))


@dataclass(frozen=True)
class Settings:
    """What a measurement on test episodes is asked for; `evaluate` says what each of them means."""

    episodes: int = 600
    seed: int = 1
    metric: str | Metric | None = None
    engine: str = "auto"
    progress: Callable[[int], None] | None = None
    tried: str | None = None  # "auto" takes this engine, chosen for a similar learner, if it gives the loop's results
    watch: Watch | None = None  # compares the engine with the loop now and then; None: one for this measurement
    check: Callable[[Episodes], None] = lambda first: None  # refuses the first episodes before the learner sees them


def predictions(
    trained: Any,
    tasks: Any,
    settings: Settings,
    *,
    steps: int | None = None,
    transductive: bool | None = None,
    ensemble: int = 1,
) -> Predictions:
    """The answers of a trained learner to test episodes; `evaluate` says what the settings mean.

    Raises ConfigError where a setting does not fit the learner, DataError where the learner cannot use the tasks.
    """
    thetas = best_thetas(trained, ensemble)
    return predicted(for_test(trained.learner, tasks, steps, transductive), thetas, tasks, settings)


def predicted(learner: Learner, thetas: Sequence[Theta], tasks: Any, settings: Settings) -> Predictions:
    """The answers of a learner with its test settings, averaged over `thetas`; see `predictions`."""
    episodes, seed = settings.episodes, settings.seed
    source, one = source_of(tasks), passes.begin(learner, thetas[0], tasks, episodes, seed, check=settings.check)
    metric = chosen_metric(settings.metric, learner, source.ways, unstack(first_tasks(one.first, 1))[0])

    def answer(learner: Learner, episode: Episode) -> tuple[Any, Any]:
        return mean_answer(learner, thetas, episode), episode.query.y

    engine = chosen_engine(one, answer, settings.engine, settings.tried, settings.watch)
    columns = _class_numbers if setting(learner, "ways") is not None and not learner.fixed_ways else _same_numbers
    pairs, engine = _results(one, answer, engine, settings, columns)
    answered, classes = zip(*pairs, strict=True)
    return Predictions(
        learner,
        tuple(output for output, _ in answered),
        tuple(y for _, y in answered),
        passes.tasks_of(source, episodes, seed),
        tuple(tuple(numbers.tolist()) for numbers in classes),
        metric,
        source.unit,
        passes.protocol_of(
            learner,
            source,
            metric.name,
            episodes,
            seed,
            seen=one.first,
            ensemble=len(thetas),
            transductive=one.transductive,
        ),
        engine,
    )


def _results(
    one: passes.Pass,
    answer: passes.Measure,
    engine: str,
    settings: Settings,
    beside: Callable[[Episodes], Sequence[Any]],
) -> tuple[list[Any], str]:
    """The results of a pass and the engine that computed them: the loop where another is found to be wrong."""
    try:
        return list(passes.results(one, answer, engine, settings.progress, beside, settings.watch)), engine
    except EngineError as error:
        warnings.warn(f"all episodes are answered again by engine 'loop': {error}", EngineWarning, stacklevel=2)
        return list(passes.results(one, answer, "loop", None, beside)), "loop"


def _class_numbers(block: Episodes) -> list[Tensor]:
    """The class numbers of each task of a list, which a learner with `ways` sees as 0..ways-1; empty if stacked."""
    numbers = [class_numbers(one) if isinstance(block, list) else () for one in unstack(block)]
    return [torch.tensor(one, dtype=torch.int64) for one in numbers]


def _same_numbers(block: Episodes) -> list[Tensor]:
    return [torch.zeros(0, dtype=torch.int64)] * count(block)


# --- scores ----------------------------------------------------------------------------------------------------------


def score_of(made: Predictions) -> Score:
    """The score: the metric's value of each test episode.

    Raises NonFiniteError where an output is not finite, ConfigError where the metric gives no number.
    """
    values = torch.stack([_value(made.metric, *pair) for pair in zip(made.outputs, made.truths, strict=True)])
    says = "an output that is not finite. Lower the inner learning rate or the steps."
    finite(values, says)
    own_metric = None if made.metric in METRICS.values() else made.metric
    return Score(values * made.unit**made.metric.power, made.protocol, tasks=made.tasks, own_metric=own_metric)


def _value(metric: Metric, output: Any, y: Any) -> Tensor:
    try:
        value = torch.as_tensor(metric.of(output, y), dtype=torch.float64).detach()
    except UNREADABLE as error:
        raise ConfigError(
            f"{metric.name} cannot score outputs {in_shapes(output)} against answers {in_shapes(y)}: "
            f"{first_line(error)}. Say what to score with metric=, such as a qs.Metric of your own."
        ) from error
    if value.numel() != 1:
        raise ConfigError(
            f"the metric {metric.name!r} gives a value of shape {tuple(value.shape)} for an episode. Give one number: "
            "end its function with .mean()."
        )
    return value.reshape(())


def finite(values: Tensor, says: str, what: str = "episode") -> Tensor:
    """The values [n, ...] of n test episodes, as they are.

    Raises NonFiniteError, "test episode i gives ...", where one is not finite.
    """
    wrong = ~torch.isfinite(values).reshape(len(values), -1).all(1)
    if wrong.any():
        raise NonFiniteError(f"test {what} {int(wrong.nonzero()[0])} gives {says}")
    return values


# --- names of classes ------------------------------------------------------------------------------------------------


def class_names(tasks: Any, made: Predictions) -> list[Sequence[str]]:
    """The names of the classes of each episode, in the order of the output's columns; () where the source has none."""
    source, seed = source_of(tasks), made.protocol.seed
    each = (source.told(seeds.generator(seed, "test", i)).get("classes", ()) for i in range(len(made.outputs)))
    return [in_order(names, numbers) for names, numbers in zip(each, made.classes, strict=True)]


def in_order(names: Sequence[str], numbers: Sequence[int]) -> Sequence[str]:
    """The names of classes whose numbers are given, in their order; all names as they are where none are given."""
    return [names[k] for k in numbers] if numbers and names else names
