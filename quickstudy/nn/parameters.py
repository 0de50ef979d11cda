"""The parameters of a module as a flat dict, and parts of it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from quickstudy.errors import ConfigError
from quickstudy.learner import Theta


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first name whose tensor holds NaN or infinity; None if all are finite."""
    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)


def parameters(model: nn.Module) -> Theta:
    """The trainable parameters as theta: name -> detached copy. Tied parameters appear once."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def constants(model: nn.Module) -> Theta:
    """What the model uses but never learns, detached but not copied: buffers, and parameters that the user froze."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | {name: b.detach() for name, b in model.named_buffers()}


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
    return those_that_match(list(parameters(model)), patterns, "trainable parameter")


def those_that_match(names: Sequence[str], patterns: str, what: str) -> list[str]:
    """The names that match one of the comma-separated patterns, in their own order. `what` is a noun for one of them.

    Raises ConfigError for a pattern that matches nothing.
    """
    found = {pattern: fnmatch.filter(names, pattern) for pattern in patterns.replace(" ", "").split(",") if pattern}
    if lost := next((pattern for pattern, hits in found.items() if not hits), None):
        raise ConfigError(f"no {what} matches {lost!r}; there are {', '.join(names)}.")
    return [name for name in names if any(name in hits for hits in found.values())]
