"""The cases of the speed benchmark: networks of torch's own layers, with their inner loops and tasks.

Except for sinusoids, the data are random numbers of the right shapes, because they cost the same as real data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.nn import recurrent

SEED = 0


@dataclass(frozen=True)
class Problem:
    """The input of every contestant: the same weights and the same tasks."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float  # of the inner loop
    steps: int  # of the inner loop
    rates: bool  # whether every value of theta has a learned rate of its own, which starts at lr (MetaSGD)
    episodes: qs.Episode  # [tasks, examples, ...]


@dataclass(frozen=True)
class Case:
    """A network, its inner loop and its tasks."""

    name: str
    description: str
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float
    steps: int
    episodes: Callable[[torch.Generator], qs.Episode]
    rates: bool = False
    thorough: bool = True  # also try compile, and measure each contestant's memory in a process of its own

    def problem(self, dtype: torch.dtype, device: str = "cpu") -> Problem:
        """The problem in this precision and on this device; every call gives the same weights and data."""
        with seeds.seeded(SEED, f"weights of {self.name}"):
            model = self.model().to(device, dtype)
        drawn = self.episodes(seeds.generator(SEED, f"data of {self.name}"))
        cast = (
            qs.Batch(x.to(device, dtype), y.to(device, dtype if y.is_floating_point() else y.dtype)) for x, y in drawn
        )
        return Problem(model, self.loss, self.lr, self.steps, self.rates, qs.Episode(*cast))


# --- cases -----------------------------------------------------------------------------------------------------------


def sinusoid(steps: int = 5, tasks: int = 25, width: int = 40, thorough: bool = True) -> Case:
    name = f"sinusoid-{steps}step-{tasks}task" + (f"-{width}wide" if width != 40 else "")
    text = f"sinusoids, MLP 1-{width}-{width}-1, tasks {tasks}, shots 10, queries 10, inner steps {steps}, lr 0.01"
    source = qs.tasks.sinusoid("train", shots=10, queries=10)
    draw = partial(_sample, source, tasks)
    return Case(name, text, partial(_mlp, width), F.mse_loss, 0.01, steps, draw, thorough=thorough)


def learned_rates(steps: int = 100, tasks: int = 8, thorough: bool = True) -> Case:
    text = (
        f"a learned optimizer, unrolled: MetaSGD, a learned rate for every parameter of an MLP 1-40-40-1, sinusoids, "
        f"tasks {tasks}, shots 10, queries 10, inner steps {steps}, rates from 0.01"
    )
    draw = partial(_sample, qs.tasks.sinusoid("train", shots=10, queries=10), tasks)
    name = f"learned-rates-{steps}step"
    return Case(name, text, partial(_mlp, 40), F.mse_loss, 0.01, steps, draw, rates=True, thorough=thorough)


def conv4(ways: int, shots: int, steps: int, lr: float, tasks: int, filters: int = 64, thorough: bool = True) -> Case:
    name = f"conv4-{ways}way-{shots}shot-{steps}step" + (f"-{filters}wide" if filters != 64 else "")
    text = (
        f"random 28x28 images, strided Conv4-{filters} with batch norm, tasks {tasks}, ways {ways}, shots {shots}, "
        f"queries 5 per class, inner steps {steps}, lr {lr}"
    )
    draw = partial(_random_classes, (1, 28, 28), tasks, ways, shots)
    model = partial(_conv4, filters, ways)
    return Case(name, text, model, F.cross_entropy, lr, steps, draw, thorough=thorough)


def pooled_conv4(tasks: int = 4, steps: int = 5, filters: int = 32, thorough: bool = True) -> Case:
    text = (
        f"random 32x32 colour images, pooled Conv4-{filters} (3x3, stride 1, batch norm, 2x2 max pooling), "
        f"tasks {tasks}, ways 5, shots 1, queries 5 per class, inner steps {steps}, lr 0.01"
    )
    model, draw = partial(_pooled_conv4, filters), partial(_random_classes, (3, 32, 32), tasks, 5, 1)
    return Case("pooled-conv4", text, model, F.cross_entropy, 0.01, steps, draw, thorough=thorough)


def lstm(network: type[nn.Module], units: int = 32, length: int = 20, tasks: int = 10, thorough: bool = True) -> Case:
    what = {TorchLSTM: "torch's nn.LSTM", CellLSTM: "an LSTM of plain operations (quickstudy/nn/recurrent.py)"}
    text = (
        f"random sequences of {length} numbers in, one value out, {what[network]} with {units} units, tasks {tasks}, "
        f"shots 10, queries 10, inner steps 3, lr 0.1"
    )
    name = {TorchLSTM: "lstm-torch", CellLSTM: "lstm-cells"}[network]
    draw = partial(_random_sums, length, tasks)
    return Case(name, text, partial(network, units), F.mse_loss, 0.1, 3, draw, thorough=thorough)


def transformer(tasks: int = 8, width: int = 64, thorough: bool = True) -> Case:
    text = (
        f"random sequences of 16 tokens of 8 numbers, 2 nn.TransformerEncoderLayer of width {width} with 4 heads, no "
        f"dropout, tasks {tasks}, ways 5, shots 1, queries 5 per class, inner steps 3, lr 0.05"
    )
    draw = partial(_random_classes, (16, 8), tasks, 5, 1)
    return Case("transformer", text, partial(_Transformer, width), F.cross_entropy, 0.05, 3, draw, thorough=thorough)


# --- networks --------------------------------------------------------------------------------------------------------


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def _conv4(filters: int, ways: int) -> nn.Module:
    """Conv4 built from torch's own layers, which every contestant supports."""
    layers: list[nn.Module] = []
    for channels in (1, filters, filters, filters):
        layers += [nn.Conv2d(channels, filters, 3, stride=2, padding=1)]
        layers += [nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * 2 * 2, ways))


def _pooled_conv4(filters: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (3, filters, filters, filters):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters, track_running_stats=False)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * 2 * 2, 5))


class TorchLSTM(nn.Module):
    """torch's own LSTM, as users write it: from a sequence [n, length, 1] to a value [n, 1]."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, units, batch_first=True), nn.Linear(units, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class CellLSTM(nn.Module):
    """The same network built from plain operations, which every transform of torch supports."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units, self.lstm, self.head = units, nn.LSTMCell(1, units), nn.Linear(units, 1)

    def forward(self, x: Tensor) -> Tensor:
        contributed = F.linear(x, self.lstm.weight_ih, self.lstm.bias_ih)
        state = recurrent.start("lstm", self.units, x)
        for u in contributed.unbind(1):
            state = recurrent.step("lstm", u, state, self.lstm.weight_hh, self.lstm.bias_hh)
        return self.head(state[0])


class _Transformer(nn.Module):
    """From tokens [n, tokens, 8] to logits [n, 5], computed from the mean over tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers = nn.Sequential(nn.Linear(8, width), *layers)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


# --- data ------------------------------------------------------------------------------------------------------------


def _sample(source: qs.TaskSource, tasks: int, generator: torch.Generator) -> qs.Episode:
    return source.sample(tasks, generator)


def _random_classes(
    shape: tuple[int, ...], tasks: int, ways: int, shots: int, generator: torch.Generator, queries: int = 5
) -> qs.Episode:
    def batch(each: int) -> qs.Batch:
        x = torch.rand(tasks, ways * each, *shape, generator=generator)
        return qs.Batch(x, torch.arange(ways).repeat(tasks, each))

    return qs.Episode(batch(shots), batch(queries))


def _random_sums(length: int, tasks: int, generator: torch.Generator, examples: int = 10) -> qs.Episode:
    """Regression on sequences: the answer is a weighted sum of the sequence, with new weights for each task."""
    weights = torch.randn(tasks, length, 1, generator=generator) / length**0.5

    def batch() -> qs.Batch:
        x = torch.randn(tasks, examples, length, generator=generator)
        return qs.Batch(x.unsqueeze(-1), x @ weights)

    return qs.Episode(batch(), batch())


# --- what is measured ------------------------------------------------------------------------------------------------

CASES = (
    *(sinusoid(steps) for steps in (1, 5, 20)),
    *(sinusoid(tasks=tasks) for tasks in (5, 100)),
    conv4(5, 1, 1, 0.4, tasks=16),
    conv4(5, 5, 5, 0.1, tasks=8),
    conv4(20, 1, 5, 0.1, tasks=4),
    pooled_conv4(),
    lstm(TorchLSTM),
    lstm(CellLSTM),
    transformer(),
    learned_rates(),
)
SMALLEST = tuple(
    replace(case, name=f"tiny-{case.name}")
    for case in (
        sinusoid(1, tasks=4),
        conv4(5, 1, 1, 0.4, tasks=2, filters=8, thorough=False),
        pooled_conv4(2, 1, 4, thorough=False),
        lstm(TorchLSTM, 4, 5, 2, thorough=False),
        lstm(CellLSTM, 4, 5, 2, thorough=False),
        transformer(2, 8, thorough=False),
        learned_rates(3, 2, thorough=False),
    )
)

# Few and many inner steps of a single task, so that their memory differs by the steps alone.
INNER_STEPS = tuple(replace(conv4(5, 1, steps, 0.01, tasks=1), name=f"inner-{steps}step") for steps in (1, 50))
SMALLEST_INNER_STEPS = tuple(
    replace(conv4(5, 1, steps, 0.01, tasks=1, filters=8), name=f"tiny-inner-{steps}step") for steps in (1, 3)
)


def find(name: str) -> Case:
    """The case of this name. A process that measures one case alone gets its name on the command line."""
    return next(case for case in (*CASES, *SMALLEST, *INNER_STEPS, *SMALLEST_INNER_STEPS) if case.name == name)
