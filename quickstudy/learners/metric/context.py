"""Full-context embeddings of matching networks: every embedding depends on the whole support set.

    g(x_i, S) = g'(x_i) + forward_i + backward_i        the outputs of an LSTM that reads g'(x_1) .. g'(x_n), and of one
                                                        that reads them from the end
    f(x, S)   = h_K,   r_k = sum_i softmax_i(h_k . g(x_i, S)) g(x_i, S)
                       o_{k+1}, c_{k+1} = LSTM(f'(x), [h_k, r_k], c_k),   h_{k+1} = o_{k+1} + f'(x),   h_0 = f'(x)

The LSTM cells are written in plain operations, because torch's own have no rule for `vmap` and no second derivative on
a GPU.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, NeurIPS 2016, 2.1.2 and
appendix A.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from quickstudy.learner import Theta
from quickstudy.nn.parameters import part


def init_context(width: int, generator: Generator) -> Theta:
    """Initial weights of the three cells, drawn as in torch's LSTM: uniform within 1 / sqrt(width)."""
    hidden = {"forward": width, "backward": width, "reading": 2 * width}
    shapes = {f"{name}.input": (4 * width, width) for name in hidden}
    shapes |= {f"{name}.hidden": (4 * width, size) for name, size in hidden.items()}
    shapes |= {f"{name}.bias": (4 * width,) for name in hidden}
    return {n: (2 * torch.rand(s, generator=generator) - 1) / math.sqrt(width) for n, s in shapes.items()}


def cell(parts: Theta, given: Tensor, hidden: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM step, to (o, c). `given` [n, 4d] is the input's contribution to the gates; hidden [n, e], c [n, d]."""
    gates = given + hidden @ parts["hidden"].T
    let_in, forget, new, let_out = gates.chunk(4, -1)
    c = forget.sigmoid() * c + let_in.sigmoid() * new.tanh()
    return let_out.sigmoid() * c.tanh(), c


def in_context(parts: Theta, z: Tensor) -> Tensor:
    """g(x_i, S) [n, d] for z = g'(x_i) [n, d], in the order given."""
    ahead = _read(part(parts, "forward."), z)
    back = _read(part(parts, "backward."), z.flip(0)).flip(0)
    return z + ahead + back


def _read(parts: Theta, z: Tensor) -> Tensor:
    """The outputs [n, d] of an LSTM that reads the rows of z one after the other."""
    given = z @ parts["input"].T + parts["bias"]
    o = c = torch.zeros_like(z[:1])
    outputs = []
    for row in given.unbind(0):
        o, c = cell(parts, row[None], o, c)
        outputs.append(o)
    return torch.cat(outputs)


def reading(parts: Theta, z: Tensor, memory: Tensor, steps: int) -> Tensor:
    """f(x, S) [m, d] for z = f'(x) [m, d] and memory = g(x_i, S) [n, d], after `steps` readings of the support set."""
    own = part(parts, "reading.")
    given = z @ own["input"].T + own["bias"]
    h, c = z, torch.zeros_like(z)
    for _ in range(steps):
        read = (h @ memory.T).softmax(1) @ memory
        o, c = cell(own, given, torch.cat([h, read], 1), c)
        h = o + z
    return h
