"""Out-of-scope detection: how well the distance to the classes of a task reveals inputs that belong to none of them.

    own     the queries of a task's classes, n        foreign   as many inputs that belong to none of them, f = n
    AUROC   (R - f (f + 1) / 2) / (f n)               R is the sum of the ranks of the foreign distances among all.
                                                      AUROC is the probability that a foreign input is farther than
                                                      an own one, 50 % for guessing
    FPR95   share of the foreign inputs that are      false-positive rate at 95 % recall: a learner that answers 95 % of
            no farther than 95 % of the own ones      the own queries also answers this share of the foreign inputs

Both are computed for each task; intervals are over episodes. The distance is compared with the largest class
probability, which is lower for foreign inputs: Hendrycks, Gimpel: A Baseline for Detecting Misclassified and
Out-of-Distribution Examples in Neural Networks, ICLR 2017, https://arxiv.org/abs/1610.02136 (AUROC too). FPR95: Liang,
Li, Srikant: Enhancing the Reliability of Out-of-distribution Image Detection, ICLR 2018,
https://arxiv.org/abs/1706.02690
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.engine.fitting import for_test, inductive
from quickstudy.episodes import Episodes, is_classification
from quickstudy.errors import ConfigError, DataError, NonFiniteError
from quickstudy.evaluation.amount import Amount, aligned
from quickstudy.evaluation.choosing import chosen_engine
from quickstudy.evaluation.confidence import mean_difference
from quickstudy.evaluation.difference import Difference
from quickstudy.evaluation.metric import PERCENT
from quickstudy.evaluation.passes import Arrange, Pass, begin, protocol_of, results
from quickstudy.evaluation.protocol import Protocol
from quickstudy.learner import Episode, Learner, Theta, demand
from quickstudy.tasks.classes import ClassTasks, scaled
from quickstudy.trained.adapting import SCOPE
from quickstudy.trained.reading import as_features
from quickstudy.trained.trained import Trained

RECALL = 0.95  # share of a task's own queries that should be answered


@dataclass(frozen=True)
class Separation:
    """How well one number separates foreign inputs from own ones: means over episodes."""

    auroc: Amount
    fpr95: Amount


@dataclass(frozen=True)
class OutOfScope:
    """How well the distance and the largest class probability separate foreign inputs from own ones."""

    distance: Separation
    softmax: Separation
    gain: Difference  # AUROC of the distance minus that of the softmax
    answered: Amount | None  # share of own queries within the distance that `scoped` chose, if it did
    passed: Amount | None  # share of foreign inputs within it
    foreign: str  # what the foreign inputs are
    protocol: Protocol

    def __str__(self) -> str:
        rows = [("", "AUROC", "FPR95")]
        pairs = (("distance", self.distance), ("largest probability", self.softmax))
        rows += [(name, _percent(one.auroc), _percent(one.fpr95)) for name, one in pairs]
        lines = [*aligned(rows), f"distance minus probability, AUROC: {self.gain}"]
        if self.answered and self.passed:
            lines.append(
                f"within the distance chosen on validation tasks: {_percent(self.answered)} of own queries, "
                f"{_percent(self.passed)} of foreign inputs"
            )
        under = f"95 % CI over {self.protocol.episodes} episodes; {self.protocol.describe()}"
        return "\n".join([*lines, f"({under}; foreign: {self.foreign})"])

    __repr__ = __str__


def _percent(amount: Amount) -> str:
    return amount.in_words(PERCENT)


# --- measuring -------------------------------------------------------------------------------------------------------


def out_of_scope(
    trained: Trained,
    tasks: Any,
    foreign: Any = None,
    *,
    episodes: int = 600,
    seed: int = 1,
    progress: Callable[[int], None] | None = None,
) -> OutOfScope:
    """How well a learner separates inputs that belong to no class of a test task from those of its classes.

    foreign   inputs that belong to no class, as a predictor takes them (texts, images [N, ...]); None: examples of the
              pool's other classes, which are harder to separate because they are of the same kind

    The queries of each test task are compared with as many foreign inputs, drawn without replacement. The tasks are
    those of `evaluate` with the same seed. A network that normalises by batch uses the support set's statistics, as in
    a predictor. If `scoped` chose a distance, the result also says which shares lie within it. `progress(n)` is called
    with the number of episodes done since the last call.

    >>> import quickstudy as qs
    >>> found = qs.out_of_scope(qs.Trained(qs.NearestCentroid(), {}), qs.tasks.glyphs("test"), episodes=20)
    >>> found.distance.auroc.mean > 0.5
    True

    Raises ConfigError for a learner without `distance`, for regression and for fewer than 2 episodes, DataError for too
    few foreign inputs, NonFiniteError where a distance or an output is not finite.
    """
    inputs = None
    if foreign is not None:
        inputs = as_features(trained.basis.inputs(foreign), trained.extractor, trained.theta)
    one = _begin(trained, tasks, episodes, seed, lambda i, e: _with_foreign(tasks, inputs, seed, i, e))
    halves = (measured.chunk(2, 1) for measured in _of_queries(trained.theta, one, progress))  # own and foreign inputs
    each = [_separated(own.numpy(), rest.numpy(), trained.scope) for own, rest in halves]
    distance, softmax, gain, kept = zip(*each, strict=True)
    answered, passed = _amounts(kept) or (None, None)
    return OutOfScope(
        Separation(*_amounts(distance)),
        Separation(*_amounts(softmax)),
        _gain(gain),
        answered,
        passed,
        foreign="the pool's other classes" if foreign is None else f"{len(foreign)} given inputs",
        protocol=protocol_of(one.learner, tasks, "out of scope", episodes, seed, seen=one.first),
    )


def scoped(trained: Trained, tasks: Any, *, recall: float = RECALL, episodes: int = 200, seed: int = 1) -> Trained:
    """The same learner with a distance for rejecting inputs: a share `recall` of the queries of these tasks lie within.

    Its predictors answer None beyond that distance when called as `predict(x, reject=True)`. Files keep the distance.
    Give validation tasks with the ways and shots of later use, because these change distances: a single example is
    farther from the queries of its class than the mean of five. No foreign inputs are needed; `out_of_scope` measures
    how many of them get through.

    >>> import quickstudy as qs
    >>> trained = qs.scoped(qs.Trained(qs.NearestCentroid(), {}), qs.tasks.glyphs("val"), episodes=20)
    >>> 0 < trained.scope < 784
    True

    Raises ConfigError for a learner without `distance`, for regression, for a recall outside (0, 1) and for fewer than
    2 episodes.
    """
    if not 0 < recall < 1:
        raise ConfigError(f"recall is the share of own queries to answer, between 0 and 1; got {recall}.")
    measured = _of_queries(trained.theta, _begin(trained, tasks, episodes, seed))
    own = np.concatenate([distance.numpy() for distance, _ in measured])
    return dataclasses.replace(trained, preprocess={**trained.preprocess, SCOPE: float(np.quantile(own, recall))})


def sized(tasks: ClassTasks, ways: int, shots: int) -> ClassTasks:
    """The tasks with this many ways and shots, or as many as the pool's classes allow. Used with `scoped`."""
    most = int(tasks.starts.diff().min()) - tasks.queries
    return tasks.replace(ways=min(ways, len(tasks.classes)), shots=min(shots, most))


def _begin(trained: Trained, tasks: Any, episodes: int, seed: int, arrange: Arrange | None = None) -> Pass:
    demand(trained.learner, "distance")
    if episodes < 2:
        raise ConfigError(f"intervals over episodes need at least 2 of them, got {episodes}.")
    learner = _as_predictor(trained.learner, tasks)
    return begin(learner, trained.theta, tasks, episodes, seed, arrange, _check_classes)


def _check_classes(first: Episodes) -> None:
    if not is_classification(first):
        raise ConfigError(
            "out of scope means of no class; these tasks ask for values, or for labels of the parts of an example, "
            "and do not ask for one class of each."
        )


def _of_queries(theta: Theta, one: Pass, progress: Callable[[int], None] | None = None) -> Iterator[Tensor]:
    """For each episode [2, m]: the distance of each query to the nearest class, and its `doubt`."""

    def measure(learner: Learner, episode: Episode) -> Tensor:
        phi = learner.adapt(theta, episode.support)
        distance = learner.distance(theta, phi, episode.query.x)
        logits = learner.predict(theta, phi, episode.query.x)
        return torch.stack([distance.double(), doubt(logits.double())])

    engine = chosen_engine(one, measure)
    for i, measured in enumerate(results(one, measure, engine, progress)):
        if not torch.isfinite(measured).all():
            raise NonFiniteError(f"test episode {i} gives a distance or an output that is not finite.")
        yield measured


def _with_foreign(tasks: Any, inputs: Tensor | None, seed: int, number: int, episode: Episode) -> Episode:
    """The episode with as many foreign inputs behind its queries."""
    own = episode.query.x
    foreign = _foreign(tasks, inputs, len(own), seed, number).to(own.device)
    return episode._replace(query=episode.query._replace(x=torch.cat([own, foreign])))


def _as_predictor(learner: Learner, tasks: Any) -> Learner:
    return for_test(inductive(learner), tasks)


def _foreign(tasks: Any, inputs: Tensor | None, n: int, seed: int, episode: int) -> Tensor:
    """n foreign inputs for a test episode, determined by (seed, episode) alone."""
    rows = _other_rows(tasks, seeds.generator(seed, "test", episode)) if inputs is None else torch.arange(len(inputs))
    if len(rows) < n:
        what = "examples of classes that are not in the task" if inputs is None else "foreign inputs"
        raise DataError(f"there are {len(rows)} {what}, but {n} queries. Give more, or lower queries or ways.")
    drawn = rows[torch.randperm(len(rows), generator=seeds.generator(seed, "foreign", episode))[:n]]
    return scaled(tasks.examples[drawn]) if inputs is None else inputs[drawn]


def _other_rows(tasks: Any, generator: torch.Generator) -> Tensor:
    """The examples of all classes except those of the task that `sample` draws from a generator in the same state."""
    if not isinstance(tasks, ClassTasks):
        raise ConfigError(f"a {type(tasks).__name__} has no pool of other classes. Give inputs that are foreign.")
    support, _ = tasks.rows(1, generator)
    of_class = torch.searchsorted(tasks.starts, torch.arange(len(tasks.examples)), right=True)
    return (~torch.isin(of_class, of_class[support.flatten()])).nonzero().flatten()


def doubt(logits: Tensor) -> Tensor:
    """log((1 - p) / p) [m], with p the largest class probability of logits [m, ways].

    It orders inputs as -p does, but without the ties that rounding gives where p is near 1.
    """
    largest = logits.argmax(1, keepdim=True)
    rest = logits.scatter(1, largest, -math.inf).logsumexp(1)
    return (rest - logits.gather(1, largest)[:, 0]).clamp(min=torch.finfo(logits.dtype).min)  # one class: -inf


def _separated(own: np.ndarray, foreign: np.ndarray, scope: float | None) -> tuple[Sequence[float], ...]:
    """For one episode: AUROC and FPR95 of distance and of doubt, gain in AUROC, shares within the kept distance."""
    distance, softmax = ((auroc(*pair), false_alarms(*pair)) for pair in zip(own, foreign, strict=True))
    kept = () if scope is None else tuple(float((one[0] <= scope).mean()) for one in (own, foreign))
    return distance, softmax, (distance[0] - softmax[0],), kept


def _amounts(values: Sequence[Sequence[float]]) -> list[Amount]:
    """values[episode][k] -> an amount for each k."""
    return [Amount.of(one, PERCENT) for one in torch.tensor(values, dtype=torch.float64).unbind(1)]


def _gain(values: Sequence[Sequence[float]]) -> Difference:
    gain = torch.tensor(values, dtype=torch.float64).T
    mean, ends, p = mean_difference(gain, torch.zeros_like(gain), PERCENT.width)
    return Difference(mean, *ends, p, "accuracy")


def auroc(own: np.ndarray, foreign: np.ndarray) -> float:
    """The probability that a foreign number [f] is larger than an own one [n]; ties count half."""
    from scipy.stats import rankdata  # not at the top: it takes half a second to import

    f, ranks = len(foreign), rankdata(np.concatenate([foreign, own]))
    return float((ranks[:f].sum() - f * (f + 1) / 2) / (f * len(own)))


def false_alarms(own: np.ndarray, foreign: np.ndarray, recall: float = RECALL) -> float:
    """The share of foreign numbers within the smallest threshold that holds a share `recall` of the own ones."""
    threshold = np.quantile(own, recall, method="inverted_cdf")
    return float((foreign <= threshold).mean())
