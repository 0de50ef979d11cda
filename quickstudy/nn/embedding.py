"""Embeddings whose rows for padding stay as they are, under every engine.

Two options of torch's layer change its gradient and not its output. With w the rows that are looked up, as constants,

    output = w + r (weight[x] - w)       r = 0 at `padding_idx`; 1 / (how often x occurs) with `scale_grad_by_freq`

has the same values and those gradients, by operations that every engine maps. torch's own operation loses the first
option inside a `vmap`, and has no second derivative with the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """torch's embedding, x [...] -> [..., d], with the right gradients under `vmap`, and without writing to its weight.

    `max_norm` shortens the rows that are looked up, where torch shortens them in the weight itself; its derivative is
    that of the shortened row. `sparse` has no effect: gradients are dense.
    """

    @classmethod
    def like(cls, layer: nn.Embedding) -> Embedding:
        """A layer of this class with the parameters of torch's layer, under the same names; attributes are shared."""
        made = cls.__new__(cls)
        made.__dict__ = dict(layer.__dict__)
        return made

    def forward(self, input: Tensor) -> Tensor:
        rows = F.embedding(input, self.weight)
        if (share := self._share(input)) is not None:
            rows = rows.detach() + share.unsqueeze(-1) * (rows - rows.detach())
        return rows if self.max_norm is None else _shortened(rows, self.max_norm, self.norm_type)

    def _share(self, x: Tensor) -> Tensor | None:
        """The share of the gradient that each number's row gets, in the shape of x; None: all of it."""
        share = None
        if self.padding_idx is not None:
            share = (x != self.padding_idx).to(self.weight.dtype)
        if self.scale_grad_by_freq:
            flat = x.reshape(-1)
            often = (flat[:, None] == flat).sum(1).reshape(x.shape)
            share = (1.0 if share is None else share) / often
        return share


def _shortened(rows: Tensor, longest: float, kind: float) -> Tensor:
    too_long = torch.linalg.vector_norm(rows.detach(), kind, dim=-1, keepdim=True) > longest
    # The norm has no derivative at a row of zeros, which is never too long: put ones in the place of such rows.
    length = torch.linalg.vector_norm(torch.where(too_long, rows, 1.0), kind, dim=-1, keepdim=True)
    return torch.where(too_long, rows * (longest / (length + 1e-7)), rows)
