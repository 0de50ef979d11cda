"""Trained learners, the predictors that they become when adapted to one task, and `load` for the files of both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.base import files
from quickstudy.engine.fitting import check_episodes, device_of, for_test, is_transductive, with_ways
from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.learner import Batch, Episode, Learner, Theta, embed_of
from quickstudy.nn.parameters import first_non_finite
from quickstudy.tasks.texts.sentences import Encoder
from quickstudy.trained.learner_file import extractor_header, extractor_tensors, learner_header, learner_tensors
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.reading import SupportSet, answers, as_features, as_inputs, encoded

SCOPE = "scope"  # key in preprocess: the distance beyond which an input is of no class, see `quickstudy.scoped`


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
    def scope(self) -> float | None:
        """The distance beyond which an input is of no class, if `quickstudy.scoped` chose one, else None."""
        return self.preprocess.get(SCOPE)

    def adapt(self, x: Any, y: Any, *, transductive: bool = False) -> Predictor:
        """Learn one task from its support set and return its predictor.

        x is a tensor or array [n, ...] (uint8 images are scaled to [0, 1]). A learner trained on a table also takes
        rows with the same columns (a DataFrame or a list of dicts), one trained on texts a list of texts. y is [n]
        class names or numbers, or [n, d] values for regression in the target's unit; for tables the values may also be
        [n]. Unless `transductive`, an answer never depends on the other inputs of the call. Learners that need no
        examples (`from_nothing`, the neural processes) also take an empty support set of values.

        Raises DataError for NaN, lengths that differ, fewer than two classes, or classes that the model has no output
        for; ConfigError for more ways than a learner with fixed ways was trained on.
        """
        return self._adapted(self._shown(x, y, transductive))

    def _adapted(self, shown: SupportSet, known: bool = False) -> Predictor:
        """`known`: the learner has read such examples before, so skip the check, which takes longer than learning."""
        learner, names, support = self._task(shown, known)
        with torch.no_grad():
            phi = learner.adapt(self.theta, support)
        self._check_finite(phi)
        parts = (self.preprocess, self.extractor, shown, self.text_encoder)
        return Predictor(learner, self.theta, phi, names, *parts)

    def embed(self, x: Any, y: Any) -> Tensor:
        """The task embedding, a vector [d], of a support set given as for `adapt`.

        Raises ConfigError where the learner has no task embedding, and the errors of `adapt`.
        """
        learner, _, support = self._task(self._shown(x, y, False))
        with torch.no_grad():
            return embed_of(learner)(self.theta, support)

    def _shown(self, x: Any, y: Any, transductive: bool) -> SupportSet:
        x = encoded(self.preprocess, x, self.text_encoder)
        x = as_inputs(x, self.theta, least=0 if self.learner.from_nothing else 1)
        return SupportSet(x, y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y), transductive)

    def _task(self, shown: SupportSet, known: bool = False) -> tuple[Learner, tuple[Any, ...] | None, Batch]:
        """The learner for this task, the names of its classes, and its support set as the learner reads it."""
        names, target = self._answers(answers(self.preprocess, shown.y), len(shown.x))
        learner = self._for_task(names, shown.transductive)
        with torch.no_grad():
            support = Batch(as_features(shown.x, self.extractor), target)
        # New classes may outnumber the learner's outputs. Learners with `ways` were checked in `_for_task`.
        if not known or not hasattr(learner, "ways"):
            check_episodes(learner, self.theta, Episode(*[Batch(b[None], t[None]) for b, t in (support, support)]))
        return learner, names, support

    def _answers(self, y: Any, n: int) -> tuple[tuple[Any, ...] | None, Tensor]:
        """The class names in output order and class numbers [n]; for regression None and values [n, d]."""
        values = y.numpy() if isinstance(y, Tensor) else y
        if len(values) != n:
            raise DataError(f"x has {n} examples, but y has {len(values)}. Give one answer for each example.")
        if values.dtype.kind == "f":
            if values.ndim == 1:
                raise DataError("y holds real numbers [n]. For classes give names or integers, for values [n, d].")
            real = torch.as_tensor(values, dtype=next(iter(self.theta.values())).dtype if self.theta else None)
            return None, real.to(device_of(self.theta))
        names, numbers = np.unique(values, return_inverse=True)
        if self._same_everywhere():
            return self._known_classes(names, numbers)
        if len(names) < 2:
            raise DataError(
                f"the support set has one class only ({names.tolist()[0]!r}). Give examples of two or more."
            )
        return tuple(names.tolist()), torch.as_tensor(numbers.reshape(-1)).to(device_of(self.theta))

    def _same_everywhere(self) -> bool:
        """Whether a class has the same output in every task: tasks share classes, and the learner can name them all."""
        return "classes" in self.preprocess and (self.learner.fixed_ways or not hasattr(self.learner, "ways"))

    def _known_classes(self, names: np.ndarray, numbers: np.ndarray) -> tuple[tuple[Any, ...], Tensor]:
        known = list(self.preprocess["classes"])
        if unknown := [name for name in map(str, names.tolist()) if name not in known]:
            raise DataError(
                f"the support set has the class {unknown[0]!r}; training knew {', '.join(known)}."
                f"{suggest(unknown[0], known)}"
            )
        places = torch.tensor([known.index(str(name)) for name in names.tolist()])
        return tuple(known), places[numbers.reshape(-1)].to(device_of(self.theta))

    def _for_task(self, names: tuple[Any, ...] | None, transductive: bool) -> Learner:
        learner = self.learner
        if names is not None and getattr(learner, "ways", None) is not None:
            learner = dataclasses.replace(learner, **with_ways(learner, len(names)))  # type: ignore[type-var]
        if is_transductive(learner) and not transductive:
            learner = for_test(learner, None, transductive=False)
        return learner

    def _check_finite(self, phi: Any) -> None:
        leaves = {str(i): leaf for i, leaf in enumerate(pytree.tree_leaves(phi)) if isinstance(leaf, Tensor)}
        if first_non_finite(leaves) is not None:
            raise DataError(
                "adapting to this support set gives values that are not finite. Check the inputs for absurd numbers, "
                "or lower the inner learning rate."
            )

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
