"""Class labels as a loss reads them: where the classes stand in an output, and which labels count nowhere.

    labels y [n, ...]     logits [n, classes, ...]     the rule of torch's own losses: cross entropy, NLL, multi-margin

One label for each example is [n] with logits [n, classes]; tags are [n, T] with [n, classes, T], masks [n, H, W] with
[n, classes, H, W]. A loss of the user's own may have the classes last, [n, T, classes], which the shapes tell; where
they fit both, nothing is guessed. Labels equal to the loss's `ignore_index` (-100 unless it says otherwise) are those
of padding: no score and no calibration counts them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.episodes import are_classes
from quickstudy.errors import ConfigError

IGNORED = -100  # torch's own `ignore_index`
# torch's losses as functions, by their modules.
FUNCTIONS: dict[type[nn.Module], Callable] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MultiMarginLoss: F.multi_margin_loss,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.BCELoss: F.binary_cross_entropy,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
}
OF_CLASSES = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)  # their labels are class numbers


def function_of(loss: Any) -> Any:
    """The function behind a loss: torch's for one of its modules, whatever its options; what a partial holds."""
    if isinstance(loss, functools.partial):
        return function_of(loss.func)
    # A subclass with a forward of its own is another loss.
    known = (function for kind, function in FUNCTIONS.items() if getattr(type(loss), "forward", None) is kind.forward)
    return next(known, loss)


def takes_classes(loss: Any) -> bool:
    """Whether whole numbers are class numbers for this loss: one of torch's for classes."""
    return function_of(loss) in OF_CLASSES


def ignored_by(loss: Any) -> int:
    """The label that counts nowhere: the loss's `ignore_index`."""
    if isinstance(loss, functools.partial):
        return loss.keywords.get("ignore_index", ignored_by(loss.func))
    return getattr(loss, "ignore_index", IGNORED)


def class_axis(output: Tensor, y: Tensor, loss: Any = None) -> int | None:
    """The axis of an output on which the classes of labels y stand: 1, or -1 for the last; None where none fits.

    Raises ConfigError where both fit and the loss is not one of torch's, whose rule is axis 1.
    """
    first, last = output.shape[:1] + output.shape[2:] == y.shape, output.shape[:-1] == y.shape
    if output.dim() < 2 or not (first or last):
        return None
    if output.dim() == 2 or takes_classes(loss):
        return 1 if first else None
    if first and last:
        raise ConfigError(
            f"in outputs {list(output.shape)} for labels {list(y.shape)} the classes may stand on axis 1 or on the "
            "last. Use torch's cross entropy, which has them on axis 1, or score with a qs.Metric of your own."
        )
    return 1 if first else -1


def counted(output: Tensor, y: Tensor, loss: Any = None) -> tuple[Tensor, Tensor]:
    """Logits [k, classes] and labels [k] of all positions that count, of an output for labels y [m, ...].

    Raises ConfigError where the output has no axis of classes for these labels.
    """
    axis = class_axis(output, y, loss)
    if axis is None:
        raise ConfigError(
            f"labels {list(y.shape)} need outputs with the classes on axis 1, {classes_on_axis(y)}; got "
            f"{list(output.shape)}."
        )
    counts = y != ignored_by(loss)
    return output.movedim(axis, -1)[counts], y[counts]


def classes_on_axis(y: Tensor) -> str:
    """The shape of the logits for labels y, in words: '[5, classes, 7]' for labels [5, 7]."""
    return f"[{', '.join(map(str, [*y.shape[:1], 'classes', *y.shape[1:]]))}]"


# --- labels that are each there or not -------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """How a loss of labels that are each there or not, such as several of one picture, reads outputs and targets."""

    logits: bool  # whether an output is the logit of the label's probability, or the probability itself
    low: float = 0.0  # the target of a label that is not there; 1 is that of one that is

    @property
    def middle(self) -> tuple[float, float]:
        """Above which output a label is answered with yes, and above which target it is one."""
        return (0.0 if self.logits else 0.5), (self.low + 1) / 2

    def target(self, output: Tensor) -> Tensor:
        """The expected target of each label, from `low` to 1, that an output stands for."""
        share = output.sigmoid() if self.logits else output
        return self.low + (1 - self.low) * share

    def output(self, target: Tensor) -> Tensor:
        """The output that stands for an expected target, such as the mean of some."""
        share = (target - self.low) / (1 - self.low)
        return share.logit(1e-6) if self.logits else share


OF_LABELS = {
    F.binary_cross_entropy_with_logits: Labelled(logits=True),
    F.multilabel_soft_margin_loss: Labelled(logits=True),
    F.binary_cross_entropy: Labelled(logits=False),
    F.soft_margin_loss: Labelled(logits=True, low=-1.0),
}


def labelled(loss: Any) -> Labelled | None:
    """How the loss reads labels that are each there or not; None for other losses."""
    return OF_LABELS.get(function_of(loss))


# --- which labels are allowed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowed:
    """The whole numbers that are labels in a batch of tasks."""

    outputs: int | None = None  # 0..outputs-1; None: how many depends on the task
    ignored: int | None = None  # and this one, which counts nowhere; None: no other
    positions: bool = False  # whether each position of an example has a label, or each example one

    def of(self, y: Any, axes: int = 1) -> Tensor | None:
        """y if it holds labels, else None. `axes`: those of the tasks, if any, and of the examples."""
        whole = isinstance(y, Tensor) and not y.is_floating_point()
        return y if are_classes(y, axes) or (whole and self.positions) else None


def allowed(output: Any, y: Any, loss: Any) -> Allowed:
    """What one task's outputs and answers y, and the loss, say of labels."""
    ignored = ignored_by(loss) if takes_classes(loss) else None
    if not (isinstance(output, Tensor) and isinstance(y, Tensor)) or y.is_floating_point():
        return Allowed(None, ignored)
    if y.dim() == 1:
        return Allowed(output.shape[1] if output.dim() > 1 else None, ignored)
    if not takes_classes(loss) or class_axis(output, y, loss) is None:
        return Allowed(None, ignored)
    return Allowed(output.shape[1], ignored, positions=True)
