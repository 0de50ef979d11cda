"""Any `nn.Module` as a pure function of its parameters, safe to call from several threads and under `vmap`.

torch's `functional_call` swaps tensors *on the module*, so two threads need two modules. Batch normalisation in
training mode writes to its buffers, so `vmap` refuses it. Fused scale and shift lose a second-order term under `vmap`.
This module solves all three by calling a private copy of the model.
"""

from __future__ import annotations

import copy
import fnmatch
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from quickstudy.errors import ConfigError
from quickstudy.learner import Theta, training
from quickstudy.nn.conv import Conv2d
from quickstudy.nn.norm import BatchNorm, GroupNorm, LayerNorm

Change = Callable[[Tensor], Tensor]
Inputs = Tensor | tuple[Tensor, ...]
_copies = threading.local()


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


def parameters(model: nn.Module) -> Theta:
    """The trainable parameters as theta: name -> detached copy. Tied parameters appear once."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def constants(model: nn.Module) -> Theta:
    """What the model uses but never learns, detached but not copied: buffers, and parameters that the user froze."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | {name: b.detach() for name, b in model.named_buffers()}


def prepare(model: nn.Module) -> None:
    """Make this thread's private copy now, so that a tracer such as torch.export does not trace the copying."""
    _own_copy(model)


def call(
    model: nn.Module, params: Mapping[str, Tensor], x: Inputs, after: Mapping[str, Change] | None = None
) -> Tensor:
    """model(x) with `params` in place of its own; names that are not given keep the model's present values.

    x is a tensor, or a tuple of tensors for a model that takes several. `after` maps names of layers to functions that
    change the layer's output. Layers that draw at random do so only inside a meta-loss, see `without_chance`.
    """
    own = _own_copy(model)
    handles = [own.now.get_submodule(name).register_forward_hook(_changed(f)) for name, f in (after or {}).items()]
    try:
        # Use the mathematical attention kernel, because the fused ones have no second derivative.
        inputs = x if isinstance(x, tuple) else (x,)
        with _mathematical_attention, _without_cudnn(own, inputs[0]):
            return functional_call(own.now, {**_left_out(own, params), **params}, inputs)
    finally:
        for handle in handles:
            handle.remove()


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


def _without_cudnn(own: _Copy, x: Tensor) -> AbstractContextManager:
    """Switch cuDNN off for models with recurrent layers: cuDNN's have no second derivative, torch's own do."""
    return torch.backends.cudnn.flags(enabled=False) if own.recurrent and x.is_cuda else nullcontext()


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


def statistics(
    model: nn.Module, params: Mapping[str, Tensor], support: Inputs, after: Mapping[str, Change] | None = None
) -> Theta:
    """Means and variances of the support set, for layers that normalise queries with them; empty if there are none.

    Merge the result into the task's parameters: `call(model, params | statistics, x)` then normalises every query in
    the same way, whatever else is in the batch. `after` as in `call`.
    """
    return moments(model, params, support, after, policies=("support",))


def moments(
    model: nn.Module,
    params: Mapping[str, Tensor],
    x: Inputs,
    after: Mapping[str, Change] | None = None,
    policies: Sequence[str] = ("batch", "support"),
) -> Theta:
    """Mean and variance [channels] of the input of each batch-normalising layer of these policies, in a call on x.

    The names are those of the buffers, such as "block1.norm.mean" and "block1.norm.variance".
    """
    seen: Theta = {}
    handles = [
        layer.register_forward_pre_hook(_record(name, seen)) for name, layer in _batch_norms(model, policies).items()
    ]
    if not handles:
        return seen
    try:
        call(model, params, x, after)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def no_moments(model: nn.Module) -> Theta:
    """Zeros with the names and shapes that `moments` returns. Raises ConfigError for a layer without a scale."""
    found: Theta = {}
    for name, layer in _batch_norms(model, ("batch", "support")).items():
        if layer.weight is None:
            raise ConfigError(f"the layer {name!r} has no scale that tells its channels: use affine=True.")
        prefix = f"{name}." if name else ""
        found |= {f"{prefix}{kind}": torch.zeros_like(layer.weight.detach()) for kind in ("mean", "variance")}
    return found


def _batch_norms(model: nn.Module, policies: Sequence[str]) -> dict[str, BatchNorm]:
    """The private copy's batch-normalising layers of these policies. In the copy, ours replace torch's own."""
    layers = _own_copy(model).now.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, BatchNorm) and layer.policy in policies}


def _record(name: str, seen: Theta):
    def hook(layer: BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        prefix = f"{name}." if name else ""
        seen[f"{prefix}mean"], seen[f"{prefix}variance"] = layer.moments(inputs[0])

    return hook


def last_linear(model: nn.Module) -> str:
    """The head: the prefix of the parameter names of the last linear layer, such as "head.".

    Raises ConfigError where the model has no nn.Linear layer.
    """
    linears = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise ConfigError(
            "the model has no nn.Linear layer to serve as its head. Add one at the end, for example qs.nn.conv4("
            "classes=...)."
        )
    return f"{linears[-1]}." if linears[-1] else ""


def part(tensors: Mapping[str, Tensor], prefix: str) -> Theta:
    """The entries whose names begin with a prefix such as "rate.", with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def beside(params: Theta, prefix: str, extra: Mapping[str, Tensor]) -> Theta:
    """The parameters, plus further meta-parameters under a prefix of their own: the inverse of `part`.

    Raises ConfigError when the model has parameters under that prefix.
    """
    if taken := next((name for name in params if name.startswith(prefix)), None):
        raise ConfigError(
            f"the model's parameter {taken!r} begins with {prefix!r}, under which this learner keeps meta-parameters "
            "of its own. Rename that layer."
        )
    return params | {prefix + name: value for name, value in extra.items()}


def own(model: nn.Module, theta: Mapping[str, Tensor]) -> Theta:
    """The model's trainable parameters out of a theta that holds more. Those missing from theta are left out."""
    return {name: theta[name] for name, p in model.named_parameters() if p.requires_grad and name in theta}


def matching(model: nn.Module, patterns: str) -> list[str]:
    """Trainable parameters whose dotted names match one of the comma-separated patterns, such as "head.*,*.norm.*".

    `*` stands for any characters (fnmatch). Raises ConfigError for a pattern that matches nothing.
    """
    names = list(parameters(model))
    found = {pattern: fnmatch.filter(names, pattern) for pattern in patterns.replace(" ", "").split(",") if pattern}
    for pattern, hits in found.items():
        if not hits:
            raise ConfigError(
                f"no trainable parameter of the model matches {pattern!r}. Its parameters are {', '.join(names)}."
            )
    return [name for name in names if any(name in hits for hits in found.values())]


def below_head(model: nn.Module, params: Mapping[str, Tensor], x: Tensor, head: str) -> Tensor | None:
    """The features that the linear layer `head` (a prefix, see `last_linear`) turns into the model's output.

    None where the output is not just that layer on those features: something follows it, or it is called repeatedly.
    """
    if f"{head}weight" not in params:
        return None
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = _own_copy(model).now.get_submodule(head.rstrip(".")).register_forward_hook(hook)
    try:
        output = call(model, params, x)
    finally:
        handle.remove()
    return seen[0][0] if len(seen) == 1 and seen[0][1] is output else None


def input_of(layer: str, model: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The input of the named layer when the model is called on x: the features below it."""
    seen: list[Tensor] = []
    head = _own_copy(model).now.get_submodule(layer)
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        call(model, params, x)
    finally:
        handle.remove()
    return seen[0]


def outputs_of(
    layers: Sequence[str], model: nn.Module, params: Mapping[str, Tensor], x: Tensor
) -> dict[str, list[Tensor]]:
    """The outputs of the named layers when the model is called on x [n, ...]: one tensor for each call of a layer.

    Left out are layers that are never called (because another layer uses their weights) and layers whose output does
    not have one row per example.
    """
    seen: dict[str, list[Tensor]] = {}
    handles = [_own_copy(model).now.get_submodule(name).register_forward_hook(_keep(name, seen)) for name in layers]
    try:
        call(model, params, x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found for name in layers if (found := seen.get(name)) and all(len(h) == len(x) for h in found)}


def _keep(name: str, seen: dict[str, list[Tensor]]):
    def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output  # recurrent layers also return their states
        if isinstance(first, Tensor) and first.dim():
            seen.setdefault(name, []).append(first)

    return hook


def normalisation(model: nn.Module) -> str:
    """How the model normalises: the first of 'batch', 'support', 'running', 'layer' that a layer uses, else 'none'."""
    found = {_kind(layer) for layer in model.modules()}
    return next((kind for kind in ("batch", "support", "running", "layer") if kind in found), "none")


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, BatchNorm):
        return layer.policy
    if isinstance(layer, _BatchNorm):
        return "batch" if layer.training or layer.running_mean is None else "running"
    return "layer" if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)) else "none"


def with_normalisation(model: nn.Module, policy: str) -> nn.Module:
    """A copy whose batch-normalising layers follow `policy`: 'batch' or 'support'. Parameter names stay the same.

    Raises ConfigError for any other policy.
    """
    if policy not in ("batch", "support"):
        raise ConfigError(f"normalisation can be switched between 'batch' and 'support', got {policy!r}.")
    changed = _with_safe_layers(copy.deepcopy(model))
    for layer in changed.modules():
        if isinstance(layer, BatchNorm):
            layer.policy = policy
    if hasattr(model, "architecture"):
        changed.architecture = {**model.architecture, "norm": policy}  # type: ignore[dict-item,assignment]
    return changed


def without_chance(model: nn.Module) -> nn.Module:
    """The model itself, with all layers that draw at random switched off in place.

    These are dropout of every kind, and layers with an attribute `draws = True`: set it on a layer of your own that
    draws in training mode, so that it runs in eval mode outside a meta-loss. Other layers stay as they are, because
    eval() would change how they normalise.
    """
    for layer in model.modules():
        if isinstance(layer, (_DropoutNd, nn.RReLU)) or getattr(layer, "draws", False):
            layer.training = False
        elif isinstance(getattr(layer, "dropout", None), float):  # attention and recurrent layers
            layer.dropout = 0.0  # type: ignore[assignment]
    return model


def _own_copy(model: nn.Module) -> _Copy:
    """This thread's private copy of the model, made again if a layer was replaced or switched to train() or eval()."""
    if not hasattr(_copies, "of"):
        _copies.of = weakref.WeakKeyDictionary()
    mode = tuple((id(module), module.training) for module in model.modules())
    known = _copies.of.get(model)
    if known is None or known.mode != mode:
        known = _copies.of[model] = _make_copy(model, mode)
    return known


def _make_copy(model: nn.Module, mode: tuple[tuple[int, bool], ...]) -> _Copy:
    module = _with_safe_layers(copy.deepcopy(model))
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


def _with_safe_layers(model: nn.Module) -> nn.Module:
    """Replace torch's layers that write to buffers, differentiate wrongly under vmap, or have slow second derivatives.

    Running averages mean nothing across tasks, so a batch norm in training mode does not keep them. A batch norm that
    the user has put in eval() mode keeps using the averages it came with.
    """
    made: dict[nn.Module, nn.Module] = {}  # a layer that is used in two places stays a single layer
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = made.setdefault(child, _safe(child))
    return _safe(model)


def _safe(layer: nn.Module) -> nn.Module:
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        return BatchNorm.like(layer)
    if type(layer) is nn.Conv2d:  # not a subclass, which may compute something else
        return Conv2d.like(layer)
    if type(layer) is nn.GroupNorm:
        return GroupNorm.like(layer)
    return LayerNorm.like(layer) if type(layer) is nn.LayerNorm else layer
