"""One task is learned: from a support set, as it was given, to the learner of this task, its phi and its classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.base import trees
from quickstudy.engine.fitting import check_episodes, device_of, inductive, with_ways
from quickstudy.engine.labels import labelled
from quickstudy.errors import DataError, suggest
from quickstudy.learner import Batch, Episode, Learner, Theta, setting, takes
from quickstudy.nn.parameters import first_non_finite
from quickstudy.tasks.texts.sentences import Encoder
from quickstudy.trained.positions import check_numbers, classes_of, labels_of
from quickstudy.trained.readers.known import reader_of
from quickstudy.trained.readers.reader import Reader
from quickstudy.trained.reading import as_answers, as_features, as_inputs, like_theta
from quickstudy.trained.support import SupportSet

SCOPE = "scope"  # in preprocess: the distance beyond which an input is of no class, see `quickstudy.scoped`


class Basis(NamedTuple):
    """What a task is learned with: the part of a `Trained` that its predictors keep."""

    learner: Learner
    theta: Theta
    preprocess: Mapping[str, Any]
    extractor: nn.Module | None = None
    text_encoder: Encoder | None = None

    @property
    def reader(self) -> Reader:
        """How raw inputs and answers are read."""
        return reader_of(self.preprocess)

    def inputs(self, x: Any, least: int = 1) -> Any:
        """Raw inputs as the model reads them. Raises DataError where it cannot, and for fewer than `least`."""
        return as_inputs(self.reader.encoded(self.preprocess, x, self.text_encoder), self.theta, least)


class Learned(NamedTuple):
    """What one task taught."""

    learner: Learner  # in the task's ways, and normalising as the task asks
    phi: Any
    classes: tuple[Any, ...] | None  # in the order of the output's columns; None for values
    axis: int = 1  # of the output, on which the classes stand


def learn(basis: Basis, shown: SupportSet, known: bool = False) -> Learned:
    """Adapt to a support set.

    `known`: the learner has read such examples before. The check that it can then be left out takes longer than
    learning. Raises DataError as `Trained.adapt`.
    """
    learner, names, support = one_task(basis, shown, known)
    with torch.no_grad():
        phi = learner.adapt(basis.theta, support)
    _check_finite(phi)
    return Learned(learner, phi, *classes_of(learner, basis.theta, phi, support, names))


def support_set(basis: Basis, x: Any, y: Any, transductive: bool) -> SupportSet:
    """Raw inputs and answers as a support set: inputs as the model reads them, answers as they are."""
    return SupportSet(basis.inputs(x, least=0 if basis.learner.from_nothing else 1), as_answers(y), transductive)


def one_task(basis: Basis, shown: SupportSet, known: bool = False) -> tuple[Learner, tuple[Any, ...] | None, Batch]:
    """The learner for this task, the names of its classes, and its support set as the learner reads it."""
    names, target = _answers(basis, basis.reader.targets(basis.preprocess, shown.y), trees.size(shown.x))
    of_examples = names if isinstance(target, Tensor) and target.dim() == 1 else None
    learner = _for_task(basis.learner, of_examples, shown.transductive)
    with torch.no_grad():
        support = Batch(as_features(shown.x, basis.extractor, basis.theta), target)
    # New classes may be more than the learner has outputs for; those with `ways` were asked above.
    if not known or not takes(learner, "ways"):
        one = Batch(*(trees.mapped(lambda t: t[None], part) for part in support))
        check_episodes(learner, basis.theta, Episode(one, one))
    return learner, names, support


def _answers(basis: Basis, y: Any, n: int) -> tuple[tuple[Any, ...] | None, Any]:
    """Class names in order and numbers [n, ...]; or None, and values [n, d], numbers of outputs or several targets."""
    if not isinstance(y, (np.ndarray, Tensor)):
        return None, _several(basis.theta, y, n)
    values = y.numpy() if isinstance(y, Tensor) else y
    if len(values) != n:
        raise DataError(f"x has {n} examples, but y has {len(values)}. Give one answer for each example.")
    loss, several = setting(basis.learner, "loss"), values[:1].size > 1  # a column [n, 1] is one class each
    if several and (labels := labels_of(values, loss)) is not None:
        return labels.names, labels.numbers.to(device_of(basis.theta))
    if values.dtype.kind == "b" and values.ndim > 1 and labelled(loss):
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and values.ndim == 1:
        raise DataError("y holds real numbers [n]. For classes give names or integers, for values [n, d].")
    if values.dtype.kind == "f" or (values.dtype.kind in "iu" and several):
        return None, like_theta(torch.as_tensor(values), basis.theta)
    device = device_of(basis.theta)
    names, numbers = np.unique(values, return_inverse=True)
    check_numbers(names, loss)
    if _same_everywhere(basis):
        return _known_classes(list(basis.preprocess["classes"]), names, numbers, device)
    if len(names) < 2:
        held = f"one class only ({names.tolist()[0]!r})" if len(names) else "no example, and with it no class"
        raise DataError(f"the support set has {held}. Give examples of two classes or more.")
    return tuple(names.tolist()), torch.as_tensor(numbers.reshape(-1)).to(device)


def _several(theta: Theta, y: Any, n: int) -> Any:
    """Several targets as the learner reads them. Raises DataError where one has another number of examples than x."""
    for name, target in trees.named(y):
        if target.dim() == 0 or len(target) != n:
            raise DataError(
                f"x has {n} examples, but y{name} has shape {tuple(target.shape)}. Give one answer for each."
            )
    return trees.mapped(lambda t: like_theta(t, theta), y)


def _same_everywhere(basis: Basis) -> bool:
    """Whether a class is the same output in every task: tasks share their classes, and the learner has one each."""
    return "classes" in basis.preprocess and (basis.learner.fixed_ways or not takes(basis.learner, "ways"))


def _known_classes(
    known: list[str], names: np.ndarray, numbers: np.ndarray, device: torch.device
) -> tuple[tuple[Any, ...], Tensor]:
    if unknown := [name for name in map(str, names.tolist()) if name not in known]:
        raise DataError(
            f"the support set has the class {unknown[0]!r}; training knew {', '.join(known)}."
            f"{suggest(unknown[0], known)}"
        )
    places = torch.tensor([known.index(str(name)) for name in names.tolist()])
    return tuple(known), places[numbers.reshape(-1)].to(device)


def _for_task(learner: Learner, names: tuple[Any, ...] | None, transductive: bool) -> Learner:
    if names is not None and setting(learner, "ways") is not None:
        learner = dataclasses.replace(learner, **with_ways(learner, len(names)))  # type: ignore[type-var]
    return learner if transductive else inductive(learner)


def _check_finite(phi: Any) -> None:
    leaves = {str(i): leaf for i, leaf in enumerate(pytree.tree_leaves(phi)) if isinstance(leaf, Tensor)}
    if first_non_finite(leaves) is not None:
        raise DataError(
            "adapting to this support set gives values that are not finite. Check the inputs for absurd numbers, "
            "or lower the inner learning rate."
        )
