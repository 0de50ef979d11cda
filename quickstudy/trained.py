"""Trained learners, the predictors that they become when adapted to one task, and `load` for the files of both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy import files
from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.evaluation import check_episodes, device_of, for_test, with_ways
from quickstudy.inner import first_non_finite
from quickstudy.inputs import answers, encoded, in_units
from quickstudy.learner import Batch, Episode, Learner, Theta, distance_of, embed_of
from quickstudy.learner_files import (
    build_extractor,
    build_learner,
    check_theta,
    extractor_header,
    extractor_tensors,
    learner_header,
    learner_tensors,
)
from quickstudy.model import part, prepare
from quickstudy.protocol import is_transductive, networks
from quickstudy.tasks.classes import scaled
from quickstudy.tasks.features import extract
from quickstudy.tasks.sentences import Encoder, opened

Answer = TypeVar("Answer")
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


class SupportSet(NamedTuple):
    """The support set that a predictor learned from."""

    x: Tensor  # [n, ...], rows and texts already encoded as numbers
    y: np.ndarray  # [n] names or numbers, or [n, d] values, in the target's unit
    transductive: bool  # as passed to `adapt`


class Predictor(nn.Module):
    """A learner adapted to one task: an `nn.Module` that answers and can be exported with `torch.export`.

    `classes` are the class names in the order of the output's columns; None for regression. `support` is the support
    set, from which `update` and `forget` learn the task again; None if it was loaded from a file saved without it.
    """

    extractor: nn.Module | None  # as in `Trained`
    support: SupportSet | None
    text_encoder: Encoder | None  # as in `Trained`

    def __init__(
        self,
        learner: Learner,
        theta: Theta,
        phi: Any,
        classes: Sequence[Any] | None = None,
        preprocess: Mapping[str, Any] | None = None,
        extractor: nn.Module | None = None,
        shown: SupportSet | None = None,
        text_encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.support = shown
        self.learner, self.classes, self.preprocess = learner, classes, dict(preprocess or {})
        # Set through __dict__ so that they are no submodules: train() must not reach them.
        self.__dict__ |= {"extractor": extractor, "text_encoder": text_encoder}
        self.names = tuple(theta)
        leaves, self.structure = pytree.tree_flatten(phi)
        self.sizes = (len(theta), len(leaves))
        for i, value in enumerate([*theta.values(), *leaves]):
            # Contiguous, as after loading from a file: memory layout can change the last bit of a matrix product.
            self.register_buffer(f"value{i}", value.detach().contiguous())
        for model in [*networks(learner).values(), *([extractor] if extractor is not None else [])]:
            prepare(model)

    def _values(self) -> tuple[Theta, Any]:
        values = [getattr(self, f"value{i}") for i in range(sum(self.sizes))]
        theta = dict(zip(self.names, values[: self.sizes[0]], strict=True))
        return theta, pytree.tree_unflatten(values[self.sizes[0] :], self.structure)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [m, classes] or values [m, d] for x [m, ...]."""
        theta, phi = self._values()
        output = self.learner.predict(theta, phi, as_features(x, self.extractor))
        return output if self.classes is None else output[:, : len(self.classes)]

    @torch.no_grad()
    def predict(self, x: Any, *, reject: float | bool = False) -> list[Any] | Tensor:
        """Class labels as they were given to `adapt` (a list), or values [m, d] for regression in the unit of y.

        x is as for `adapt`, m inputs. `reject` is a distance: an input farther than that from every class gets None
        instead of a label. True takes the distance that `quickstudy.scoped` chose on validation tasks.

        Raises DataError for inputs that it cannot read. With `reject` raises ConfigError where the distance is
        negative, where none was chosen, and where the learner measures no distance.
        """
        near = None if reject is False else (self.distance(x) <= self._reach(reject)).tolist()
        output = self._answer(x)
        if self.classes is None:
            return in_units(self.preprocess, output)
        labels = [self.classes[i] for i in output.argmax(1).tolist()]
        return labels if near is None else [name if n else None for name, n in zip(labels, near, strict=True)]

    @torch.no_grad()
    def distance(self, x: Any) -> Tensor:
        """The distance [m] of each input to the nearest class, 0 or more, as the learner's own `distance` measures it.

        It shows whether an input resembles anything in the support set. Probabilities only compare the classes: they
        sum to 1 even for an input of no class. Raises ConfigError for learners that measure no distance, DataError for
        inputs that it cannot read.
        """
        distance = distance_of(self.learner)
        x = self._inputs(x)
        return self._asked(lambda: distance(*self._values(), as_features(x, self.extractor)), x)

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
        distribution = distribution_of(self.learner)
        x = self._inputs(x)
        mean, std = self._asked(lambda: distribution(*self._values(), as_features(x, self.extractor)), x)
        reach = float(ndtri(0.5 + level / 2)) * std
        return in_units(self.preprocess, mean - reach), in_units(self.preprocess, mean + reach)

    @torch.no_grad()
    def predict_proba(self, x: Any) -> Tensor:
        """Class probabilities [m, classes], columns in the order of `classes`.

        Raises ConfigError for regression, DataError for inputs that it cannot read.
        """
        if self.classes is None:
            raise ConfigError("predict_proba is for classification; this predictor gives real values: use predict.")
        return self._answer(x).softmax(1)

    def update(self, x: Any, y: Any) -> Predictor:
        """Learn from more examples of the task, of known or new classes. Changes this predictor and returns it.

        x and y are as for `Trained.adapt`. The task is learned again from all examples, so for every learner the
        answers are exactly those of `adapt` with all examples at once.

        Raises ConfigError where the predictor was saved without its support set, DataError for examples unlike the
        earlier ones, and the errors of `adapt`.
        """
        shown = self._kept()
        more = self._inputs(x)
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if more.shape[1:] != shown.x.shape[1:] or y.shape[1:] != shown.y.shape[1:]:
            raise DataError(
                f"the examples so far are x {list(shown.x.shape)}, y {list(shown.y.shape)}; these are x "
                f"{list(more.shape)}, y {list(y.shape)}. Give them as batches like those."
            )
        if len(shown.y) and (shown.y.dtype.kind in "fiu") != (y.dtype.kind in "fiu"):
            raise DataError(
                f"the answers so far are like {shown.y.tolist()[0]!r}, these like {y.tolist()[0]!r}. Give all alike."
            )
        return self._again(torch.cat([shown.x, more]), np.concatenate([shown.y, y]))

    def forget(self, examples: Sequence[int] = (), *, classes: Sequence[Any] = ()) -> Predictor:
        """Learn the task again without some examples or whole classes. Changes this predictor and returns it.

        `examples` are numbers from 0, in the order in which the examples were given. The answers are exactly those of
        a predictor that never saw them. Raises ConfigError where the predictor was saved without its support set,
        DataError for unknown examples or classes and where too few examples would be left.
        """
        shown = self._kept()
        if unknown := [i for i in examples if not 0 <= i < len(shown.y)]:
            raise DataError(f"there is no example {unknown[0]}: {len(shown.y)} were shown, numbered from 0.")
        if unknown := [name for name in classes if name not in shown.y.tolist()]:
            raise DataError(f"no example of the class {unknown[0]!r} was shown; the classes are {self.classes}.")
        kept = [i for i, name in enumerate(shown.y.tolist()) if i not in set(examples) and name not in list(classes)]
        return self._again(shown.x[kept], shown.y[kept])

    def _kept(self) -> SupportSet:
        if self.support is None:
            raise ConfigError(
                "this predictor was saved without its support set, from which it would learn again: adapt anew, or "
                "save with support=True."
            )
        return self.support

    def _again(self, x: Tensor, y: np.ndarray) -> Predictor:
        parts = {"extractor": self.extractor, "text_encoder": self.text_encoder}
        trained = Trained(self.learner, self._values()[0], {}, self.preprocess, **parts)
        self.__dict__.update(trained._adapted(SupportSet(x, y, self._kept().transductive), known=True).__dict__)
        return self

    def _inputs(self, x: Any) -> Tensor:
        return as_inputs(encoded(self.preprocess, x, self.text_encoder), self._values()[0])

    def _answer(self, x: Any) -> Tensor:
        x = self._inputs(x)
        return self._asked(lambda: self(x), x)

    def _asked(self, question: Callable[[], Answer], x: Tensor) -> Answer:
        try:
            return question()
        except (RuntimeError, IndexError) as error:
            raise DataError(
                f"this predictor cannot read inputs of shape {tuple(x.shape)}: {str(error).splitlines()[0]}. Give them "
                "as a batch [n, ...], with the channels and the size of the support set."
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
        if kept is not None:
            tensors["support.x"] = kept.x
        header = {
            "classes": None if self.classes is None else list(self.classes),
            "preprocess": self.preprocess,
            "names": list(theta),
            "phi": files.pack(phi, tensors, "phi"),
            "support": None if kept is None else {"y": kept.y.tolist(), "transductive": kept.transductive},
        }
        header |= learner_header(self.learner) | extractor_header(self.extractor)
        tensors |= learner_tensors(self.learner) | extractor_tensors(self.extractor)
        files.write_tensors(path, "predictor", tensors, header)


def load(path: str | os.PathLike, *, text_encoder: Any = None, **fields: Any) -> Trained | Predictor:
    """Read a `.qs` file (of `Trained.save` or `Predictor.save`), or the learner of a run folder.

    `fields` are the learner's fields that a file cannot hold, such as a model of your own: load(path, model=MyNet()).
    If it was trained on features (`qs.tasks.features`) of a module of your own, pass that as `extractor`. Weights come
    from the file. `text_encoder` is the function that turned texts into vectors (`qs.tasks.from_text`), if it was your
    own; without it the loaded object takes only vectors.

    Raises FileFormatError for a file that is not what it claims to be and for a missing field. Nothing is ever
    unpickled.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "learner.qs")
    kind = files.kind_of(path)
    tensors, header = files.read_tensors(path, "predictor" if kind == "predictor" else "trained")
    learner = build_learner(path, header, tensors, fields)
    # safetensors sorts the names. Restore theta's order, because optimizer state is matched to theta by position.
    theta = part(tensors, "theta.")
    theta = {name: theta[name] for name in header.get("names", theta)}
    check_theta(path, learner, theta)
    extractor = build_extractor(path, header, tensors, fields)
    asked = None if text_encoder is None else opened(text_encoder)
    if kind == "predictor":
        phi = files.unpack(header["phi"], tensors, type(learner).__module__)
        classes = None if header["classes"] is None else tuple(header["classes"])
        told = header.get("support")
        shown = SupportSet(tensors["support.x"], np.array(told["y"]), told["transductive"]) if told else None
        return Predictor(learner, theta, phi, classes, header["preprocess"], extractor, shown, asked)
    best = (theta, *files.unpack(header["best"], tensors)) if "best" in header else ()
    return Trained(learner, theta, header["tasks"], header["preprocess"], best, extractor, asked)


def distribution_of(learner: Learner) -> Callable[[Theta, Any, Tensor], tuple[Tensor, Tensor]]:
    """The learner's `distribution`: (theta, phi, x [m, ...]) -> mean and standard deviation, [m, d] each.

    Raises ConfigError where it has none.
    """
    found = getattr(learner, "distribution", None)
    if found is None:
        raise ConfigError(
            f"{type(learner).__name__} answers with values alone, without their uncertainty: use `predict`. Learners "
            "with a distribution are cnp and anp."
        )
    return found


def as_inputs(x: Any, theta: Theta, least: int = 1) -> Tensor:
    """Tensors, arrays or lists as the model's input [n, ...]: images scaled, floats as precise as theta, on its device.

    Raises DataError for anything but numbers, for fewer than `least` examples, and for NaN or infinity.
    """
    try:
        x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"x must be a tensor or an array of numbers [n, ...], got {type(x).__name__}: {error}."
        ) from error
    if x.dim() < 1 or len(x) < least:
        raise DataError(f"x holds no example: its shape is {tuple(x.shape)}. Give at least one, as [n, ...].")
    x = scaled(x)
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise DataError("x holds NaN or infinity. Remove or fill the missing values first.")
    floats = [value for value in theta.values() if value.is_floating_point()]
    return x.to(device_of(theta), floats[0].dtype if floats and x.is_floating_point() else x.dtype)


def as_features(x: Tensor, extractor: nn.Module | None) -> Tensor:
    """The learner's inputs for raw inputs x [n, ...]: the extractor's features, or x itself where there is none.

    Features are on x's device, and in its precision if x holds floats.
    """
    if extractor is None:
        return x
    z = extract(extractor, x)
    return z.to(x.device, x.dtype) if x.is_floating_point() else z.to(x.device)
