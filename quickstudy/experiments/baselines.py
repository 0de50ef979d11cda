"""scikit-learn models on the same test tasks: the baselines that a meta-learner has to beat on tables and texts.

    per_task(model)         fitted on the support set of each task alone
    pooled(model, tasks)    f, fitted once on all rows of the training tasks; it learns nothing from a new task
    ... with offset         f(x) + a,  a = n / (n + s^2 / t^2) * mean over the support set of y - f(x)

The offset is the best linear predictor of a task's own level (a random intercept; Henderson 1975, Laird and Ware 1982,
https://doi.org/10.2307/2529876). The variances s^2 within and t^2 between tasks are those of the training tasks'
residuals, where a model that has not seen a task predicts it. This is what a statistician would try first, and it is
hard to beat.

Both return a `Trained` for `evaluate`, on the same episodes as every learner. Their models are scikit-learn's, so they
have no meta-gradient, no predictor and no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.nn.model import call
from quickstudy.tasks.source import describe, source_of
from quickstudy.tasks.tabular.groups import GroupTasks
from quickstudy.trained.trained import Trained

LEAST = 1e-12  # probability of a class that a model never saw, so that its logarithm is finite
FOLDS = 5


def per_task(model: Any, tasks: Any, *, encoder: nn.Module | None = None) -> Trained:
    """A scikit-learn model that is fitted anew on each task's support set.

    model     an unfitted estimator, such as Ridge() or LogisticRegression()
    tasks     any split of the tasks; it says how many classes a task has, or that the answers are values
    encoder   a network that turns inputs into numbers; it is used as it is and not trained

    >>> import quickstudy as qs
    >>> from sklearn.linear_model import Ridge
    >>> tasks = qs.tasks.sinusoid("test", shots=10)
    >>> score = qs.evaluate(qs.per_task(Ridge(), tasks), tasks, episodes=2)
    """
    return Trained(PerTask(model, source_of(tasks).ways, encoder), {}, describe(tasks))


def pooled(model: Any, tasks: GroupTasks, *, offset: bool = False) -> Trained:
    """A scikit-learn model fitted once on all rows of `tasks`, the training tasks.

    `model` is an unfitted estimator. With `offset`, predictions of values are shifted by each task's own level.

    Raises ConfigError for tasks whose classes differ from task to task, because a pooled model cannot name them, and
    for an offset with classes.
    """
    if not isinstance(tasks, GroupTasks):
        raise ConfigError(
            f"a pooled model needs tasks that ask for the same thing, as those of a table; got {type(tasks).__name__}."
        )
    if offset and tasks.ways:
        raise ConfigError("the offset is a level of values; these tasks have classes. Leave it out.")
    x, y = _numbers(tasks.x), _answers(tasks.y)
    ratio = _ratio(model, x, y, _groups(tasks)) if offset else None
    return Trained(Pooled(_fresh(model).fit(x, y), tasks.ways, ratio), {}, describe(tasks))


@dataclass(frozen=True, eq=False)
class PerTask(Learner):
    """The learner behind `per_task`. phi is the fitted model."""

    estimator: Any  # of scikit-learn, not fitted
    ways: int | None = None  # classes in a task; None for values
    encoder: nn.Module | None = None

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Any:
        return _fresh(self.estimator).fit(self._numbers(support.x), _answers(support.y))

    def predict(self, theta: Theta, phi: Any, x: Tensor) -> Tensor:
        return _output(phi, self._numbers(x), self.ways)

    def _numbers(self, x: Tensor) -> np.ndarray:
        return _numbers(x if self.encoder is None else call(self.encoder, {}, x))

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return _loss(self, theta, episode)


@dataclass(frozen=True, eq=False)
class Pooled(Learner):
    """The learner behind `pooled`. phi is the task's own level [d], zero without offset."""

    estimator: Any  # of scikit-learn, fitted
    ways: int | None = None  # classes of all tasks together; None for values
    ratio: float | None = None  # s^2 / t^2; None: no offset

    fixed_ways: ClassVar[bool] = True  # a class is the same in every task
    from_nothing: ClassVar[bool] = True

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        if self.ratio is None or not len(support.y):
            return torch.zeros(1)
        n, residuals = len(support.y), support.y - _output(self.estimator, _numbers(support.x), None)
        return n / (n + self.ratio) * residuals.mean(0)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return _output(self.estimator, _numbers(x), self.ways) + phi

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return _loss(self, theta, episode)


def _fresh(model: Any) -> Any:
    """An unfitted copy of the estimator."""
    from sklearn.base import clone  # an optional dependency, present for anyone who can pass such a model

    return clone(model)


def _numbers(x: Tensor) -> np.ndarray:
    return x.detach().flatten(1).cpu().numpy()


def _answers(y: Tensor) -> np.ndarray:
    """[n] classes, [n] values or [n, d] values, as scikit-learn expects them."""
    found = y.detach().cpu().numpy()
    return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found


def _output(model: Any, x: np.ndarray, ways: int | None) -> Tensor:
    """Log-probabilities [m, ways], or values [m, d]."""
    if ways is None:
        return torch.as_tensor(model.predict(x).reshape(len(x), -1), dtype=torch.get_default_dtype())
    p = np.full((len(x), ways), LEAST)
    p[:, model.classes_] = np.maximum(model.predict_proba(x), LEAST)
    return torch.as_tensor(np.log(p), dtype=torch.get_default_dtype())


def _loss(learner: PerTask | Pooled, theta: Theta, episode: Episode) -> Tensor:
    output = learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x)
    return (F.mse_loss if learner.ways is None else F.cross_entropy)(output, episode.query.y)


def _groups(tasks: GroupTasks) -> np.ndarray:
    """The task of each row [N]."""
    sizes = tasks.starts.diff().numpy()
    return np.repeat(np.arange(len(sizes)), sizes)


def _ratio(model: Any, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    """s^2 / t^2 by the method of moments (one-way analysis of variance); infinite where tasks do not differ."""
    from sklearn.model_selection import GroupKFold, cross_val_predict

    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        return math.inf
    residuals = (y - cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(folds))).reshape(len(y), -1)
    return variance_ratio(residuals, groups)


def variance_ratio(residuals: np.ndarray, groups: np.ndarray) -> float:
    """s^2 / t^2 of residuals [n, d] in groups [n], the variance within groups over that between them.

    With MSW and MSB the mean squares within and between groups and m = (n - sum n_g^2 / n) / (groups - 1):
    s^2 = MSW, t^2 = (MSB - MSW) / m (Searle, Casella, McCulloch: Variance Components, 1992, section 3.6). Infinite
    where t^2 is not positive.
    """
    _, of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n, k = len(of), len(sizes)
    means = np.stack([np.bincount(of, column) for column in residuals.T], 1) / sizes[:, None]
    within = ((residuals - means[of]) ** 2).sum() / max(n - k, 1)
    between = (sizes[:, None] * (means - residuals.mean(0)) ** 2).sum() / (k - 1)
    spread = (between - within) / ((n - (sizes**2).sum() / n) / (k - 1))
    return float(within / spread) if spread > 0 else math.inf
