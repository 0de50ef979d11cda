"""SNAIL: causal convolutions aggregate past examples, causal attention picks out what matters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Encoder, Episode, Learner, Length, Theta, Ways, Width
from quickstudy.learners.parts.encoding import features, known_statistics, one_hot
from quickstudy.learners.parts.reading import check_objective, check_sizes, reading_loss
from quickstudy.nn.parameters import beside, parameters, part

PREFIX = "snail."  # prefix in theta of everything but the encoder's parameters


class Reading(NamedTuple):
    seen: Tensor  # [n, channels]: the outputs of all layers for every example read
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


class Layer(NamedTuple):
    """One layer of the stack; its output is concatenated to its input."""

    name: str
    inputs: int
    outputs: int
    dilation: int = 0  # of a causal convolution
    keys: int = 0  # length of keys and queries of an attention


@dataclass(frozen=True, eq=False)
class SNAIL(Learner):
    """A stack of causal layers over the sequence of labelled examples; the last position is the query.

        sequence       [f(x_1), y_1], ..., [f(x_n), y_n], [f(x), 0]
        convolution    a_t -> [a_t, tanh(u) * sigmoid(v)],   (u, v) = W_0 a_{t-r} + W_1 a_t + b,   r = 1, 2, 4, ...
        attention      a_t -> [a_t, sum_{s <= t} p_s V a_s],  p = softmax_s((Q a_t) . (K a_s) / sqrt(k))
        stack          attention, convolutions, attention, convolutions, attention, linear

    Position t reads only positions up to t. So phi, the outputs of all layers for the support set, holds all that a
    query needs, and each query is answered separately, at the position after the support set. `stream` predicts every
    example at its place from the labelled examples before it, in two passes through the stack: one with labels, one
    without. With 128 filters the attentions have keys of length 64, 256 and 512 and values of length 32, 128 and 256,
    as in the paper; other numbers of filters scale them in proportion. Everything but the encoder is kept in theta
    under "snail.".

    Mishra, Rohaninejad, Chen, Abbeel: A Simple Neural Attentive Meta-Learner, ICLR 2018,
    https://arxiv.org/abs/1707.03141

    >>> import quickstudy as qs
    >>> learner = qs.SNAIL(qs.nn.conv4(channels=1, norm="layer", downsample="pool"), width=64, ways=5, length=6)

    Deviations from the paper: dilations begin at 1, so that convolutions reach every earlier example (its listing
    begins at 2); the encoder is the user's, without the linear layer after it; keys have no bias, because it would not
    change the softmax.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, width]
    width: Width  # of the encoder's features
    ways: Ways = 5  # classes in a task
    length: Length = 6  # positions that the convolutions reach: the support set and a query
    causal_filters: int = 128  # filters of a causal convolution, a multiple of 4; the attentions grow with them
    objective: str = "query"  # training loss: query, or stream (every example, before its label is read)
    shuffle: bool = True  # read training examples in a random order

    ordered: ClassVar[bool] = True
    fixed_ways: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_objective(self.objective)
        check_sizes(width=self.width, ways=self.ways, length=self.length)
        if self.causal_filters < 4 or self.causal_filters % 4:
            raise ConfigError(f"causal_filters must be a multiple of 4, got {self.causal_filters}.")

    def layers(self) -> list[Layer]:
        """The stack below the linear layer."""
        n, found, inputs = self.causal_filters, [], self.width + self.ways
        reaches = [2**i for i in range(max(1, math.ceil(math.log2(self.length))))]
        for block, (keys, values) in enumerate([(n // 2, n // 4), (2 * n, n), (4 * n, 2 * n)]):
            plan = [(f"attention{block}", values, 0, keys)]
            plan += [(f"conv{block}.{r}", n, r, 0) for r in reaches] if block < 2 else []
            for name, outputs, dilation, size in plan:
                found.append(Layer(name, inputs, outputs, dilation, size))
                inputs += outputs
        return found

    def init(self) -> Theta:
        generator, layers = seeds.generator(0, "snail"), self.layers()
        parts: Theta = {}
        for layer in layers:
            parts |= {f"{layer.name}.{name}": value for name, value in drawn(layer, generator).items()}
        parts["head.weight"] = uniform(self.ways, layers[-1].inputs + layers[-1].outputs, generator)
        return beside(parameters(self.encoder), PREFIX, parts | {"head.bias": torch.zeros(self.ways)})

    def adapt(self, theta: Theta, support: Batch) -> Reading:
        return Reading(self._read(theta, support)[1], known_statistics(self.encoder, theta, support.x))

    def predict(self, theta: Theta, phi: Reading, x: Tensor) -> Tensor:
        z = features(self.encoder, self.width, theta, x, phi.statistics)
        return self._ask(theta, z, phi.seen, torch.full((len(z),), len(phi.seen), device=z.device))

    def stream(self, theta: Theta, batch: Batch) -> Tensor:
        """Logits [n, ways] for each example of the stream, made before its label is read."""
        z, seen = self._read(theta, batch)
        return self._ask(theta, z, seen, torch.arange(len(z), device=z.device))

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return reading_loss(self, F.cross_entropy, theta, episode)

    def _read(self, theta: Theta, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features [n, width] of the examples, and the outputs of all layers for the examples with their labels."""
        z = features(self.encoder, self.width, theta, batch.x)
        known = torch.cat([z, one_hot(batch.y, self.ways, z)], 1)
        return z, self._stack(theta, known, None, torch.arange(len(z), device=z.device))

    def _ask(self, theta: Theta, z: Tensor, seen: Tensor, at: Tensor) -> Tensor:
        """Logits for features z [m, width] at positions `at` [m], from the labelled examples before those."""
        asking = self._stack(theta, torch.cat([z, z.new_zeros(len(z), self.ways)], 1), seen, at)
        return F.linear(asking, theta[f"{PREFIX}head.weight"], theta[f"{PREFIX}head.bias"])

    def _stack(self, theta: Theta, a: Tensor, seen: Tensor | None, at: Tensor) -> Tensor:
        """Inputs a [m, width + ways] and the outputs of all layers. `seen` None: the inputs are their own past."""
        parts = part(theta, PREFIX)
        for layer in self.layers():
            past = a if seen is None else seen[:, : layer.inputs]
            added = (convolved if layer.dilation else attended)(layer, part(parts, f"{layer.name}."), a, past, at)
            a = torch.cat([a, added], 1)
        return a


def convolved(layer: Layer, parts: Theta, a: Tensor, past: Tensor, at: Tensor) -> Tensor:
    """A gated causal convolution at positions `at` [m] with inputs a [m, inputs], after inputs `past` [n, inputs]."""
    padded = torch.cat([torch.zeros_like(a[:1]), past])  # zeros before the first example
    before = padded[(at - layer.dilation + 1).clamp(min=0)]
    u, v = (F.linear(a, parts["now"], parts["bias"]) + F.linear(before, parts["before"])).chunk(2, 1)
    return u.tanh() * v.sigmoid()


def attended(layer: Layer, parts: Theta, a: Tensor, past: Tensor, at: Tensor) -> Tensor:
    """Causal attention of positions `at` [m] to themselves and to the examples of `past` [n, inputs] before them."""
    query = F.linear(a, parts["query"], parts["query_bias"]) / math.sqrt(layer.keys)
    hidden = torch.arange(len(past), device=at.device) >= at[:, None]
    likeness = (query @ F.linear(past, parts["key"]).T).masked_fill(hidden, -torch.inf)
    itself = (query * F.linear(a, parts["key"])).sum(1, keepdim=True)
    weights = torch.cat([likeness, itself], 1).softmax(1)
    values, own = (F.linear(t, parts["value"], parts["value_bias"]) for t in (past, a))
    return weights[:, :-1] @ values + weights[:, -1:] * own


def drawn(layer: Layer, generator: Generator) -> Theta:
    """Initial weights of a layer."""
    if layer.dilation:
        rows = 2 * layer.outputs
        found = {name: uniform(rows, layer.inputs, generator) / math.sqrt(2) for name in ("now", "before")}
        return found | {"bias": torch.zeros(rows)}
    rows = {"query": layer.keys, "key": layer.keys, "value": layer.outputs}
    found = {name: uniform(n, layer.inputs, generator) for name, n in rows.items()}
    return found | {"query_bias": torch.zeros(layer.keys), "value_bias": torch.zeros(layer.outputs)}


def uniform(rows: int, columns: int, generator: Generator) -> Tensor:
    """A matrix [rows, columns], initialised like a linear layer of torch."""
    return (2 * torch.rand(rows, columns, generator=generator) - 1) / math.sqrt(columns)
