"""What a score counts: a metric is a value, found by its name in METRICS or given by the user.

Which one a learner and its tasks give by default is said in `quickstudy.evaluation.metric_of_loss`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.engine.labels import OF_LABELS, class_axis, classes_on_axis, function_of, ignored_by
from quickstudy.errors import ConfigError, suggest


@dataclass(frozen=True)
class Format:
    """How a value is written: times so many, with so many digits, and a unit behind it."""

    times: float = 1.0
    spec: str = ".3g"  # of the value
    spread: str = ".2g"  # of the half width of its interval
    unit: str = ""  # behind a value, such as " %"
    points: str = ""  # behind a difference of two values, such as " points"
    largest: float | None = None  # the largest possible value, where axes end; None: there is none
    smallest: float | None = None  # the smallest possible value; intervals keep to both

    def __call__(self, mean: float, interval: float, points: bool = False) -> str:
        """'97.4 % ± 0.3', of a mean and the half width of its interval; `points` for a difference of two means."""
        return f"{self.value(mean, points)} {self.half(interval)}"

    def between(self, mean: float, low: float, high: float, points: bool = False) -> str:
        """'97.4 % ± 0.3', or '99.9 % (99.6 to 100.0)' where the interval is not symmetric."""
        return f"{self.value(mean, points)} {self.ends(mean, low, high)}"

    def ends(self, mean: float, low: float, high: float) -> str:
        """The interval alone: '± 0.3', or '(99.6 to 100.0)' where its two sides visibly differ."""
        if not self.lopsided(mean, low, high):
            return self.half((high - low) / 2)
        if not math.isfinite(high):
            return f"({self.times * low:{self.spec}} and more)"
        return f"({self.times * low:{self.spec}} to {self.times * high:{self.spec}})"

    def lopsided(self, mean: float, low: float, high: float) -> bool:
        """Whether the two sides of an interval differ by more than ALIKE and by a digit that is written."""
        sides = (mean - low, high - mean)
        alike = len({f"{self.times * side:{self.spread}}" for side in sides}) == 1
        return math.isfinite(low) and not alike and max(sides) > ALIKE * min(sides)

    def value(self, mean: float, points: bool = False) -> str:
        """The value alone: '97.4 %', or '97.4 points' for a difference of two."""
        return f"{self.times * mean:{self.spec}}{self.points if points else self.unit}"

    def half(self, interval: float) -> str:
        """The half width of an interval alone: '± 0.3'; one task has none."""
        return "(one task: no interval)" if math.isinf(interval) else f"± {self.times * interval:{self.spread}}"

    def deviation(self, value: float) -> str:
        """A standard deviation or another distance between values: '0.3 points'."""
        return f"{self.times * value:{self.spread}}{self.points}"

    @property
    def width(self) -> float | None:
        """The largest possible difference of two values; None where there is none."""
        return None if self.largest is None or self.smallest is None else self.largest - self.smallest

    @property
    def end(self) -> float | None:
        """Where an axis in this unit ends: 100 for shares in percent; None where values have no largest one."""
        return None if self.largest is None else self.times * self.largest


ALIKE = 1.5  # sides of an interval up to this many times the shorter one are written as one half width
PERCENT = Format(100.0, ".1f", ".1f", " %", " points", largest=1.0, smallest=0.0)
PLAIN = Format()
ERROR = Format(smallest=0.0)


@dataclass(frozen=True)
class Metric:
    """What is counted in a test episode. Two are equal where their values read alike, whatever computes them.

    The format says which values are possible, and by that which interval a mean has: PERCENT is for shares from 0 to 1,
    ERROR for values from 0 up, PLAIN for all others, such as rewards.

    >>> import quickstudy as qs
    >>> absolute = qs.Metric("mean absolute error", False, qs.Metric.ERROR, lambda output, y: (output - y).abs().mean())
    >>> absolute.in_words(0.152, 0.011)
    '0.152 ± 0.011 mean absolute error'
    """

    name: str
    higher_is_better: bool
    format: Format
    of: Callable[[Any, Any], Tensor] = field(compare=False)  # output of one task's queries and their y -> a scalar
    power: int = 0  # of the target's unit that a value carries: 0 for a share, 1 for an error, 2 for its square
    bare: bool = False  # whether values are written without the name behind them, as accuracies are

    PERCENT = PERCENT
    ERROR = ERROR
    PLAIN = PLAIN

    def between(self, mean: float, low: float, high: float, points: bool = False) -> str:
        """The same with the ends of an interval: '99.9 % (99.6 to 100.0)', '0.152 ± 0.011 mean squared error'."""
        return f"{self.format.between(mean, low, high, points)}{'' if self.bare else f' {self.name}'}"

    @property
    def short(self) -> str:
        """A short name: 'error' for every kind of error, for all others their name."""
        return "error" if self.name.endswith("error") else self.name

    @property
    def label(self) -> str:
        """The label of an axis that shows it: 'accuracy (%)'."""
        unit = self.format.unit.strip()
        return f"{self.name} ({unit})" if unit else self.name

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1: a difference times it is positive for the better one."""
        return 1 if self.higher_is_better else -1

    def in_words(self, mean: float, interval: float, points: bool = False) -> str:
        """'97.4 % ± 0.3' for accuracies, '0.152 ± 0.011 mean squared error' for others; `points` for a difference."""
        return f"{self.format(mean, interval, points)}{'' if self.bare else f' {self.name}'}"

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return (max if self.higher_is_better else min)(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files: all but the function."""
        plain = {key: getattr(self, key) for key in ("name", "higher_is_better", "power", "bare")}
        return plain | {"format": dataclasses.asdict(self.format)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Metric:
        """The metric that `to_dict` wrote; it can no longer score. Raises KeyError or TypeError for anything else."""
        higher, power, bare = bool(plain["higher_is_better"]), int(plain["power"]), bool(plain["bare"])
        # Files of earlier versions name the largest value alone, which only shares have: their smallest is 0.
        range_ = {} if plain["format"].get("largest") is None else {"smallest": 0.0}
        return cls(str(plain["name"]), higher, Format(**range_ | plain["format"]), _from_file, power, bare)


def _from_file(output: Any, y: Any) -> Tensor:
    raise ConfigError("this metric was read from a file, which holds no function: score with the qs.Metric itself.")


def accuracy(output: Tensor, y: Tensor, loss: Any = None) -> Tensor:
    """The share of labels y [m, ...] whose class has the largest logit of output [m, ways, ...]; NaN for NaN logits.

    The classes stand where `class_axis` finds them, and labels that the loss ignores count nowhere. Cross entropy also
    takes class probabilities y [m, ways, ...]: an answer is right where no class is more probable than it.

    Raises ConfigError where y is neither.
    """
    _require("accuracy", output, y, loss)
    # NaN logits would count as a wrong answer in silence: carry them into the score, where they are refused.
    unknown = 0 * output.sum()
    if y.is_floating_point():
        right = y.gather(1, output.argmax(1, keepdim=True)) == y.amax(1, keepdim=True)
        return right.double().mean() + unknown
    counts = y != ignored_by(loss)
    right = (output.argmax(class_axis(output, y, loss)) == y) & counts
    return right.double().sum() / counts.sum() + unknown


def label_accuracy(output: Tensor, y: Tensor, loss: Any = F.binary_cross_entropy_with_logits) -> Tensor:
    """Of labels y [m, d] that are each there or not: the share that is answered right, over queries and labels.

    One minus the Hamming loss. What says yes follows from the loss, see OF_LABELS. A target exactly in the middle, of
    which neither answer is likelier, is answered right by both.

    Raises ConfigError where output and y differ in shape, and where the loss does not tell logits from probabilities.
    """
    _require("label accuracy", output, y, loss)
    of_output, of_target = OF_LABELS[function_of(loss)].middle
    yes = output > of_output
    right = (yes & (y >= of_target)) | (~yes & (y <= of_target))
    return right.double().mean() + 0 * output.sum()


def mean_squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Of values [m, d]: the mean of (output - y)^2 over queries and dimensions.

    Raises ConfigError where output and y differ in shape.
    """
    _require("mean squared error", output, y)
    return ((output - y) ** 2).mean()


def mean_absolute_error(output: Tensor, y: Tensor) -> Tensor:
    """Of values [m, d]: the mean of |output - y| over queries and dimensions.

    Raises ConfigError where output and y differ in shape.
    """
    _require("mean absolute error", output, y)
    return (output - y).abs().mean()


# --- what a metric can score -----------------------------------------------------------------------------------------


def _are_classes(output: Tensor, y: Tensor, loss: Any) -> bool:
    if y.is_floating_point():
        return function_of(loss) is F.cross_entropy and output.shape == y.shape and y.dim() > 1
    return class_axis(output, y, loss) is not None


def _are_labels(output: Tensor, y: Tensor, loss: Any) -> bool:
    return output.shape == y.shape and function_of(loss) in OF_LABELS


def _are_values(output: Tensor, y: Tensor, loss: Any) -> bool:
    return output.shape == y.shape


SCORABLE: dict[str, Callable[[Tensor, Tensor, Any], bool]] = {  # what each of METRICS can score
    "accuracy": _are_classes,
    "label accuracy": _are_labels,
    "mean squared error": _are_values,
    "mean absolute error": _are_values,
}


def _require(name: str, output: Any, y: Any, loss: Any = None) -> None:
    """Refuse what torch would broadcast to a number without a meaning."""
    single = isinstance(output, Tensor) and isinstance(y, Tensor)
    if single and SCORABLE[name](output, y, loss):
        return
    fitting = [other for other, scores in SCORABLE.items() if single and scores(output, y, loss)]
    others = f"These fit them: metric={' or '.join(map(repr, fitting))}." if fitting else "None of ours fits them."
    raise ConfigError(
        f"{name} cannot score outputs {in_shapes(output)} against answers {in_shapes(y)}.{_reason(name, y, loss)} "
        f"{others} Or give one of your own: metric=qs.Metric(...)."
    )


def _reason(name: str, y: Any, loss: Any) -> str:
    if name == "label accuracy" and function_of(loss) not in OF_LABELS:
        return " Whether outputs are logits or probabilities follows from the loss, which must be one of torch's."
    if name == "accuracy" and isinstance(y, Tensor) and not y.is_floating_point():
        return f" Labels {list(y.shape)} need logits {classes_on_axis(y)}."
    return ""


def in_shapes(tree: Any) -> str:
    """The shapes and types of a nested value's tensors, for messages: '[5, 3] torch.float32'."""
    return ", ".join(f"{list(leaf.shape)} {leaf.dtype}" for leaf in pytree.tree_leaves(tree))


# --- the table -------------------------------------------------------------------------------------------------------


ACCURACY = Metric("accuracy", True, PERCENT, accuracy, bare=True)
LABEL_ACCURACY = Metric("label accuracy", True, PERCENT, label_accuracy)
MEAN_SQUARED_ERROR = Metric("mean squared error", False, ERROR, mean_squared_error, power=2)
MEAN_ABSOLUTE_ERROR = Metric("mean absolute error", False, ERROR, mean_absolute_error, power=1)
METRICS = {one.name: one for one in (ACCURACY, LABEL_ACCURACY, MEAN_SQUARED_ERROR, MEAN_ABSOLUTE_ERROR)}


def named(metric: Metric) -> str | dict[str, Any]:
    """The metric for a file: its name, or all but its function where it is the user's own."""
    return metric.name if METRICS.get(metric.name) == metric else metric.to_dict()


def find_metric(metric: str | Metric) -> Metric:
    """A metric by its name; a Metric as it is. Raises ConfigError for a name that is none."""
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}.{suggest(metric, METRICS)}")
    return METRICS[metric]


def metric_named(name: str) -> Metric:
    """How values under this name are read and written, such as the name in a protocol that an earlier version wrote.

    A name that is none of METRICS stands for plain values; higher is better, unless it names an error or a loss.
    """
    return METRICS.get(name) or Metric(name, not name.endswith(("error", "loss")), PLAIN, _from_file)
