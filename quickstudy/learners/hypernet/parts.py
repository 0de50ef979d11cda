"""What this family shares: small networks kept in theta, sets and their members, attention, Gaussians.

All are plain operations on tensors, safe under `vmap` and double backward. A support set is `sets` sets of examples:
one for regression, one per class for classification. `members` [sets, n] says with 1 and 0 which example counts where.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.errors import ConfigError
from quickstudy.learner import Theta
from quickstudy.model import call, own

# --- networks in theta -----------------------------------------------------------------------------------------------


def perceptron(name: str, sizes: Sequence[int], generator: torch.Generator, *, level: bool = True) -> Theta:
    """Fully connected layers name.0.weight, name.0.bias, name.1.weight, ..., drawn as torch draws its linear layers.

    `level` False leaves the last bias out: a number that all classes share changes no odds.
    """
    found: Theta = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            drawn = 2 * torch.rand(shape, generator=generator, dtype=torch.get_default_dtype()) - 1
            found[f"{name}.{i}.{kind}"] = drawn / math.sqrt(inputs)
    if not level:
        del found[f"{name}.{len(sizes) - 2}.bias"]
    return found


def applied(parts: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The layers of `perceptron` on x [..., inputs], with ReLU between them."""
    layers = itertools.takewhile(lambda i: f"{name}.{i}.weight" in parts, itertools.count())
    for i in layers:
        x = F.linear(x.relu() if i else x, parts[f"{name}.{i}.weight"], parts.get(f"{name}.{i}.bias"))
    return x


def features(encoder: nn.Module, width: int, theta: Theta, x: Tensor, known: Theta | None = None) -> Tensor:
    """The encoder's features [n, width]. `known` are the support set's statistics."""
    return checked_features(call(encoder, own(encoder, theta) | (known or {}), x), width)


def checked_features(found: Tensor, width: int) -> Tensor:
    """The features, or a ConfigError where they are not [n, width]."""
    if found.dim() != 2 or found.shape[1] != width:
        raise ConfigError(
            f"width={width} promises features [n, {width}], but the encoder gives {list(found.shape)}. Set width to "
            "what it gives, and end it with nn.Flatten() if that has more dimensions."
        )
    return found


def joined(*tensors: Tensor) -> Tensor:
    """Concatenated along the last dimension, broadcast over the others."""
    shape = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    return torch.cat([t.expand(*shape, t.shape[-1]) for t in tensors], -1)


# --- sets ------------------------------------------------------------------------------------------------------------


def members(y: Tensor, ways: int | None, like: Tensor) -> Tensor:
    """Which example belongs to which set, as numbers of the kind of `like`.

    [ways, n] by class numbers y [n]; [1, n] of ones for values y [n, d].
    """
    if ways is None:
        return like.new_ones(1, len(y))
    return (torch.arange(ways, device=y.device)[:, None] == y).to(like.dtype)


def some(found: Tensor, fewest: int) -> Tensor:
    """The first k members of each set, k drawn from `fewest` to as many as it has; all where `fewest` leaves no choice.

    Masked, not cut, so that shapes stay the same. The draw is one for all sets, from torch's generator.
    """
    if fewest >= found.shape[1]:
        return found
    count = found.sum(1, keepdim=True)
    least = count.clamp(max=fewest)
    k = least + (torch.rand((), dtype=found.dtype, device=found.device) * (count - least + 1)).floor()
    return found * (found.cumsum(1) <= k)


def set_means(values: Tensor, found: Tensor) -> Tensor:
    """Mean of values [n, r] over the members of each set: [sets, r]; zero for an empty set."""
    return found @ values / found.sum(1, keepdim=True).clamp(min=1)


def attention(name: str, keys: int, values: int, generator: torch.Generator) -> Theta:
    """The matrices of `attend`. No biases: that of the keys would change nothing."""
    shapes = {"query": (values, keys), "key": (values, keys), "value": (values, values), "out": (values, values)}
    return {
        f"{name}.{kind}": (2 * torch.rand(shape, generator=generator, dtype=torch.get_default_dtype()) - 1)
        / math.sqrt(shape[1])
        for kind, shape in shapes.items()
    }


def attend(
    parts: Mapping[str, Tensor], name: str, queries: Tensor, keys: Tensor, values: Tensor, found: Tensor, heads: int
) -> Tensor:
    """Multi-head attention from queries [m, k] to the members of each set, keys [n, k], values [n, r]: [sets, m, r].

    Zero where a set is empty. Matrices for queries or keys that are zero weigh all members alike.
    """
    q, k = (F.linear(t, parts[f"{name}.{kind}"]) for t, kind in ((queries, "query"), (keys, "key")))
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, F.linear(values, parts[f"{name}.value"])))
    likeness = torch.einsum("mhc,nhc->hmn", q, k) / math.sqrt(q.shape[-1])
    inside = found[:, None, None]  # [sets, 1, 1, n]
    # A large finite number: a set without members would turn infinities into NaN.
    weights = likeness.masked_fill(inside == 0, -1e9).softmax(-1) * inside
    return F.linear(torch.einsum("shmn,nhc->smhc", weights, v).flatten(-2), parts[f"{name}.out"])


# --- Gaussians -------------------------------------------------------------------------------------------------------


class Gaussian(NamedTuple):
    """Independent normal numbers."""

    mean: Tensor
    std: Tensor


def surprise(p: Gaussian, y: Tensor) -> Tensor:
    """-log p(y) of each number, in nats."""
    return 0.5 * ((y - p.mean) / p.std) ** 2 + p.std.log() + 0.5 * math.log(2 * math.pi)


def divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), summed over all numbers."""
    ratio, way = q.std / p.std, (q.mean - p.mean) / p.std
    return (0.5 * (ratio**2 + way**2 - 1) - ratio.log()).sum()


def moments(p: Gaussian) -> Gaussian:
    """Mean and standard deviation of the equal mixture of p's along its first dimension."""
    mean = p.mean.mean(0)
    return Gaussian(mean, (p.std**2 + (p.mean - mean) ** 2).mean(0).sqrt())
