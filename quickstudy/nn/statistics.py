"""Batch normalisation as a declared choice: which statistics a network normalises with, and how to measure them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quickstudy.errors import ConfigError
from quickstudy.learner import Theta
from quickstudy.nn.model import Change, Inputs, call, own_copy, with_safe_layers
from quickstudy.nn.norm import BatchNorm


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
    layers = own_copy(model).now.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, BatchNorm) and layer.policy in policies}


def _record(name: str, seen: Theta):
    def hook(layer: BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        prefix = f"{name}." if name else ""
        seen[f"{prefix}mean"], seen[f"{prefix}variance"] = layer.moments(inputs[0])

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
    changed = with_safe_layers(copy.deepcopy(model))
    for layer in changed.modules():
        if isinstance(layer, BatchNorm):
            layer.policy = policy
    if hasattr(model, "architecture"):
        changed.architecture = {**model.architecture, "norm": policy}  # type: ignore[dict-item,assignment]
    return changed
