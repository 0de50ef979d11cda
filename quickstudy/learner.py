"""The contract. Every method of the library is a value with four pure methods:

    init()                    -> theta      what is learned across tasks
    adapt(theta, support)     -> phi        what is learned from one task's support set
    predict(theta, phi, x)    -> output     the adapted model's output
    meta_loss(theta, episode) -> scalar     one episode's loss; its gradient in theta is the meta-gradient

Six more are optional, with defaults that refuse. `offers(learner, "embed")` says whether a learner has one:

    embed(theta, support)        -> [d]          the task as one vector: similar tasks have nearby vectors
    distribution(theta, phi, x)  -> (mean, std)  regression: two tensors [m, d]; `predict` returns the first
    distance(theta, phi, x)      -> [m]          classification: how far each input is from the nearest class
    stream(theta, batch)         -> [n, ...]     row t is predict(theta, adapt(theta, batch[:t]), x_t), in one pass
    begin(theta, phi, n)         -> memory       learners that act: the memory of n copies of the policy
    act(theta, phi, memory, observation) -> (distribution, memory)

`theta` is a flat `dict[str, Tensor]` with dotted keys; `phi` is any pytree of tensors. Nothing is written after
construction and no input is modified, so the same learner can be mapped over tasks by `vmap`, by threads or by a loop.
Layers that draw at random (dropout) do so only inside a meta-loss, so that predictions are deterministic.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.errors import ConfigError

Theta = dict[str, Tensor]


class Batch(NamedTuple):
    """Inputs x [n, ...] and their targets (answers) y: class numbers [n] (int64) or values [n, d].

    Where each position of an input has a class, such as the words of a text or the pixels of a picture, class numbers
    are [n, ...], and outputs are [n, classes, ...] as torch's cross entropy takes them.
    Both may be dicts, tuples or lists of tensors with n rows each: token numbers and their mask, several targets.
    """

    x: Any
    y: Any


class Episode(NamedTuple):
    """One sampled task. A batch of episodes is an Episode with a leading task axis on every tensor.

    Where tasks differ in size, a batch is a list of episodes instead, see `quickstudy.episodes`.
    """

    support: Batch
    query: Batch


class Described(abc.ABC):
    """A setting that is a value of its own, beside numbers, words, functions and networks: an update rule, an adjoint.

    Such a setting is given by its name where a table has it, or as the value.
    """

    @abc.abstractmethod
    def describe(self) -> Any:
        """What a file or a run's config keeps of it: its name, or a dict with "text", how it reads."""


class Outer(NamedTuple):
    """How the outer loop updates theta."""

    optimizer: str = "adam"  # adam, sgd or rmsprop
    lr: float = 1e-3
    schedule: str = "constant"  # constant; cosine or linear: down to 0 over all iterations


# --- fields that follow from the tasks -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Structural:
    """Marks a field that follows from the tasks, so that the command line makes it. All other fields are its options.

    A field of one of the types below is marked: `model: Network`. `experiments.recipes` makes one of each role.
    """

    role: str


Value = TypeVar("Value")
Network = Annotated[nn.Module, Structural("network")]  # maps x [n, ...] to logits [n, ways] or values [n, d]
Encoder = Annotated[nn.Module, Structural("encoder")]  # maps x [n, ...] to features [n, width]
MapEncoder = Annotated[nn.Module, Structural("map encoder")]  # maps images to feature maps
Relation = Annotated[nn.Module, Structural("relation")]  # maps features of classes and of examples to scores
Loss = Annotated[Callable[[Any, Any], Tensor], Structural("loss")]  # (output, y) -> scalar
Ways = Annotated[int, Structural("ways")]  # classes in a task
Width = Annotated[int, Structural("width")]  # of the encoder's features
Outputs = Annotated[int, Structural("outputs")]  # numbers in one answer (regression)
Length = Annotated[int, Structural("length")]  # of the longest sequence of examples in training
NotAnOption = Annotated[Value, Structural("not an option")]  # for Python alone: elsewhere it keeps its default


def structural_fields(cls: type[Learner]) -> dict[str, str]:
    """The role of each field that follows from the tasks: name -> role."""
    hints = get_type_hints(cls, include_extras=True)
    marks = {field.name: _marks(hints[field.name]) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return {name: found[0].role for name, found in marks.items() if found}


def _marks(hint: Any) -> list[Structural]:
    """The marks of a type, or of the parts of a union such as `Ways | None`."""
    if get_origin(hint) is Annotated:
        return [mark for mark in hint.__metadata__ if isinstance(mark, Structural)]
    return [mark for part in get_args(hint) for mark in _marks(part)]


class Learner(abc.ABC):
    """Base class of all learners, which are frozen dataclasses of hyper-parameters with the four methods below.

    It is abstract, and learners are final: no learner inherits from another.
    """

    episodic: ClassVar[bool] = True  # trains on episodes; False: on the pooled examples of all training tasks
    approximate: ClassVar[bool] = False  # True: the meta-gradient is not the derivative of the meta-loss, by design
    ordered: ClassVar[bool] = False  # True: the support set is read as a sequence, whose order matters
    fixed_ways: ClassVar[bool] = False  # True: theta has entries for each class; no task may have more than `ways`
    handed_in: ClassVar[tuple[str, ...]] = ()  # prefixes of theta's entries whose gradient is not that derivative
    from_nothing: ClassVar[bool] = False  # True: also predicts from an empty support set
    transductive: ClassVar[bool] = False  # True: the answer to a query depends on the other queries of a call

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "meta_loss" in vars(cls):
            cls.meta_loss = _in_training(cls.meta_loss)

    @abc.abstractmethod
    def init(self) -> Theta:
        """Initial meta-parameters: name -> tensor."""

    @abc.abstractmethod
    def adapt(self, theta: Theta, support: Batch) -> Any:
        """Task parameters phi from one task's support set: x [n, ...], y [n] or [n, d]."""

    @abc.abstractmethod
    def predict(self, theta: Theta, phi: Any, x: Tensor) -> Tensor:
        """Output for x [m, ...]: logits [m, ways] or values [m, d]."""

    @abc.abstractmethod
    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        """Loss of one episode, a scalar. Its gradient in theta is the meta-gradient."""

    def outer(self) -> Outer:
        """The learner's default settings of the outer loop."""
        return Outer()

    def at(self, progress: float) -> Learner:
        """The learner to train with at `progress` in [0, 1) of a run: itself, unless its loss changes in training."""
        return self

    def finish(self, theta: Theta, examples: Iterable[Batch]) -> Theta:
        """theta as it is used once training is over: entries that are statistics of the training examples are set here.

        `examples` are blocks of them, in which each example is once where the tasks are drawn from a finite pool; for a
        learner that trains on episodes, support sets of training tasks. theta is not modified. By default there is no
        such entry.
        """
        return theta

    def inductive(self) -> Learner | None:
        """This learner in a form that answers each query by itself; None where it has no such form.

        A learner that is not `transductive` returns itself. How a network normalises is no part of this: see
        `engine.fitting.inductive`.
        """
        return None if self.transductive else self

    def exact(self) -> Learner | None:
        """This learner with the derivative of its meta-loss as its meta-gradient; None where it has no such setting.

        A learner whose meta-gradient already is that derivative returns itself.
        """
        if self.approximate:
            return None
        return dataclasses.replace(self, first_order=False) if setting(self, "first_order") is True else self  # type: ignore[type-var]

    # What follows is optional: `offers(learner, "embed")` tells whether a learner has it.

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The task of a support set as a vector [d]; the order of the examples does not matter unless `ordered`."""
        raise _lacking(self, "embed")

    def distribution(self, theta: Theta, phi: Any, x: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [m, d] of the answers; `predict` gives the mean."""
        raise _lacking(self, "distribution")

    def distance(self, theta: Theta, phi: Any, x: Any) -> Tensor:
        """How far each input is from the nearest class of the task, 0 or more: [m].

        It is measured where the learner compares, so numbers of different learners are not alike.
        """
        raise _lacking(self, "distance")

    def stream(self, theta: Theta, batch: Batch) -> Tensor:
        """Row t is predict(theta, adapt(theta, batch[:t]), x_t), all rows in one pass: [n, ...]."""
        raise _lacking(self, "stream")

    def begin(self, theta: Theta, phi: Any, n: int) -> Any:
        """The memory with which n copies of the adapted policy start to act: any pytree of tensors."""
        raise _lacking(self, "begin")

    def act(self, theta: Theta, phi: Any, memory: Any, observation: Any) -> tuple[Any, Any]:
        """The distribution over actions for observations [n, ...], and the memory after them."""
        raise _lacking(self, "act")


# What is missing where a learner does not offer an optional method, and who has it.
OPTIONAL = {
    "embed": "makes no vector of a task. ProtoNet and other learners that compare, remember or condition have one",
    "distribution": "answers with values alone, without their uncertainty: use `predict`. Learners with a distribution "
    "are cnp and anp",
    "distance": "knows boundaries between classes and not how far an input is from all of them. Learners that compare "
    "with the examples shown have it: protonet, matchingnet, attentiveprotonet, simpleshot, nearestcentroid",
    "stream": "does not read the support set one example after the other. MetaRNN, MANN and SNAIL do",
    "begin": "does not act. Learners of policies do",
    "act": "does not act. Learners of policies do",
}


def offers(learner: Learner, method: str) -> bool:
    """Whether the learner has this optional method of the contract, a name out of OPTIONAL."""
    return getattr(type(learner), method) is not getattr(Learner, method)


def demand(learner: Learner, method: str) -> None:
    """Raise ConfigError, before any work, where the learner does not offer an optional method."""
    if not offers(learner, method):
        raise _lacking(learner, method)


def _lacking(learner: Learner, method: str) -> ConfigError:
    return ConfigError(f"{type(learner).__name__} {OPTIONAL[method]}. It has no method `{method}`.")


def takes(learner: Learner, field: str) -> bool:
    """Whether the learner has a hyper-parameter of this name, such as `steps` or `ways`."""
    return field in {f.name for f in dataclasses.fields(learner)}  # type: ignore[arg-type]


def setting(learner: Learner, field: str, default: Any = None) -> Any:
    """The value of a hyper-parameter; `default` for a learner that has none of this name."""
    return getattr(learner, field) if takes(learner, field) else default


_thread = threading.local()


def training() -> bool:
    """Whether this thread is inside a meta-loss. Layers draw at random (dropout, DropBlock) only there."""
    return getattr(_thread, "training", False)


@contextmanager
def set_training(on: bool) -> Iterator[None]:
    """Inside the context, `training()` returns `on` in this thread."""
    before, _thread.training = training(), on
    try:
        yield
    finally:
        _thread.training = before


def _in_training(meta_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same meta-loss, but `training()` is true in its thread while it runs."""

    @functools.wraps(meta_loss)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        with set_training(True):
            return meta_loss(*args, **kwargs)

    return run


def with_gradient(value: Tensor, theta: Theta, gradient: Mapping[str, Tensor]) -> Tensor:
    """A scalar whose value is `value` and whose gradient in theta is `gradient`.

    A learner that does not unroll (Reptile, implicit MAML, evolution strategies) returns its own gradient in this way,
    so that the training loop treats it like any other learner. The term sum_k <theta_k - stop(theta_k), g_k> is
    exactly zero, and its derivative in theta_k is g_k.
    """
    result = value.detach()
    for name, g in gradient.items():
        result = result + ((theta[name] - theta[name].detach()) * g.detach()).sum()
    return result


LOSSES = {loss.__name__: loss for loss in (F.cross_entropy, F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss)}


def describe_learner(learner: Learner) -> dict[str, Any]:
    """The class name and the fields of a learner as plain values."""
    fields = {f.name: plain_value(getattr(learner, f.name)) for f in dataclasses.fields(learner)}  # type: ignore[arg-type]
    return {"name": type(learner).__name__, "fields": fields}


def plain_value(value: Any) -> Any:
    if isinstance(value, Described):
        return value.describe()
    if isinstance(value, nn.Module):
        return {"network": getattr(value, "architecture", None), "text": str(value)}
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        return {"function": name if LOSSES.get(name) is value else None, "text": name}
    return value


def networks(learner: Learner) -> dict[str, nn.Module]:
    """The learner's fields that are networks: name -> module."""
    fields = {f.name: getattr(learner, f.name) for f in dataclasses.fields(learner)}  # type: ignore[arg-type]
    return {name: value for name, value in fields.items() if isinstance(value, nn.Module)}
