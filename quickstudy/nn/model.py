"""Any `nn.Module` as a pure function of its parameters, safe to call from several threads and under `vmap`.

torch's `functional_call` swaps tensors *on the module*, so two threads need two modules. Batch normalisation in
training mode writes to its buffers, so `vmap` refuses it. Fused scale and shift lose a second-order term under `vmap`.
This module solves all three by calling a private copy of the model.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from quickstudy.base import trees
from quickstudy.learner import Theta, training
from quickstudy.nn.conv import Conv2d
from quickstudy.nn.embedding import Embedding
from quickstudy.nn.norm import BatchNorm, GroupNorm, LayerNorm

Change = Callable[[Tensor], Tensor]
Inputs = Any  # a tensor; a tuple of tensors, the positional arguments; or a dict of tensors, the arguments by name
_copies = threading.local()
_noted = threading.local()


class _Copy(NamedTuple):
    """A private copy of a model, and where the original keeps the tensors that a caller may leave out."""

    module: nn.Module
    still: nn.Module  # the same with random layers switched off, for use outside a meta-loss
    mode: tuple[tuple[int, bool], ...]  # id of every layer, and whether it was in training mode
    recurrent: bool  # whether it holds torch's own recurrent layers
    tensors: list[tuple[str, weakref.ref[nn.Module], str]]  # dotted name, owner in the original, name there

    @property
    def now(self) -> nn.Module:
        """The module to call in this thread now; random layers are active inside a meta-loss only."""
        return self.module if training() else self.still


def prepare(model: nn.Module) -> None:
    """Make this thread's private copy now, so that a tracer such as torch.export does not trace the copying."""
    own_copy(model)


def call(model: nn.Module, params: Mapping[str, Tensor], x: Inputs, after: Mapping[str, Change] | None = None) -> Any:
    """model(x) with `params` in place of its own; names that are not given keep the model's present values.

    A dict x gives the arguments of `forward` by name, as language models want them, and a tuple gives them in order;
    anything else is its one argument. An output with a class of its own that has `logits`, as models of the
    transformers library give, stands for these logits. `after` maps names of layers to functions that change the
    layer's output. Layers that draw at random do so only inside a meta-loss, see `without_chance`.
    """
    own = own_copy(model)
    handles = [own.now.get_submodule(name).register_forward_hook(_changed(f)) for name, f in (after or {}).items()]
    args, named = arguments(x)
    try:
        # Use the mathematical attention kernel, because the fused ones have no second derivative.
        with _mathematical_attention, _without_cudnn(own, x):
            return _logits(_called(own.now, {**_left_out(own, params), **params}, args, named))
    finally:
        for handle in handles:
            handle.remove()


def _called(module: nn.Module, tensors: Theta, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    written = getattr(_noted, "names", None)
    if written is None:
        return functional_call(module, tensors, args, named)
    before = {name: (value, value._version) for name, value in tensors.items()}
    output = functional_call(module, tensors, args, named)  # puts what a layer has assigned back into `tensors`
    written.update(n for n, (value, version) in before.items() if tensors[n] is not value or value._version != version)
    return output


@contextmanager
def noting_writes() -> Iterator[set[str]]:
    """Inside the context, the names of tensors that models write to in this thread are added to the set."""
    _noted.names = set()
    try:
        yield _noted.names
    finally:
        _noted.names = None


def arguments(x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `forward` that the inputs x are: in order, and by name."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (x, {}) if isinstance(x, tuple) else ((x,), {})


def _logits(output: Any) -> Any:
    """The logits of an output that names them. A plain dict is what the model means to give, and stays whole."""
    if isinstance(output, Mapping) and type(output) is not dict and "logits" in output:
        return output["logits"]
    return output


def _changed(change: Change) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda layer, inputs, output: change(output)


def _left_out(own: _Copy, params: Mapping[str, Tensor]) -> Theta:
    """Tensors not in `params`, as the user's module holds them now. Buffers are copied: layers may write to them."""
    found: Theta = {}
    for name, owner_ref, key in own.tensors:
        if name not in params and (owner := owner_ref()) is not None:
            buffer = owner._buffers.get(key)
            found[name] = owner._parameters[key].detach() if buffer is None else buffer.clone()  # type: ignore[union-attr]
    return found


def _without_cudnn(own: _Copy, x: Inputs) -> AbstractContextManager:
    """Switch cuDNN off for models with recurrent layers: cuDNN's have no second derivative, torch's own do."""
    return torch.backends.cudnn.flags(enabled=False) if own.recurrent and trees.first(x).is_cuda else nullcontext()


class _MathematicalAttention:
    """One setting of torch for all threads: the first call to enter sets it, the last one to leave restores it."""

    def __init__(self) -> None:
        self.lock, self.inside, self.setting = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.setting = sdpa_kernel(SDPBackend.MATH)
                self.setting.__enter__()
            self.inside += 1

    def __exit__(self, *error: Any) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.setting is not None:
                self.setting.__exit__(None, None, None)


_mathematical_attention = _MathematicalAttention()


def without_chance(model: nn.Module) -> nn.Module:
    """The model itself, with all layers that draw at random switched off in place.

    These are dropout of every kind, and layers with an attribute `draws = True`: set it on a layer of your own that
    draws in training mode, so that it runs in eval mode outside a meta-loss. Other layers stay as they are, because
    eval() would change how they normalise.
    """
    for layer in model.modules():
        if isinstance(layer, _DropoutNd):
            layer.training, layer.p = False, 0.0  # attention of transformers reads p and draws by itself
        elif isinstance(layer, nn.RReLU) or getattr(layer, "draws", False):
            layer.training = False
        for name, rate in vars(layer).items():  # attention and recurrent layers keep a number, under various names
            if "dropout" in name and isinstance(rate, float):
                setattr(layer, name, 0.0)
    return model


def own_copy(model: nn.Module) -> _Copy:
    """This thread's private copy of the model, made again if a layer was replaced or switched to train() or eval()."""
    if not hasattr(_copies, "of"):
        _copies.of = weakref.WeakKeyDictionary()
    mode = tuple((id(module), module.training) for module in model.modules())
    known = _copies.of.get(model)
    if known is None or known.mode != mode:
        known = _copies.of[model] = _make_copy(model, mode)
    return known


def _make_copy(model: nn.Module, mode: tuple[tuple[int, bool], ...]) -> _Copy:
    module = with_safe_layers(copy.deepcopy(model))
    kept = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    tensors = [
        (name, weakref.ref(owner), key)
        for prefix, owner in model.named_modules()
        for key in [*owner._parameters, *owner._buffers]
        if (name := f"{prefix}.{key}" if prefix else key) in kept
    ]
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
    shared = {id(t): t for t in [*module.parameters(), *module.buffers()]}  # layers are copied, tensors are not
    return _Copy(module, without_chance(copy.deepcopy(module, shared)), mode, recurrent, tensors)


def with_safe_layers(model: nn.Module) -> nn.Module:
    """Replace torch's layers that write to buffers, differentiate wrongly under vmap, or have slow second derivatives.

    Running averages mean nothing across tasks, so a batch norm in training mode does not keep them. A batch norm that
    the user has put in eval() mode keeps using the averages it came with.
    """
    made: dict[nn.Module, nn.Module] = {}  # a layer that is used in two places stays a single layer
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = made.setdefault(child, safe_layer(child))
    return safe_layer(model)


def safe_layer(layer: nn.Module) -> nn.Module:
    """Our layer that takes the place of one of torch's, with its parameters; any other layer as it is."""
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        return BatchNorm.like(layer)
    if type(layer) is nn.Conv2d:  # not a subclass, which may compute something else
        return Conv2d.like(layer)
    if type(layer) is nn.Embedding:
        return Embedding.like(layer)
    if type(layer) is nn.GroupNorm:
        return GroupNorm.like(layer)
    return LayerNorm.like(layer) if type(layer) is nn.LayerNorm else layer
