"""The multilayer perceptron."""

from __future__ import annotations

import itertools
from collections import OrderedDict

from torch import nn

from quickstudy.errors import ConfigError, suggest

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    inputs: int, outputs: int | None = None, *, hidden: tuple[int, ...] = (40, 40), activation: str = "relu"
) -> nn.Module:
    """Fully connected layers with an activation between them; inputs are flattened.

    x [n, ...] with `inputs` numbers each -> [n, outputs], or the last hidden layer when `outputs` is None. The hidden
    layers are by default those of MAML's sinusoid network (Finn 2017), 1-40-40-1. Weights are drawn from torch's global
    generator. Raises ConfigError for an unknown activation.

    >>> import torch
    >>> mlp(1, 1)(torch.zeros(3, 1)).shape
    torch.Size([3, 1])
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {activation!r}.{suggest(activation, ACTIVATIONS)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (a, b) in enumerate(itertools.pairwise((inputs, *hidden))):
        layers[f"layer{i + 1}"] = nn.Linear(a, b)
        layers[f"act{i + 1}"] = ACTIVATIONS[activation]()
    if outputs is not None:
        layers["head"] = nn.Linear(hidden[-1] if hidden else inputs, outputs)
    model = nn.Sequential(layers)
    model.architecture = {  # type: ignore[assignment]  # plain values: how to build the model again
        "name": "mlp",
        "inputs": inputs,
        "outputs": outputs,
        "hidden": tuple(hidden),
        "activation": activation,
    }
    return model
