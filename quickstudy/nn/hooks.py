"""What the layers of a module read and give, seen by hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from quickstudy.base import trees
from quickstudy.nn.model import Inputs, call, own_copy


def below_head(model: nn.Module, params: Mapping[str, Tensor], x: Inputs, head: str) -> Tensor | None:
    """The features that the linear layer `head` (a prefix, see `last_linear`) turns into the model's output.

    None where the output is not just that layer on those features: something follows it, or it is called repeatedly.
    """
    if f"{head}weight" not in params:
        return None
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = own_copy(model).now.get_submodule(head.rstrip(".")).register_forward_hook(hook)
    try:
        output = call(model, params, x)
    finally:
        handle.remove()
    return seen[0][0] if len(seen) == 1 and seen[0][1] is output else None


def input_of(layer: str, model: nn.Module, params: Mapping[str, Tensor], x: Inputs) -> Tensor:
    """The input of the named layer when the model is called on x: the features below it."""
    seen: list[Tensor] = []
    head = own_copy(model).now.get_submodule(layer)
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        call(model, params, x)
    finally:
        handle.remove()
    return seen[0]


def outputs_of(
    layers: Sequence[str], model: nn.Module, params: Mapping[str, Tensor], x: Inputs
) -> dict[str, list[Tensor]]:
    """The outputs of the named layers when the model is called on x [n, ...]: one tensor for each call of a layer.

    Layers come in the order in which the model first calls them, which need not be that in which it holds them. Left
    out are layers that are never called (because another layer uses their weights) and layers whose output does not
    have one row per example.
    """
    seen: dict[str, list[Tensor]] = {}
    modules = {name: own_copy(model).now.get_submodule(name) for name in layers}
    handles = [module.register_forward_hook(_keep(name, seen)) for name, module in modules.items()]
    # A layer that holds others ends after them, and is named where it begins.
    handles += [module.register_forward_pre_hook(_begin(name, seen)) for name, module in modules.items()]
    try:
        call(model, params, x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found for name, found in seen.items() if found and all(len(h) == trees.size(x) for h in found)}


def _begin(name: str, seen: dict[str, list[Tensor]]):
    def hook(layer: nn.Module, inputs: Any) -> None:
        seen.setdefault(name, [])

    return hook


def _keep(name: str, seen: dict[str, list[Tensor]]):
    def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output  # recurrent layers also return their states
        if isinstance(first, Tensor) and first.dim():
            seen.setdefault(name, []).append(first)

    return hook
