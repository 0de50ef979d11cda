"""A learner adapted to one task: a module that answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.base import files, trees
from quickstudy.engine.fitting import UNREADABLE
from quickstudy.engine.labels import labelled
from quickstudy.errors import ConfigError, DataError, QuickstudyError, first_line
from quickstudy.learner import Theta, demand, networks, setting
from quickstudy.nn.model import prepare
from quickstudy.tasks.texts.sentences import Encoder
from quickstudy.trained.adapting import SCOPE, Basis, Learned, learn
from quickstudy.trained.learner_file import extractor_header, extractor_tensors, learner_header, learner_tensors
from quickstudy.trained.positions import named
from quickstudy.trained.reading import as_answers, as_features, in_units
from quickstudy.trained.support import SupportSet, pack_support

Answer = TypeVar("Answer")


class Predictor(nn.Module):
    """A learner adapted to one task: an `nn.Module` that answers and can be exported with `torch.export`.

    `classes` are the class names in the order of the output's columns; None for regression. They stand on `axis` of the
    output, which is 1 but for a loss that has them last. `support` is the support
    set, from which `update` and `forget` learn the task again; None if it was loaded from a file saved without it.
    """

    extractor: nn.Module | None  # as in `Trained`
    support: SupportSet | None
    text_encoder: Encoder | None  # as in `Trained`

    def __init__(self, basis: Basis, learned: Learned, support: SupportSet | None = None) -> None:
        super().__init__()
        self.support, theta = support, basis.theta
        self.learner, phi, self.classes, self.axis = learned
        self.preprocess = dict(basis.preprocess)
        # Not submodules: train() must not reach them.
        self.__dict__ |= {"extractor": basis.extractor, "text_encoder": basis.text_encoder}
        self.names = tuple(theta)
        leaves, self.structure = pytree.tree_flatten(phi)
        self.sizes = (len(theta), len(leaves))
        for i, value in enumerate([*theta.values(), *leaves]):
            # Contiguous, as after loading from a file: memory layout can change the last bit of a matrix product.
            self.register_buffer(f"value{i}", value.detach().contiguous())
        for model in [*networks(self.learner).values(), *([] if self.extractor is None else [self.extractor])]:
            prepare(model)

    def _values(self) -> tuple[Theta, Any]:
        values = [getattr(self, f"value{i}") for i in range(sum(self.sizes))]
        theta = dict(zip(self.names, values[: self.sizes[0]], strict=True))
        return theta, pytree.tree_unflatten(values[self.sizes[0] :], self.structure)

    def _read(self, x: Any) -> tuple[Theta, Any, Any]:
        """theta, phi and the inputs as the learner reads them: what its methods are called with."""
        theta, phi = self._values()
        return theta, phi, as_features(x, self.extractor, theta)

    @property
    def basis(self) -> Basis:
        """What the task was learned with."""
        learner, theta = self.learner, self._values()[0]
        return Basis(learner, theta, self.preprocess, self.extractor, self.text_encoder)

    def forward(self, x: Any) -> Any:
        """Logits [m, classes, ...] or values [m, d] for m inputs as the learner reads them."""
        output = self.learner.predict(*self._read(x))
        return output if self.classes is None else output.narrow(self.axis, 0, len(self.classes))

    @torch.no_grad()
    def predict(self, x: Any, *, reject: float | bool = False) -> Any:
        """Class labels as they were given to `adapt` (a list), or values [m, d] for regression in the unit of y.

        After labels of positions, such as tags [n, T], an answer is a list of T labels, after masks a list of lists.
        After labels that are each there or not, for a binary cross entropy, it is the probability of each, [m, d].
        x is as for `adapt`, m inputs. After several targets, the answer is what the learner's `predict` gives. `reject`
        is a distance: an input farther than that from every class gets None instead of a label. True takes the distance
        that `quickstudy.scoped` chose on validation tasks.

        Raises DataError for inputs that it cannot read. With `reject` raises ConfigError where the distance is
        negative, where none was chosen, and where the learner measures no distance.
        """
        near = None if reject is False else (self.distance(x) <= self._reach(reject)).tolist()
        output = self._answer(x)
        if self.classes is None:
            several = labelled(setting(self.learner, "loss"))
            return in_units(self.preprocess, output) if several is None else several.target(output)
        labels = named(output.argmax(self.axis).tolist(), self.classes)
        return labels if near is None else [name if n else None for name, n in zip(labels, near, strict=True)]

    @torch.no_grad()
    def distance(self, x: Any) -> Tensor:
        """The distance [m] of each input to the nearest class, 0 or more, as the learner's own `distance` measures it.

        It shows whether an input resembles anything in the support set. Probabilities only compare the classes: they
        sum to 1 even for an input of no class. Raises ConfigError for learners that measure no distance, DataError for
        inputs that it cannot read.
        """
        demand(self.learner, "distance")
        x = self.basis.inputs(x)
        return self._asked(lambda: self.learner.distance(*self._read(x)), x)

    def _reach(self, reject: float) -> float:
        if reject is True:
            if SCOPE not in self.preprocess:
                raise ConfigError(
                    "no distance was chosen beyond which an input is of no class. Give one, predict(x, reject=0.5), or "
                    "choose it on validation tasks before adapting: trained = qs.scoped(trained, tasks), or on the "
                    "command line: quickstudy adapt RUN SUPPORT --reject."
                )
            return self.preprocess[SCOPE]
        if not reject >= 0:
            raise ConfigError(f"reject is a distance, 0 or more, or True; got {reject}.")
        return reject

    @torch.no_grad()
    def predict_interval(self, x: Any, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper ends [m, d], in the unit of y, of intervals that hold each value with probability `level`.

        They are the central intervals of the learner's Gaussian: mean -+ z std, where z is the standard normal quantile
        at (1 + level) / 2. `interval_coverage` measures their actual coverage. Raises ConfigError for learners without
        a distribution and for a level outside (0, 1), DataError for inputs that it cannot read.
        """
        if not 0 < level < 1:
            raise ConfigError(f"level is a probability between 0 and 1, got {level}. For 90 % give 0.9.")
        demand(self.learner, "distribution")
        x = self.basis.inputs(x)
        mean, std = self._asked(lambda: self.learner.distribution(*self._read(x)), x)
        reach = float(ndtri(0.5 + level / 2)) * std
        return in_units(self.preprocess, mean - reach), in_units(self.preprocess, mean + reach)

    @torch.no_grad()
    def predict_proba(self, x: Any) -> Tensor:
        """Class probabilities [m, classes], columns in the order of `classes`; of positions [m, classes, ...].

        Raises ConfigError for regression, DataError for inputs that it cannot read.
        """
        if self.classes is None:
            raise ConfigError("predict_proba is for classification; this predictor gives real values: use predict.")
        return self._answer(x).softmax(self.axis)

    @torch.no_grad()
    def logits(self, x: Any) -> Tensor:
        """What `predict_proba` is the softmax of: [m, classes, ...]. Raises as it does."""
        if self.classes is None:
            raise ConfigError("logits are for classification; this predictor gives real values: use predict.")
        return self._answer(x)

    def update(self, x: Any, y: Any) -> Predictor:
        """Learn from more examples of the task, of known or new classes; in place, and returned. See `updated`."""
        return self._become(self.updated(x, y))

    def forget(self, examples: Sequence[int] = (), *, classes: Sequence[Any] = ()) -> Predictor:
        """Learn the task again without some of its examples; in place, and returned. See `without`."""
        return self._become(self.without(examples, classes=classes))

    def updated(self, x: Any, y: Any) -> Predictor:
        """A new predictor that has learned from more examples of the task too, of known or new classes.

        x and y as `Trained.adapt` takes them. The task is learned again from all examples, so the answers are exactly
        those of `adapt` with all of them at once, whatever the learner. This predictor does not change. Raises
        DataError for examples that are not like those so far, ConfigError where no support set was kept.
        """
        return self._again(self._kept().joined(self.basis.inputs(x), as_answers(y)))

    def without(self, examples: Sequence[int] = (), *, classes: Sequence[Any] = ()) -> Predictor:
        """A new predictor that never saw some examples (their numbers in the order shown) or whole classes.

        Its answers are exactly those of `adapt` without them. This predictor does not change. Raises DataError where
        too few examples would be left, ConfigError where no support set was kept.
        """
        shown, n = self._kept(), trees.size(self._kept().x)
        if unknown := [i for i in examples if not 0 <= i < n]:
            raise DataError(f"there is no example {unknown[0]}: {n} were shown, numbered from 0.")
        if classes and isinstance(shown.y, np.ndarray) and shown.y.ndim > 1:
            raise DataError("labels stand at the positions of examples here: forget whole examples, by their numbers.")
        if unknown := [name for name in classes if name not in shown.names]:
            raise DataError(f"no example of the class {unknown[0]!r} was shown; the classes are {self.classes}.")
        gone = set(examples) | {i for i, name in enumerate(shown.names) if name in list(classes)}
        left = [i for i in range(n) if i not in gone]
        if not left and not self.learner.from_nothing:
            raise DataError(f"none of the {n} examples would be left to learn from. Keep at least one.")
        return self._again(shown.rows(left))

    def _kept(self) -> SupportSet:
        if self.support is None:
            raise ConfigError(
                "this predictor was saved without its support set, from which it would learn again: adapt anew, or "
                "save with support=True."
            )
        return self.support

    def _again(self, shown: SupportSet) -> Predictor:
        return Predictor(self.basis, learn(self.basis, shown, known=True), shown)

    def _become(self, other: Predictor) -> Predictor:
        self.__dict__.update(other.__dict__)
        return self

    def _answer(self, x: Any) -> Any:
        x = self.basis.inputs(x)
        return self._asked(lambda: self(x), x)

    def _asked(self, question: Callable[[], Answer], x: Any) -> Answer:
        try:
            return question()
        except QuickstudyError:
            raise
        except UNREADABLE as error:
            raise DataError(
                f"this predictor cannot read inputs of shape {trees.shapes(x)}: {first_line(error)}. Give them as a "
                "batch [n, ...], with the channels and the size of the support set."
            ) from error

    def save(self, path: str | os.PathLike, *, support: bool = True) -> None:
        """Write a `.qs` file for `quickstudy.load`. Raises RunError where it cannot be written.

        The file holds the support set, so that the loaded predictor can go on learning. With `support=False` it can
        only answer. Use that for examples that must not be passed on, but note that what was learned from them may
        still reveal something about them.
        """
        theta, phi = self._values()
        tensors = {f"theta.{name}": value for name, value in theta.items()}
        kept = self.support if support else None
        header = {
            "classes": None if self.classes is None else list(self.classes),
            "axis": self.axis,
            "preprocess": self.preprocess,
            "names": list(theta),
            "phi": files.pack(phi, tensors, "phi"),
            "support": None if kept is None else pack_support(kept, tensors, type(self.learner).__module__),
        }
        header |= learner_header(self.learner) | extractor_header(self.extractor)
        tensors |= learner_tensors(self.learner) | extractor_tensors(self.extractor)
        files.write_tensors(path, "predictor", tensors, header)
