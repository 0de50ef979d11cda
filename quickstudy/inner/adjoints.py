"""The adjoints: how a gradient of an inner loss, or a whole descent, is differentiated again. Each is a value.

An outer derivative pulls a vector v back through g = grad_phi L(phi, xi). This needs (H v, d<g, v>/d xi), where H is
the Hessian of L in phi. `unroll` keeps the graph of g until then. `remat` keeps only phi and xi, and computes g again
in the backward pass: it is exact, takes the time of one more gradient, and needs the memory of one step whatever the
number of steps. `mixed` keeps as little as `remat` and computes

    (H v, d<g, v>/d xi) = d/d epsilon  grad_{phi, xi} L(phi + epsilon v, xi)   at epsilon = 0

in one forward-over-reverse pass. `first_order` lets no derivative through. `implicit` differentiates none of the steps
but the end point, see `descend`.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import Function
from torch.utils import _pytree as pytree

from quickstudy.base.seeds import as_drawn, drawn_since, random_states
from quickstudy.base.tracing import forward_mode
from quickstudy.errors import ConfigError, first_line, suggest
from quickstudy.learner import Described, Learner, Theta, set_training, setting, takes, training

LossAt = Callable[..., Tensor]  # (phi, *given) -> the loss, a scalar
Given = Sequence[Any]  # what a loss depends on besides phi: tensors, or dicts and tuples of them


@dataclass(frozen=True)
class Adjoint(Described):
    """How an inner loop is differentiated by the outer one."""

    name: str
    exact: bool  # whether the outer derivative is that of the inner loop as it was taken
    along_the_path: bool = True  # whether each step is differentiated, or the end point alone
    through: bool = True  # whether a derivative passes through a step's gradient
    recompute: type[Function] | None = (
        None  # computes that gradient again in the backward pass; None: its graph is kept
    )

    def describe(self) -> Any:
        known = ADJOINTS.get(self.name) == self
        return self.name if known else {"adjoint": None, "text": f"the adjoint {self.name!r}"}


# --- a gradient on the tape ------------------------------------------------------------------------------------------


def on_tape(function: LossAt, point: Theta, given: Given, record: bool) -> tuple[Tensor, Theta]:
    """function(point, *given) and its gradient in point by plain autograd; `record` keeps the graph of both."""
    with torch.enable_grad():
        leaves = {name: v if v.requires_grad else v.detach().requires_grad_() for name, v in point.items()}
        value = function(leaves, *given)
        gradient = pull(value, leaves, record=record)
    return value if record else value.detach(), gradient


def pull(value: Tensor, leaves: Theta, weights: Tensor | None = None, record: bool = False) -> Theta:
    """The gradient of the value, or of the sum of its entries. `weights`, if given, weight the entries of the sum."""
    if not (leaves and value.requires_grad):
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    # Sum here if there are no weights: with weights torch imports its symbolic algebra, which takes half a second, and
    # 40 MB for the rest of the process.
    total = value.sum() if weights is None and value.dim() else value
    gradients = torch.autograd.grad(
        total, list(leaves.values()), weights, create_graph=record, materialize_grads=True, allow_unused=True
    )
    return dict(zip(leaves, gradients, strict=True))


def recomputed(kind: type[Function], function: LossAt, point: Theta, given: Given) -> tuple[Tensor, Theta]:
    """function(point, *given) and its gradient in point, of which only the inputs are kept."""
    flat, spec = pytree.tree_flatten((point, tuple(given)))
    value, *gradients = kind.apply(function, spec, *flat)  # type: ignore[misc]
    return value, dict(zip(point, gradients, strict=True))


# --- adjoints that recompute -----------------------------------------------------------------------------------------


class _Remat(Function):
    """Keep only the inputs; the backward pass computes the gradient again, this time with its graph."""

    @staticmethod
    def forward(ctx: Any, function: LossAt, spec: Any, *flat: Tensor) -> Any:
        return _forward(ctx, function, spec, flat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *pulled: Tensor) -> Any:
        inputs, (point, given) = _watched_again(ctx)
        with as_drawn(ctx.random), set_training(ctx.training), torch.enable_grad():
            value, gradient = on_tape(ctx.function, point, given, record=True)
        pairs = [(out, v) for out, v in zip((value, *gradient.values()), pulled, strict=True) if out.requires_grad]
        wanted = [t for t in inputs if t.requires_grad]
        if not pairs:
            return None, None, *(None for _ in inputs)
        outputs, vectors = zip(*pairs, strict=True)
        products = iter(torch.autograd.grad(outputs, wanted, vectors, allow_unused=True))
        return None, None, *(next(products) if t.requires_grad else None for t in inputs)


class _Mixed(Function):
    """Keep only the inputs; the backward pass takes a directional derivative of the gradient: forward over reverse."""

    @staticmethod
    def forward(ctx: Any, function: LossAt, spec: Any, *flat: Tensor) -> Any:
        return _forward(ctx, function, spec, flat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weight: Tensor, *direction: Tensor) -> Any:
        inputs, _ = _watched_again(ctx)
        # Pass zeros and contiguous copies: some derivatives in torch fail where a tangent is missing, or where entries
        # of a tangent share memory.
        still = [torch.zeros_like(t) if t.is_floating_point() else None for t in inputs[len(direction) :]]
        along = [*(v.contiguous() for v in direction), *still]
        with _one_forward_pass(), as_drawn(ctx.random), set_training(ctx.training), torch.enable_grad():
            dual = [
                t if v is None else forward_ad.make_dual(t.contiguous(), v) for t, v in zip(inputs, along, strict=True)
            ]
            point, given = pytree.tree_unflatten(dual, ctx.spec)
            value = ctx.function(point, *given)
            wanted = {str(i): t for i, t in enumerate(dual) if t.requires_grad}
            # Pull back a 1 with tangent `weight`: the same pass then adds the weighted derivative of the value itself.
            gradients = pull(value, wanted, forward_ad.make_dual(torch.ones_like(value), weight.contiguous()))
            moved = {i: forward_ad.unpack_dual(gradient).tangent for i, gradient in gradients.items()}
        return None, None, *(moved.get(str(i)) for i in range(len(inputs)))


def _forward(ctx: Any, function: LossAt, spec: Any, flat: Sequence[Tensor]) -> Any:
    ctx.save_for_backward(*flat)
    ctx.function, ctx.spec, ctx.training = function, spec, training()
    before = random_states()
    point, given = pytree.tree_unflatten([t.detach() for t in flat], spec)
    with torch.enable_grad():
        leaves = {name: value.requires_grad_() for name, value in point.items()}
        value = function(leaves, *given)
        _check_all_given(value, leaves)
        gradient = pull(value, leaves)
    ctx.random = before if drawn_since(before) else None
    return value.detach(), *gradient.values()


def _watched_again(ctx: Any) -> tuple[list[Tensor], Any]:
    """The saved inputs, detached: as a flat list, and as (point, given). Those that need a derivative require grad."""
    size = len(pytree.tree_unflatten(list(range(ctx.spec.num_leaves)), ctx.spec)[0])
    needed = [i < size or wanted for i, wanted in enumerate(ctx.needs_input_grad[2:])]
    inputs = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
    return inputs, pytree.tree_unflatten(inputs, ctx.spec)


def _check_all_given(value: Tensor, leaves: Theta) -> None:
    """Raise ConfigError where the value depends on other tensors: autograd would silently miss their derivative."""
    known = {id(leaf) for leaf in leaves.values()}
    for leaf in _leaves_of(value):
        if id(leaf) not in known:
            raise ConfigError(
                f"the inner loss depends on a tensor of shape {list(leaf.shape)} which asks for a derivative and is "
                'neither phi nor `given`. Hand it to the inner loop as `given`, or use adjoint="unroll".'
            )


def _leaves_of(value: Tensor) -> Iterator[Tensor]:
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        todo += [parent for parent, _ in node.next_functions]


_turn = threading.Lock()


@contextmanager
def _one_forward_pass() -> Iterator[None]:
    """Forward-mode differentiation: torch has a single level of it for all threads, so they take turns."""
    with _turn, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch warns about its own code
        forward_mode.on = True
        try:
            with forward_ad.dual_level():
                yield
        except NotImplementedError as error:
            raise ConfigError(
                f'adjoint="mixed" differentiates forward, for which torch has no rule here: {first_line(error)}. Use '
                'adjoint="remat", which needs none.'
            ) from error
        finally:
            forward_mode.on = False


# --- by name ---------------------------------------------------------------------------------------------------------

UNROLL = Adjoint("unroll", exact=True)
REMAT = Adjoint("remat", exact=True, recompute=_Remat)
MIXED = Adjoint("mixed", exact=True, recompute=_Mixed)
FIRST_ORDER = Adjoint("first_order", exact=False, through=False)
IMPLICIT = Adjoint("implicit", exact=False, along_the_path=False, through=False)

ADJOINTS = {one.name: one for one in (UNROLL, REMAT, MIXED, FIRST_ORDER, IMPLICIT)}
ALONG_THE_PATH = tuple(name for name, one in ADJOINTS.items() if one.along_the_path)  # these differentiate every step


def find_adjoint(adjoint: str | Adjoint, able: Collection[str] = ADJOINTS) -> Adjoint:
    """The adjoint of this name; an Adjoint as it is. Raises ConfigError unless its name is one of `able`."""
    if isinstance(adjoint, str) and adjoint in able:
        return ADJOINTS[adjoint]
    if isinstance(adjoint, Adjoint) and (adjoint.name in able or adjoint.along_the_path):
        return adjoint
    name = adjoint.name if isinstance(adjoint, Adjoint) else adjoint
    raise ConfigError(f"adjoint must be one of {', '.join(able)}; got {name!r}.{suggest(str(name), able)}")


def adjoint_of(learner: Learner) -> Adjoint:
    """The adjoint of a learner with the fields `first_order` and `adjoint`; `first_order` takes precedence."""
    return FIRST_ORDER if setting(learner, "first_order") else find_adjoint(setting(learner, "adjoint"))


def with_exact_adjoint(learner: Learner) -> Learner:
    """For `Learner.exact`: the learner with an adjoint that leaves nothing out; itself where it has one."""
    if adjoint_of(learner).exact:
        return learner
    order = {"first_order": False} if takes(learner, "first_order") else {}
    return dataclasses.replace(learner, adjoint=UNROLL.name, **order)  # type: ignore[type-var]
