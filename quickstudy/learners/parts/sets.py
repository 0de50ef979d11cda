"""Shared by this family of learners: small networks kept in theta, sets and their members, attention, Gaussians.

All are plain operations on tensors, safe under `vmap` and double backward. A support set is `sets` sets of examples:
one for regression, one per class for classification. `members` [sets, n] is 1 where an example is in a set, else 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.learner import Theta
from quickstudy.learners.parts.encoding import one_hot

# --- networks in theta -----------------------------------------------------------------------------------------------


def perceptron(name: str, sizes: Sequence[int], generator: torch.Generator, *, level: bool = True) -> Theta:
    """Fully connected layers name.0.weight, name.0.bias, name.1.weight, ..., initialised like torch's linear layers.

    `sizes` are the widths of the input and of every layer. `level` False leaves out the last bias, because a number
    added to the logits of all classes does not change their probabilities.
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
    """The output of the layers of `perceptron` for x [..., inputs], with ReLU between them."""
    layers = itertools.takewhile(lambda i: f"{name}.{i}.weight" in parts, itertools.count())
    for i in layers:
        x = F.linear(x.relu() if i else x, parts[f"{name}.{i}.weight"], parts.get(f"{name}.{i}.bias"))
    return x


def joined(*tensors: Tensor) -> Tensor:
    """The tensors, concatenated along the last dimension and broadcast over the others."""
    shape = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    return torch.cat([t.expand(*shape, t.shape[-1]) for t in tensors], -1)


# --- sets ------------------------------------------------------------------------------------------------------------


def members(y: Tensor, ways: int | None, like: Tensor) -> Tensor:
    """1 where an example belongs to a set, else 0, with the dtype of `like`.

    [ways, n] for class numbers y [n]; [1, n], all ones, for values y [n, d].
    """
    if ways is None:
        return like.new_ones(1, len(y))
    return one_hot(y, ways, like).T


def some(found: Tensor, fewest: int) -> Tensor:
    """The first k members of each set in `found` [sets, n], with k random from `fewest` to the size of the set.

    All members if `fewest` is n or more. Others are masked instead of removed, so that shapes stay the same. One random
    number from torch's generator serves all sets.
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
    """Initial matrices of `attend`, for keys and values of these lengths. A bias of the keys would have no effect."""
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

    Zero where a set is empty. If the matrix of the queries or of the keys is zero, all members have equal weight.
    """
    q, k = (F.linear(t, parts[f"{name}.{kind}"]) for t, kind in ((queries, "query"), (keys, "key")))
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, F.linear(values, parts[f"{name}.value"])))
    likeness = torch.einsum("mhc,nhc->hmn", q, k) / math.sqrt(q.shape[-1])
    inside = found[:, None, None]  # [sets, 1, 1, n]
    # A large finite number, because infinities would give NaN for a set without members.
    weights = likeness.masked_fill(inside == 0, -1e9).softmax(-1) * inside
    return F.linear(torch.einsum("shmn,nhc->smhc", weights, v).flatten(-2), parts[f"{name}.out"])
