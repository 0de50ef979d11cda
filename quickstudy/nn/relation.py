"""The relation module of relation networks: how much does an example belong to a class?"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from quickstudy.errors import ConfigError
from quickstudy.nn.norm import norm as norm_layer


class Relation(nn.Module):
    """Scores [m, ways] of pairs, from features of classes [ways, ...] and of examples [m, ...], given as a tuple.

    The first layer reads the two joined. Because it is linear, it equals the sum of one layer on each. So it is
    computed once for each class and each example instead of for each pair, and the joined features of all pairs are
    never in memory.
    """

    def __init__(self, of_class: nn.Module, of_example: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.of_class, self.of_example, self.rest = of_class, of_example, rest

    def forward(self, classes: Tensor, examples: Tensor) -> Tensor:
        pairs = self.of_example(examples)[:, None] + self.of_class(classes)[None]  # [m, ways, ...]
        return self.rest(pairs.flatten(0, 1)).reshape(len(examples), len(classes))


def relation(shape: tuple[int, ...], *, filters: int = 64, hidden: int = 8, norm: str = "batch") -> nn.Module:
    """The relation module for features of this shape: two convolutions (for maps), then two linear layers to a score.

    shape (channels, height, width): 3x3 convolutions of `filters` with normalisation, ReLU and 2x2 max pooling, twice,
    then a linear layer to `hidden`, ReLU, and one to the score. shape (d,): linear layers to `filters` and `hidden`
    instead, without normalisation. Sung et al. 2018, https://arxiv.org/abs/1711.06025; here poolings round sizes up, so
    that maps may have any size. Raises ConfigError for any other kind of shape.

    >>> import torch
    >>> relation((64, 7, 7))(torch.zeros(5, 64, 7, 7), torch.zeros(3, 64, 7, 7)).shape
    torch.Size([3, 5])
    """
    if len(shape) not in (1, 3):
        raise ConfigError(f"features are maps (channels, height, width) or vectors (d,); got the shape {tuple(shape)}.")
    made = _of_maps(*shape, filters, hidden, norm) if len(shape) == 3 else _of_vectors(shape[0], filters, hidden)
    made.architecture = {  # type: ignore[assignment]  # plain values: how to build the model again
        "name": "relation",
        "shape": tuple(shape),
        "filters": filters,
        "hidden": hidden,
        "norm": norm,
    }
    return made


def _of_maps(channels: int, height: int, width: int, filters: int, hidden: int, norm: str) -> Relation:
    rest: OrderedDict[str, nn.Module] = OrderedDict()
    rest["norm1"] = norm_layer(norm, filters)
    rest["relu1"] = nn.ReLU()
    rest["pool1"] = nn.MaxPool2d(2, ceil_mode=True)
    rest["conv2"] = nn.Conv2d(filters, filters, 3, padding=1)
    rest["norm2"] = norm_layer(norm, filters)
    rest["relu2"] = nn.ReLU()
    rest["pool2"] = nn.MaxPool2d(2, ceil_mode=True)
    rest["flatten"] = nn.Flatten()
    places = -(-height // 4) * -(-width // 4)
    rest |= _score(filters * places, hidden)
    of_class, of_example = (nn.Conv2d(channels, filters, 3, padding=1, bias=bias) for bias in (False, True))
    return Relation(of_class, of_example, nn.Sequential(rest))


def _of_vectors(width: int, filters: int, hidden: int) -> Relation:
    of_class, of_example = (nn.Linear(width, filters, bias=bias) for bias in (False, True))
    return Relation(of_class, of_example, nn.Sequential(OrderedDict(relu1=nn.ReLU()) | _score(filters, hidden)))


def _score(width: int, hidden: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(linear=nn.Linear(width, hidden), relu=nn.ReLU(), score=nn.Linear(hidden, 1))
