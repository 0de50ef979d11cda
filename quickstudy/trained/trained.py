"""A trained learner: a learner with its meta-parameters, which adapts to tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.base import files
from quickstudy.errors import ConfigError
from quickstudy.learner import Learner, Theta
from quickstudy.tasks.texts.sentences import Encoder
from quickstudy.trained.adapting import SCOPE, Basis, learn, one_task, support_set
from quickstudy.trained.learner_file import extractor_header, extractor_tensors, learner_header, learner_tensors
from quickstudy.trained.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Trained:
    """A learner with the meta-parameters that training found.

    `tasks` describes the training tasks; `preprocess` says how raw input became the model's input. If training kept
    the thetas of several validations (`keep`), `best` holds them, best first, and `theta` is the first of them.
    `extractor` is the frozen network of `qs.tasks.features`, which turns raw inputs into the learner's inputs.
    `text_encoder` is the model that turns texts into vectors (`qs.tasks.from_text`); it is not saved in files.

    Raises ConfigError where the first of `best` is not `theta`.
    """

    learner: Learner
    theta: Theta
    tasks: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    best: tuple[Theta, ...] = ()
    extractor: nn.Module | None = None
    text_encoder: Encoder | None = None

    def __post_init__(self) -> None:
        if self.best and self.best[0] is not self.theta:
            raise ConfigError("the first of `best` must be `theta` itself: Trained(learner, best[0], best=best).")

    @property
    def basis(self) -> Basis:
        """What a task is learned with."""
        return Basis(self.learner, self.theta, self.preprocess, self.extractor, self.text_encoder)

    @property
    def scope(self) -> float | None:
        """The distance beyond which an input is of no class, if `quickstudy.scoped` chose one, else None."""
        return self.preprocess.get(SCOPE)

    def adapt(self, x: Any, y: Any, *, transductive: bool = False) -> Predictor:
        """Learn one task from its support set and return its predictor.

        x is a tensor or array [n, ...] (uint8 images are scaled to [0, 1]), or a dict or tuple of such arrays, the
        model's arguments by name or in order, of which whole numbers keep their type. A learner trained on a table also
        takes rows with the same columns (a DataFrame or a list of dicts), one trained on texts a list of texts. y is
        [n] class names or numbers, or [n, d] values for regression in the target's unit; for tables the values may also
        be [n]. Labels of positions, for a model with logits [n, classes, ...] under torch's cross entropy, are [n, T]
        or [n, H, W]: numbers of outputs as in training, or names, with None where there is no label. Several targets
        are a dict or tuple of class numbers and values. Unless `transductive`, an answer never
        depends on the other inputs of the call. Learners that need no examples (`from_nothing`, the neural processes)
        also take an empty support set of values.

        Raises DataError for NaN, lengths that differ, fewer than two classes, or classes that the model has no output
        for; ConfigError for more ways than a learner with fixed ways was trained on, and unless `transductive` for a
        learner that has no form that answers each input by itself.
        """
        shown = support_set(self.basis, x, y, transductive)
        return Predictor(self.basis, learn(self.basis, shown), shown)

    def embed(self, x: Any, y: Any) -> Tensor:
        """The task embedding, a vector [d], of a support set given as for `adapt`.

        Raises ConfigError where the learner has no task embedding, and the errors of `adapt`.
        """
        learner, _, support = one_task(self.basis, support_set(self.basis, x, y, transductive=True))  # no queries
        with torch.no_grad():
            return learner.embed(self.theta, support)

    def save(self, path: str | os.PathLike) -> None:
        """Write a `.qs` file for `quickstudy.load`. Raises RunError where it cannot be written."""
        tensors = {f"theta.{name}": value for name, value in self.theta.items()}
        header: dict[str, Any] = {"tasks": dict(self.tasks), "preprocess": dict(self.preprocess)}
        header["names"] = list(self.theta)
        if len(self.best) > 1:
            header["best"] = files.pack(self.best[1:], tensors, "best")
        header |= learner_header(self.learner) | extractor_header(self.extractor)
        tensors |= learner_tensors(self.learner) | extractor_tensors(self.extractor)
        files.write_tensors(path, "trained", tensors, header)
