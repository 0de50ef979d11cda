"""Memory-augmented network: a recurrent controller with an external memory, which it writes where it is used least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Encoder, Episode, Learner, Outer, Theta, Ways, Width
from quickstudy.learners.parts.encoding import features, known_statistics, one_hot
from quickstudy.learners.parts.reading import check_objective, check_sizes, delayed, reading_loss
from quickstudy.nn.parameters import beside, parameters, part
from quickstudy.nn.recurrent import draw, start, step

PREFIX = "mann."  # prefix in theta of everything but the encoder's parameters
TINY = 1e-8  # keeps the direction of an empty row of memory differentiable


class Memory(NamedTuple):
    """The state; the leading dimension b is 1, or the number of queries that are answered at once."""

    h: Tensor  # [b, units], the controller's output
    c: Tensor  # [b, units], its cell
    rows: Tensor  # M [b, slots, slot]
    read: Tensor  # w^r [b, heads, slots], the weights with which each head read last
    found: Tensor  # r [b, heads * slot], what the heads read
    usage: Tensor  # w^u [b, slots]


class Reading(NamedTuple):
    memory: Memory
    last: Tensor  # the last label, which the controller reads with the next input
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class MANN(Learner):
    """A recurrent controller with a memory that it reads by content and writes to the least or last used rows.

        controller   h_t = lstm(h_{t-1}, [f(x_t), y_{t-1}, r_{t-1}]),   k_t = tanh(W h_t + b)
        least used   w^lu_{t-1}(i) = 1 where w^u_{t-1}(i) <= m(w^u_{t-1}, n), else 0;   those rows of M are set to zero
        write        w^w_t = sigmoid(a) w^r_{t-1} + (1 - sigmoid(a)) w^lu_{t-1},   M_t(i) = M_{t-1}(i) + w^w_t(i) k_t
        read         w^r_t = softmax_i(cos(k_t, M_t(i))),   r_t = sum_i w^r_t(i) M_t(i)
        usage        w^u_t = decay w^u_{t-1} + w^r_t + w^w_t
        output       head([h_t, r_t])

    m(v, n) is the n-th smallest entry of v, and n the number of heads. Each head has a key k_t, a gate a and one of the
    n least used rows (the first head has the least used one); r_t joins what all heads read. As in MetaRNN, phi after
    n examples is the state and the last label, a query takes one more step, and `stream` gives the output of every
    step. Everything but the encoder is kept in theta under "mann.".

    Santoro, Bartunov, Botvinick, Wierstra, Lillicrap: Meta-Learning with Memory-Augmented Neural Networks, ICML 2016,
    https://arxiv.org/abs/1605.06065

    >>> import quickstudy as qs
    >>> learner = qs.MANN(qs.nn.conv4(channels=1, norm="layer", downsample="pool"), width=64)

    Deviations from the paper: an encoder reads the input (torch.nn.Flatten() gives the raw pixels); if rows are used
    equally little, the first ones count as the least used, so that there are always exactly n; labels are one-hot, and
    the paper's strings of five letters for many ways are not implemented. The paper does not say how several heads
    share its equations, or what lies between controller and key. A `sharpness` other than 1 is our addition. The outer
    optimizer is torch's RMSprop at the paper's rate of 1e-4, with torch's constants: squared gradients are averaged
    with 0.99, and there is no momentum. The paper has 0.95 and a momentum of 0.9.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, width]
    width: Width  # of the encoder's features
    ways: Ways = 5  # classes in a task
    units: int = 200  # of the controller's state
    slots: int = 128  # rows of the memory
    slot: int = 40  # length of a row
    heads: int = 4  # reads and writes per step
    decay: float = 0.99  # factor of a row's usage per step
    sharpness: float = 1.0  # factor on the cosine in a read; larger values select single rows
    objective: str = "stream"  # training loss: stream (every example, before its label is read) or query
    shuffle: bool = True  # read training examples in a random order

    ordered: ClassVar[bool] = True
    fixed_ways: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_objective(self.objective)
        sizes = ("width", "ways", "units", "slots", "slot", "heads")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        if self.heads > self.slots:
            raise ConfigError(f"each head needs a row to write to: heads={self.heads}, but slots={self.slots}.")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay is the part of a row's usage that is kept, from 0 to 1; got {self.decay}.")

    def outer(self) -> Outer:
        return Outer("rmsprop", 1e-4)

    def init(self) -> Theta:
        generator, bound = seeds.generator(0, "mann"), 1 / math.sqrt(self.units)
        parts, keys = draw("lstm", self.width, self.units, generator), self.heads * self.slot
        shapes = {"label.weight": (self.ways, 4 * self.units), "read.weight": (4 * self.units, keys)}
        shapes |= {"key.weight": (keys, self.units), "head.weight": (self.ways, self.units + keys)}
        parts |= {name: (2 * torch.rand(*shape, generator=generator) - 1) * bound for name, shape in shapes.items()}
        zeros = {"key.bias": keys, "gate": self.heads, "head.bias": self.ways}
        return beside(parameters(self.encoder), PREFIX, parts | {name: torch.zeros(n) for name, n in zeros.items()})

    def adapt(self, theta: Theta, support: Batch) -> Reading:
        answers, memory = self._read(theta, support)[1:]
        last = torch.cat([torch.zeros_like(theta[f"{PREFIX}head.bias"])[None], answers])[-1]
        return Reading(memory, last, known_statistics(self.encoder, theta, support.x))

    def predict(self, theta: Theta, phi: Reading, x: Tensor) -> Tensor:
        parts = part(theta, PREFIX)
        u = inputs_to(parts, features(self.encoder, self.width, theta, x, phi.statistics), phi.last)
        return outputs_of(parts, self._step(parts, u, phi.memory))

    def stream(self, theta: Theta, batch: Batch) -> Tensor:
        """Logits [n, ways] for each example of the stream, made before its label is read."""
        return self._read(theta, batch)[0]

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The controller's state and the memory's rows, flattened, after a step with zero input and the last label."""
        phi, parts = self.adapt(theta, support), part(theta, PREFIX)
        after = self._step(parts, inputs_to(parts, phi.last.new_zeros(1, self.width), phi.last), phi.memory)
        return torch.cat([t.flatten() for t in (after.h, after.c, after.rows)])

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return reading_loss(self, F.cross_entropy, theta, episode)

    def _read(self, theta: Theta, batch: Batch) -> tuple[Tensor, Tensor, Memory]:
        """The outputs [n, ways], the labels as they are read [n, ways], and the memory after them."""
        parts = part(theta, PREFIX)
        answers = one_hot(batch.y, self.ways, parts["gate"])
        memory, seen = self._empty(parts["gate"]), [parts["head.bias"].new_zeros(0, self.ways)]
        z = features(self.encoder, self.width, theta, batch.x)
        for u in inputs_to(parts, z, delayed(answers)).unbind():
            memory = self._step(parts, u[None], memory)
            seen.append(outputs_of(parts, memory))
        return torch.cat(seen), answers, memory

    def _empty(self, like: Tensor) -> Memory:
        h, c = start("lstm", self.units, like)
        shapes = ((self.slots, self.slot), (self.heads, self.slots), (self.heads * self.slot,), (self.slots,))
        return Memory(h[None], c[None], *(like.new_zeros(1, *shape) for shape in shapes))

    def _step(self, parts: Theta, u: Tensor, m: Memory) -> Memory:
        """The memory after one more input, or after each of several alternative ones: u [b, 4 * units]."""
        u = u + F.linear(m.found, parts["read.weight"])
        h, c = step("lstm", u, (m.h, m.c), parts["state.weight"], parts["state.bias"])
        keys = F.linear(h, parts["key.weight"], parts["key.bias"]).tanh().unflatten(1, (self.heads, self.slot))
        least = least_used(m.usage, self.heads)
        gate = parts["gate"].sigmoid()[:, None]
        write = gate * m.read + (1 - gate) * least
        rows = m.rows * (1 - least.sum(1))[..., None] + write.mT @ keys
        read = (self.sharpness * (directions(keys) @ directions(rows).mT)).softmax(-1)
        usage = self.decay * m.usage + read.sum(1) + write.sum(1)
        return Memory(h, c, rows, read, (read @ rows).flatten(1), usage)


def least_used(usage: Tensor, n: int) -> Tensor:
    """w^lu with one row per head, [b, n, slots], for usage [b, slots]: head i has a one at the i-th least used row."""
    order = usage.detach().argsort(dim=1, stable=True)[:, :n]
    return (order[..., None] == torch.arange(usage.shape[1], device=usage.device)).to(usage.dtype)


def directions(rows: Tensor) -> Tensor:
    """Each row scaled to length one; an empty row stays zero."""
    return rows * (rows.square().sum(-1, keepdim=True) + TINY).rsqrt()


def inputs_to(parts: Theta, z: Tensor, answers: Tensor) -> Tensor:
    """The contribution of features z [n, width] and labels [n, ways] or [ways] to the controller: [n, 4 * units]."""
    return F.linear(z, parts["input.weight"], parts["input.bias"]) + answers @ parts["label.weight"]


def outputs_of(parts: Theta, m: Memory) -> Tensor:
    return F.linear(torch.cat([m.h, m.found], 1), parts["head.weight"], parts["head.bias"])
