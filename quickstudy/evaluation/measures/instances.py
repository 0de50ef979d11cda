"""Accuracy at the n-th instance of a class: how a learner that reads a stream improves with each example of a class.

A stream holds the same number of examples of each class in random order. The learner answers each example before it
sees the label. The instance of an example is the number of examples of its class so far, itself included. At the 1st
instance of a class nothing is known about it, so an honest learner can only guess. It can still guess better than at
random: if j of W classes have come before, W - j are left, so a learner that excludes the j is right with probability

    (1/W) * sum_{j=0}^{W-1} 1 / (W - j) = H_W / W            (45.7 % for W = 5)

and no learner can do better. At the very first example of a stream there is nothing to exclude: 1 / W. A learner above
either bound has seen labels that it has to predict.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap: Meta-Learning with Memory-Augmented Neural Networks, ICML 2016,
https://arxiv.org/abs/1605.06065
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.engine.fitting import for_test
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError, DataError
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.choosing import chosen_engine
from quickstudy.evaluation.metric import PERCENT
from quickstudy.evaluation.passes import begin, protocol_of, results
from quickstudy.evaluation.predictions import finite
from quickstudy.evaluation.protocol import Protocol
from quickstudy.learner import Batch, Episode, Learner, Theta, offers
from quickstudy.learners.parts.reading import joined
from quickstudy.tasks.source import Source, source_of

if TYPE_CHECKING:
    from quickstudy.base.figures import Bars

INSTANCES = (1, 2, 5, 10)


@dataclass(frozen=True)
class InstanceAccuracy:
    """Accuracy at some instances of a class, as means over streams with 95 % intervals, and the protocol."""

    instances: tuple[int, ...]
    amounts: tuple[Amount, ...]  # one for each of `instances`
    first: Amount  # at the very first example of a stream, of whatever class
    protocol: Protocol

    def __getitem__(self, instance: int) -> Amount:
        """The accuracy at that instance. Raises KeyError when it was not asked for."""
        return dict(zip(self.instances, self.amounts, strict=True))[instance]

    @property
    def chance(self) -> float:
        """1 / W: the best possible accuracy at the first example of a stream."""
        return 1 / (self.protocol.ways or 1)

    @property
    def by_exclusion(self) -> float:
        """H_W / W: the best possible accuracy at the 1st instance of a class without knowing its label."""
        ways = self.protocol.ways or 1
        return sum(1 / k for k in range(1, ways + 1)) / ways

    @property
    def leaks(self) -> bool:
        """Whether accuracy is clearly (by two half widths) above what is possible, so the learner has seen labels."""
        bounds = [(self.first, self.chance)] + ([(self[1], self.by_exclusion)] if 1 in self.instances else [])
        return any(amount.low - amount.interval > bound for amount, bound in bounds)

    def __str__(self) -> str:
        lines = ["instance  accuracy"]
        lines += [f"{n:<8}  {in_words(amount)}" for n, amount in zip(self.instances, self.amounts, strict=True)]
        lines.append(
            f"(95 % CI over {self.protocol.episodes} streams; {self.protocol.ways}-way; first example of a stream "
            f"{in_words(self.first)}, chance {100 * self.chance:.1f} %, 1st instance by exclusion at most "
            f"{100 * self.by_exclusion:.1f} %)"
        )
        return "\n".join([*lines, "IT HAS SEEN LABELS THAT IT MUST ANSWER"] if self.leaks else lines)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for instances.json."""
        accuracies = [
            {"instance": n, **amount.to_dict()} for n, amount in zip(self.instances, self.amounts, strict=True)
        ]
        return {"accuracies": accuracies, "first": self.first.to_dict(), "protocol": self.protocol.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> InstanceAccuracy:
        """The accuracy that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        points = plain["accuracies"]
        if not points:
            raise ValueError("it holds no instance")
        amounts = tuple(map(_share, points))
        numbers = tuple(int(one["instance"]) for one in points)
        return cls(numbers, amounts, _share(plain["first"]), Protocol(**plain["protocol"]))

    def plot(self, path: str | os.PathLike) -> None:
        """Write the figure: a bar per instance with 95 % intervals. The suffix of `path` is .png, .svg or .pdf."""
        from quickstudy.base.figures import bars, save  # matplotlib takes a second to import

        save(path, bars(*figure(self)))


def in_words(amount: Amount) -> str:
    """'36.4 % ± 0.5'."""
    return amount.in_words(PERCENT)


def _share(plain: Mapping[str, Any]) -> Amount:
    amount = Amount.from_dict(plain)
    if not 0 <= amount.mean <= 1:
        raise ValueError(f"{amount.mean} is no accuracy")
    return amount


# --- measuring -------------------------------------------------------------------------------------------------------


def instance_accuracy(
    trained: Any,
    tasks: Any,
    *,
    instances: Sequence[int] = INSTANCES,
    episodes: int = 600,
    seed: int = 1,
    engine: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> InstanceAccuracy:
    """Accuracy at the given instances of a class, over streams of test tasks.

    `trained` has `.learner`, with a method `stream`, and `.theta`. A stream needs as many examples of each class as the
    largest instance. A source is asked for them by `tasks.replace(shots=..., queries=...)`; one without `replace` must
    give enough. The examples of stream i and their order are determined by (seed, i) alone. `engine` is as in
    `evaluate`. `progress(n)` is called with the number of streams done since the last call.

    >>> import torch, quickstudy as qs
    >>> learner = qs.MetaRNN(torch.nn.Flatten(), width=784, units=8)
    >>> test = qs.tasks.glyphs("test", ways=5)
    >>> found = qs.instance_accuracy(qs.Trained(learner, learner.init()), test, instances=(1, 2), episodes=4)
    >>> found.leaks
    False

    Raises ConfigError for a learner without `stream`, for regression and for instances that are not different numbers
    from 1, DataError where there are too few examples, NonFiniteError where an output is not finite.
    """
    _check(trained.learner, tasks, instances)
    instances = sorted(instances)
    learner, theta = for_test(trained.learner, tasks), trained.theta
    source = with_instances(tasks, max(instances))
    one = begin(learner, theta, source, episodes, seed, arrange=functools.partial(_as_stream, seed))

    def measure(learner: Learner, stream: Episode) -> Tensor:
        return stream_accuracy(learner, theta, stream.support, instances)

    table = torch.stack(list(results(one, measure, chosen_engine(one, measure, engine), progress)))
    columns = finite(table, "an output that is not finite.", "stream").unbind(1)
    first, *amounts = (Amount.of(column, PERCENT) for column in columns)
    protocol = protocol_of(learner, source, "accuracy at an instance", episodes, seed, seen=one.first)
    return InstanceAccuracy(tuple(instances), tuple(amounts), first, protocol)


def stream_accuracy(learner: Any, theta: Theta, stream: Batch, instances: Sequence[int]) -> Tensor:
    """[1 + instances]: whether the first answer of the stream is right, and the share of right answers per instance."""
    output = learner.stream(theta, stream)
    # NaN logits would silently count as wrong answers, so carry the NaN into the result.
    right = (output.argmax(1) == stream.y).double() + 0 * output.sum(1)
    instance = (stream.y[:, None] == stream.y).tril().sum(1)
    shares = [(right * (instance == n)).sum() / (instance == n).sum() for n in instances]
    return torch.stack([right[0], *shares])


def with_instances(tasks: Any, most: int) -> Source:
    """The task source with `most` examples of each class; unchanged if it has no `replace`.

    Raises DataError where a source without `replace` gives too few examples.
    """
    source = source_of(tasks)
    if (changed := source.replace(shots=1, queries=max(most - 1, 1))) is not None:
        return changed
    support, query = unstack(source.sample(1, seeds.generator(0, "probe")))[0]
    each = torch.bincount(torch.cat([support.y, query.y]))
    if int(each.min()) < most:
        raise DataError(
            f"the tasks have {int(each.min())} examples of a class, but instance {most} was asked for. Give episodes "
            "with more (shots + queries), or ask for smaller instances."
        )
    return source


def _as_stream(seed: int, number: int, episode: Episode) -> Episode:
    """The episode's examples as one stream in an order of its own, given twice: engines map a support and a query set.

    The order of stream `number` follows from (seed, number) alone.
    """
    x, y = joined(episode)
    order = torch.randperm(len(y), generator=seeds.generator(seed, "order", number)).to(y.device)
    stream = Batch(x[order], y[order])
    return Episode(stream, stream)


def has_instances(learner: Learner, tasks: Any) -> bool:
    """Whether `instance_accuracy` can be computed for this learner on these tasks."""
    return offers(learner, "stream") and source_of(tasks).ways is not None


def _check(learner: Learner, tasks: Any, instances: Sequence[int]) -> None:
    name = type(learner).__name__
    if not offers(learner, "stream"):
        raise ConfigError(f"{name} does not read streams: accuracy at an instance is for MetaRNN, SNAIL and MANN.")
    if source_of(tasks).ways is None:
        raise ConfigError("accuracy at an instance is for classification; these tasks have no `ways`.")
    if not instances or min(instances) < 1 or len(set(instances)) < len(instances):
        raise ConfigError(f"instances are different numbers from 1, such as 1 2 5 10; got {tuple(instances)}.")


def figure(accuracy: InstanceAccuracy) -> tuple[list[str], list[Bars]]:
    from quickstudy.base.figures import Bars

    names = [f"instance {n}" for n in accuracy.instances]
    means, ends = [a.mean for a in accuracy.amounts], [(a.low, a.high) for a in accuracy.amounts]
    return names, [Bars("share of right answers", "accuracy", means, ends, whole=1.0)]
