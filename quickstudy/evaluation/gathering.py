"""The results of all ranks, on all ranks: nested tensors whose sizes may differ from task to task.

They travel as sums over the ranks, in which every number comes from one rank and all others add zero. So they arrive
bit for bit, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.engine import ranks


def gathered(own: Sequence[Any], places: range, together: range, template: Callable[[], Any]) -> list[Any]:
    """The results of the episodes at `together`, of which this rank has those at `places`.

    `template()` gives some result, which tells how results are nested and the types of their tensors, to a rank that
    has none. Raises RankError where the other ranks cannot be reached.
    """
    if ranks.size() == 1:
        return list(own)
    leaves, structure = pytree.tree_flatten(own[0] if own else template())
    rows = [pytree.tree_leaves(result) for result in own]
    mine = range(places.start - together.start, places.stop - together.start)
    columns = [_column(leaf, [row[k] for row in rows], mine, len(together)) for k, leaf in enumerate(leaves)]
    return [pytree.tree_unflatten(row, structure) for row in zip(*columns, strict=True)]


def _column(like: Tensor, own: Sequence[Tensor], mine: range, n: int) -> list[Tensor]:
    """One tensor of each of n results. This rank has `own`, at the places `mine`."""
    shapes = torch.zeros(n, like.dim(), dtype=torch.int64)
    for place, tensor in zip(mine, own, strict=True):
        shapes[place] = torch.tensor(tensor.shape, dtype=torch.int64)
    shapes = ranks.total(shapes) if like.dim() else shapes
    sizes = shapes.prod(1).tolist()
    numbers = torch.zeros(sum(sizes), dtype=torch.uint8 if like.dtype == torch.bool else like.dtype)
    for place, tensor in zip(mine, own, strict=True):
        start = sum(sizes[:place])
        numbers[start : start + sizes[place]] = tensor.reshape(-1)
    parts = ranks.total(numbers).to(like.dtype).split(sizes)
    return [part.reshape(shape) for part, shape in zip(parts, shapes.tolist(), strict=True)]
