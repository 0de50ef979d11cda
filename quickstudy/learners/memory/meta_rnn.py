"""Recurrent meta-learner: a network that reads the support set, and whose state is what it has learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.learner import Batch, Encoder, Episode, Learner, Loss, Outputs, Theta, Ways, Width
from quickstudy.learners.parts.encoding import features, known_statistics, one_hot
from quickstudy.learners.parts.reading import check_objective, check_sizes, delayed, reading_loss
from quickstudy.nn.parameters import beside, parameters, part
from quickstudy.nn.recurrent import BLOCKS, State, check_cell, draw, start, step

PREFIX = "rnn."  # prefix in theta of everything but the encoder's parameters


class Reading(NamedTuple):
    state: State  # of the cell, after the examples read so far
    last: Tensor  # the last target, which the cell reads with the next input
    statistics: Theta  # the support set's normalisation statistics, empty unless norm="support"


@dataclass(frozen=True, eq=False)
class MetaRNN(Learner):
    """Learning is reading: a recurrent network reads each input together with the target of the one before.

        s_t = cell(s_{t-1}, [f(x_t), y_{t-1}]),   output_t = head(h_t),   h_t the state's visible part

    with s_0 = 0, y_0 = 0 and classes as one-hot vectors. phi after n examples is (s_n, y_n). A query x takes one more
    step, head(cell(s_n, [f(x), y_n])), whose state is discarded. All weights are learned across tasks; none changes
    within a task. `stream` gives output_t for all t in one pass. Everything but the encoder is kept in theta under
    "rnn.".

    Hochreiter, Younger, Conwell: Learning to Learn Using Gradient Descent, ICANN 2001; in the form of Santoro,
    Bartunov, Botvinick, Wierstra, Lillicrap: Meta-Learning with Memory-Augmented Neural Networks, ICML 2016,
    https://arxiv.org/abs/1605.06065

    >>> import quickstudy as qs
    >>> learner = qs.MetaRNN(qs.nn.conv4(channels=1, norm="layer", downsample="pool"), width=64)
    >>> waves = qs.MetaRNN(qs.nn.mlp(1), width=40, loss=qs.mse_loss, ways=None)

    Deviations from the papers: an encoder reads the input (torch.nn.Flatten() gives the raw pixels); the loss is a mean
    over steps, not a sum.
    """

    encoder: Encoder  # maps x [n, ...] to features [n, width]
    width: Width  # of the encoder's features
    loss: Loss = F.cross_entropy  # (output, y) -> scalar
    ways: Ways | None = 5  # classes in a task; None for regression
    outputs: Outputs = 1  # predicted numbers per input (regression)
    cell: str = "lstm"  # elman, gru or lstm
    units: int = 200  # of the cell's state
    objective: str = "stream"  # training loss: stream (every example, before its target is read) or query
    shuffle: bool = True  # read training examples in a random order

    ordered: ClassVar[bool] = True
    fixed_ways: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_cell(self.cell)
        check_objective(self.objective)
        check_sizes(width=self.width, units=self.units, outputs=self.outputs)

    def init(self) -> Theta:
        generator, size = seeds.generator(0, "rnn"), self.ways or self.outputs
        parts = draw(self.cell, self.width, self.units, generator)
        # Drawn like further columns of the input's weights, but stored with one row per class, as in the head.
        bound = 1 / math.sqrt(self.units)
        rows = {"label.weight": BLOCKS[self.cell] * self.units, "head.weight": self.units}
        parts |= {name: (2 * torch.rand(size, n, generator=generator) - 1) * bound for name, n in rows.items()}
        return beside(parameters(self.encoder), PREFIX, parts | {"head.bias": torch.zeros(size)})

    def adapt(self, theta: Theta, support: Batch) -> Reading:
        answers, state = self._read(theta, support)[1:]
        last = torch.cat([torch.zeros_like(theta["rnn.label.weight"][:, 0])[None], answers])[-1]
        return Reading(state, last, known_statistics(self.encoder, theta, support.x))

    def predict(self, theta: Theta, phi: Reading, x: Tensor) -> Tensor:
        parts = part(theta, PREFIX)
        u = inputs_to(parts, features(self.encoder, self.width, theta, x, phi.statistics), phi.last)
        return outputs_of(parts, self._step(parts, u, phi.state)[0])

    def stream(self, theta: Theta, batch: Batch) -> Tensor:
        """Output [n, ways] or [n, d] for each example of the stream, made before its target is read."""
        return outputs_of(part(theta, PREFIX), self._read(theta, batch)[0])

    def embed(self, theta: Theta, support: Batch) -> Tensor:
        """The cell's state, flattened, after a step with zero features and the last target."""
        phi, parts = self.adapt(theta, support), part(theta, PREFIX)
        return torch.cat(self._step(parts, inputs_to(parts, phi.last.new_zeros(self.width), phi.last), phi.state))

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return reading_loss(self, self.loss, theta, episode)

    def _read(self, theta: Theta, batch: Batch) -> tuple[Tensor, Tensor, State]:
        """h_1 ... h_n [n, units], the targets as they are read [n, d], and s_n."""
        parts = part(theta, PREFIX)
        z = features(self.encoder, self.width, theta, batch.x)
        like = parts["label.weight"]
        answers = batch.y.to(like.dtype) if self.ways is None else one_hot(batch.y, self.ways, like)
        state, seen = start(self.cell, self.units, like), []
        for u in inputs_to(parts, z, delayed(answers)).unbind():
            state = self._step(parts, u, state)
            seen.append(state[0])
        return torch.stack(seen) if seen else z.new_zeros(0, self.units), answers, state

    def _step(self, parts: Theta, u: Tensor, state: State) -> State:
        return step(self.cell, u, state, parts["state.weight"], parts["state.bias"])


def inputs_to(parts: Theta, z: Tensor, answers: Tensor) -> Tensor:
    """The contribution of features z [n, width] and targets [n, d] or [d] to the cell: [n, blocks * units]."""
    return F.linear(z, parts["input.weight"], parts["input.bias"]) + answers @ parts["label.weight"]


def outputs_of(parts: Theta, h: Tensor) -> Tensor:
    return F.linear(h, parts["head.weight"], parts["head.bias"])
