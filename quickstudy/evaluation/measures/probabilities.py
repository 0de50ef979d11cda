"""Is a classifier calibrated? Compares its confidence on unseen tasks with its accuracy.

    ECE      sum over bins of |B| / n * |accuracy(B) - confidence(B)|,   B: the answers of one of 15 equal-width bins
    -log p   negative log-likelihood of the true class, in nats: lower is better, uniform guessing gives ln(ways)
    Brier    sum over classes of (p_k - [k is true])^2, mean over queries

Confidence is the probability of the answer, which is the most probable class. The expected calibration error (ECE)
pools all queries. It is a mean of absolute differences, so chance makes it too high: 0.06 for a perfectly calibrated
learner on 375 queries. Beside it stands one without that bias. With r_Bt, the sum of confidence - [right] over the
answers of task t in bin B, it is

    debiased   1/n sum over B, t of w_Bt r_Bt,   w_Bt = sum over s != t of r_Bs / sqrt(sum over s != t of r_Bs^2)

with w cut to [-1, 1]: on which side of its confidence the bin lies, in standard errors, as only other tasks tell. So
chance alone makes it 0 on average (a single value may be below), and an error that is clear keeps its size. Since
|w| <= 1, the true error of the bins is in expectation between the two: debiased <= error <= ECE.

The other numbers are averaged within each task first, because errors of queries in one task are correlated. Their
intervals are over tasks. Where an example has a label for each of its positions, each position is a query.

Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599.
The bias: Kumar, Liang, Ma: Verified Uncertainty Calibration, NeurIPS 2019, https://arxiv.org/abs/1909.10155, section 4.
They take it from the squared error; subtracting what a calibrated learner would have would take as much from one that
is not.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quickstudy.engine.labels import counted
from quickstudy.episodes import Episodes, unstack
from quickstudy.errors import ConfigError
from quickstudy.evaluation.amount import Amount, aligned
from quickstudy.evaluation.measures.confusion import Confusion, confusion_of
from quickstudy.evaluation.metric import ACCURACY, ERROR, PERCENT, PLAIN, Format
from quickstudy.evaluation.predictions import Predictions, Settings, class_names, finite, predictions
from quickstudy.evaluation.protocol import Protocol
from quickstudy.evaluation.score import by_task
from quickstudy.learner import setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
FOUR_DIGITS = Format(spec=".4f", spread=".4f")
HEADINGS = {  # of what is measured in each episode
    "negative_log_likelihood": "-log p",
    "brier": "Brier score",
    "accuracy": "accuracy",
    "excess": "confidence - accuracy",
}
RANGES = {  # which values each can have
    "negative_log_likelihood": ERROR,
    "brier": Format(smallest=0.0, largest=2.0),
    "accuracy": PERCENT,
    "excess": PLAIN,
}


@dataclass(frozen=True)
class Bin:
    """The answers with low < confidence <= high."""

    low: float
    high: float
    queries: int  # number of answers
    confidence: float  # their mean confidence
    accuracy: float


@dataclass(frozen=True)
class Answers:
    """Calibration of a classifier on test tasks, with its confusion matrix and the protocol."""

    negative_log_likelihood: Amount  # of the true class, in nats
    brier: Amount
    accuracy: Amount
    excess: Amount  # confidence minus accuracy: above 0 the classifier is overconfident
    bins: tuple[Bin, ...]  # the bins that are not empty
    protocol: Protocol
    confusion: Confusion | None = None  # None if the classes have no names
    debiased_ece: float | None = None  # None of a single task, and in files of earlier versions

    @property
    def surprise(self) -> Amount:
        """Deprecated: `negative_log_likelihood`."""
        return self.negative_log_likelihood

    @property
    def ece(self) -> float:
        """The expected calibration error: 0 where confidence equals accuracy in every bin; chance makes it too high."""
        away = sum(one.queries * abs(one.accuracy - one.confidence) for one in self.bins)
        return away / sum(one.queries for one in self.bins)

    def __str__(self) -> str:
        amounts = {heading: getattr(self, kind) for kind, heading in HEADINGS.items()}
        rows = [(heading, amount.in_words(FOUR_DIGITS)) for heading, amount in amounts.items()]
        errors = [("expected calibration error", f"{self.ece:.4f}")]
        if self.debiased_ece is not None:
            errors.append(("without the bias of chance", f"{self.debiased_ece:.4f}"))
        lines = aligned([*errors, *rows])
        return "\n".join([*lines, f"(95 % CI over {self.protocol.episodes} episodes; {self.protocol.describe()})"])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for answers.json."""
        return {
            "ece": self.ece,
            "debiased_ece": self.debiased_ece,
            **{kind: getattr(self, kind).to_dict() for kind in HEADINGS},
            "bins": [vars(one) for one in self.bins],
            "protocol": self.protocol.to_dict(),
            "confusion": self.confusion and self.confusion.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Answers:
        """The answers that `to_dict` wrote. Raises ValueError, KeyError, IndexError or TypeError for anything else."""
        bins = tuple(
            Bin(float(b["low"]), float(b["high"]), int(b["queries"]), float(b["confidence"]), float(b["accuracy"]))
            for b in plain["bins"]
        )
        if not bins or any(not (one.queries > 0 and 0 <= one.accuracy <= 1) for one in bins):
            raise ValueError("a bin holds no queries, or an accuracy that is none")
        confusion = None if plain["confusion"] is None else Confusion.from_dict(plain["confusion"])
        plain = {"negative_log_likelihood": plain.get("surprise"), **plain}  # its name in earlier files
        amounts = {kind: Amount.from_dict(plain[kind]) for kind in HEADINGS}
        debiased = None if plain.get("debiased_ece") is None else float(plain["debiased_ece"])
        protocol = Protocol(**plain["protocol"])
        return cls(**amounts, bins=bins, protocol=protocol, confusion=confusion, debiased_ece=debiased)

    def plot(self, path: str | os.PathLike) -> None:
        """Write the reliability curve: accuracy against confidence. `path` ends with .png, .svg or .pdf."""
        from quickstudy.base.figures import save  # matplotlib takes a second to import

        save(path, lambda colours: figure(self, colours))


# --- measuring -------------------------------------------------------------------------------------------------------


def classification_calibration(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 600,
    seed: int = 1,
    steps: int | None = None,
    ensemble: int = 1,
    engine: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """Measure a classifier's calibration on test tasks, and which classes it confuses.

    `trained` has `.learner` and `.theta`. The episodes are those of `evaluate` with the same seed; `steps`, `ensemble`
    and `engine` mean the same as there. The confusion of named classes is included if the task source has names
    (`told`). `progress(n)` is called with the number of episodes done since the last call.

    >>> import quickstudy as qs
    >>> learner = qs.NearestCentroid(ways=5)
    >>> found = qs.classification_calibration(qs.Trained(learner, {}), qs.tasks.glyphs("test"), episodes=4)
    >>> 0 <= found.ece <= 1
    True
    >>> found.plot("reliability.svg")  # doctest: +SKIP

    Raises ConfigError where the tasks ask for values, not classes, or a setting does not fit the learner, DataError
    where the learner cannot use the tasks, and NonFiniteError where an output is not finite.
    """
    settings = Settings(episodes, seed, ACCURACY, engine, progress, check=_check)
    return calibration_of(predictions(trained, tasks, settings, steps=steps, ensemble=ensemble), tasks)


def calibration_of(made: Predictions, tasks: Any) -> Answers:
    """The calibration and the confusion of a classifier's predictions on these tasks, which name the classes.

    Raises ConfigError where the answers are values, NonFiniteError where an output is not finite.
    """
    _check_classes(made.truths[0])
    loss = setting(made.learner, "loss")
    pairs = (counted(*pair, loss) for pair in zip(made.outputs, made.truths, strict=True))
    means, bins, tables = zip(*(_measured(*pair) for pair in pairs), strict=True)
    columns = {kind: torch.stack([one[kind] for one in means]) for kind in HEADINGS}
    finite(torch.stack(list(columns.values()), 1), "probabilities that are not finite.")
    amounts = {kind: Amount.of(by_task(column, made.tasks), RANGES[kind]) for kind, column in columns.items()}
    protocol = dataclasses.replace(made.protocol, metric="calibration of probabilities")
    names = class_names(tasks, made)
    confusion = confusion_of(zip(names, tables, strict=True)) if all(names) else None
    filled, debiased = tuple(_bins(torch.stack(bins).sum(0))), _debiased(torch.stack(bins), made.tasks)
    return Answers(**amounts, bins=filled, protocol=protocol, confusion=confusion, debiased_ece=debiased)


def _check(first: Episodes) -> None:
    _check_classes(unstack(first)[0].query.y)


def _check_classes(y: Any) -> None:
    """Raise ConfigError where the answers y are not class numbers of one target."""
    if not isinstance(y, Tensor) or y.is_floating_point():
        raise ConfigError(
            "these tasks ask for values, or for labels that are each there or not, and not for classes: for values use "
            "qs.interval_coverage."
        )


def _measured(output: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """An episode's means by kind, its sums over bins [3, BINS], and counts by truth and answer [ways, ways].

    output [m, ways] holds logits, y [m] classes. All is in float64: in float32 a confident answer is exactly 1.
    """
    log_p = output.log_softmax(-1, dtype=torch.float64)
    answer, p = log_p.argmax(1), log_p.exp()
    sure = p.gather(1, answer[:, None])[:, 0]
    right = (answer == y).double()
    negative_log_likelihood = -log_p.gather(1, y[:, None])[:, 0]
    truth = _one_hot(y, p.shape[1])
    brier = ((p - truth) ** 2).sum(1)
    place = ((BINS * sure).ceil() - 1).clamp(0, BINS - 1)
    bins = torch.stack([torch.ones_like(sure), sure, right]) @ _one_hot(place, BINS)
    parts = {
        "negative_log_likelihood": negative_log_likelihood,
        "brier": brier,
        "accuracy": right,
        "excess": sure - right,
    }
    return {kind: part.mean() for kind, part in parts.items()}, bins, truth.T @ _one_hot(answer, p.shape[1])


def _debiased(sums: Tensor, tasks: Sequence[str]) -> float | None:
    """The calibration error without its bias, from each episode's sums over bins [episodes, 3, BINS].

    Episodes of the same task are not independent: `tasks` names the task of each, where tasks are fixed things.
    """
    places = {name: i for i, name in enumerate(sorted(set(tasks)))}
    of = torch.tensor([places[name] for name in tasks]) if tasks else torch.arange(len(sums))
    away = sums.new_zeros(len(places) or len(sums), BINS).index_add(0, of, sums[:, 1] - sums[:, 2])
    if len(away) < 2:
        return None
    others, spread = away.sum(0) - away, ((away**2).sum(0) - away**2).clamp(min=1e-12).sqrt()
    return float(((others / spread).clamp(-1, 1) * away).sum() / sums[:, 0].sum())


def _one_hot(numbers: Tensor, most: int) -> Tensor:
    return (numbers[:, None] == torch.arange(most)).double()


def _bins(sums: Tensor) -> Iterator[Bin]:
    for i, (queries, sure, right) in enumerate(sums.T.tolist()):
        if queries:
            yield Bin(i / BINS, (i + 1) / BINS, round(queries), sure / queries, right / queries)


def figure(answers: Answers, colours: Mapping[str, str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    curve, held = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    curve.plot([0, 100], [0, 100], color=colours["muted"], linestyle=":", linewidth=1.2)
    shares = [one.queries / sum(b.queries for b in answers.bins) for one in answers.bins]
    sure, right = ([100 * getattr(one, name) for one in answers.bins] for name in ("confidence", "accuracy"))
    curve.plot(sure, right, color=colours["s1"], linewidth=1.6)
    curve.scatter(sure, right, s=[12 + 120 * share for share in shares], color=colours["s1"], zorder=3)
    held.bar(
        [100 * one.low for one in answers.bins],
        [100 * share for share in shares],
        width=0.88 * 100 / BINS,
        align="edge",
        color=colours["s2"],
        alpha=0.85,
    )
    curve.set(xlim=(0, 102), ylim=(0, 104), ylabel="accuracy (%)")
    held.set(xlabel="confidence: probability of the answer (%)", ylabel="answers (%)")
    for axes in (curve, held):
        axes.tick_params(length=0)
    return figure
