"""Recurrent cells in plain operations: unlike torch's, safe under `vmap` and differentiable any number of times.

With u = W_i x + b_i, the contribution of the input, and v = W_h h + b_h, the contribution of the state:

    elman   h' = tanh(u + v)
    gru     r = sigmoid(u_r + v_r),  z = sigmoid(u_z + v_z),  n = tanh(u_n + r * v_n),  h' = (1 - z) * n + z * h
    lstm    i, f, o = sigmoid(u + v),  g = tanh(u_g + v_g),  c' = f * c + i * g,  h' = o * tanh(c')

Weights and the order of their rows are those of `torch.nn.RNNCell`, `GRUCell` and `LSTMCell`. The caller computes u, so
that one matrix product serves a whole sequence.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from quickstudy.errors import ConfigError, suggest

State = tuple[Tensor, ...]  # (h,), or (h, c) for the lstm, each [..., units]
BLOCKS = {"elman": 1, "gru": 3, "lstm": 4}  # how many gates or proposals a cell computes, each of `units` numbers


def check_cell(cell: str) -> None:
    """Raise ConfigError for a name that is not in BLOCKS."""
    if cell not in BLOCKS:
        raise ConfigError(f"cell must be one of {', '.join(BLOCKS)}; got {cell!r}.{suggest(str(cell), BLOCKS)}")


def start(cell: str, units: int, like: Tensor) -> State:
    """The initial state: zeros [units]."""
    return tuple(like.new_zeros(units) for _ in range(2 if cell == "lstm" else 1))


def step(cell: str, u: Tensor, state: State, weight: Tensor, bias: Tensor) -> State:
    """The next state. u [..., blocks * units]; the state's weight [blocks * units, units] and bias [blocks * units]."""
    h = state[0]
    v = F.linear(h, weight, bias)
    if cell == "elman":
        return ((u + v).tanh(),)
    if cell == "gru":
        (ur, uz, un), (vr, vz, vn) = u.chunk(3, -1), v.chunk(3, -1)
        z, n = (uz + vz).sigmoid(), (un + (ur + vr).sigmoid() * vn).tanh()
        return ((1 - z) * n + z * h,)
    i, f, g, o = (u + v).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return (o.sigmoid() * c.tanh(), c)


def draw(cell: str, inputs: int, units: int, generator: Generator) -> dict[str, Tensor]:
    """Initial "input.weight" [blocks * units, inputs], "state.weight" [blocks * units, units], and a bias for each.

    Uniform within 1 / sqrt(units), as torch draws them. An lstm's forget gate starts open: one is added to its bias.
    """
    rows, bound = BLOCKS[cell] * units, 1 / math.sqrt(units)

    def uniform(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1) * bound

    found = {"input.weight": uniform(rows, inputs), "state.weight": uniform(rows, units)}
    found |= {"input.bias": uniform(rows), "state.bias": uniform(rows)}
    if cell == "lstm":
        found["input.bias"][units : 2 * units] += 1.0
    return found
