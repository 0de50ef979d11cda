"""Tasks on the features of a frozen network, which processes each example once instead of in every episode."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quickstudy.base import trees
from quickstudy.base.progress import counting_bar
from quickstudy.errors import ConfigError
from quickstudy.nn.model import call
from quickstudy.nn.statistics import normalisation
from quickstudy.tasks.arrays import ArrayTasks
from quickstudy.tasks.classes import ClassTasks, scaled

Pool = TypeVar("Pool", ClassTasks, ArrayTasks)


def features(source: Pool, extractor: nn.Module, *, batch: int = 256, progress: bool = False) -> Pool:
    """The same tasks with the extractor's features as inputs, so that a head meta-trains in seconds.

    extractor   any module, x [n, ...] -> features [n, ...] for x of the source: a torchvision model, one of `qs.nn`,
                or your own. A frozen copy in eval mode is used; yours is not touched
    batch       examples that it processes at once

    This call computes the features of every example once; episodes are drawn as before. A learner trained on these
    tasks keeps the extractor: `trained.adapt` and the predictor take raw inputs, and a file holds its weights.
    `progress` shows a bar.

    >>> import torch, quickstudy as qs
    >>> extractor = qs.nn.conv4(channels=1, filters=8, norm="layer")
    >>> tasks = qs.tasks.features(qs.tasks.glyphs("val", queries=5), extractor)
    >>> learner = qs.R2D2(torch.nn.Linear(32, 32))

    Raises ConfigError for a source other than a pool of classes or arrays, for a source with `augment`, and for an
    extractor that normalises by its batch, because its features would depend on the other examples in the batch.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}.")
    copied = frozen(extractor)
    if isinstance(source, ClassTasks):
        if source.augment is not None:
            raise ConfigError("the extractor looks at each image once, but augment changes it each time: leave it out.")
        examples = _extracted(copied, source.examples, batch, progress)
        return dataclasses.replace(source, examples=examples, extractor=copied)
    if isinstance(source, ArrayTasks):
        parts = [b._replace(x=_of_tasks(copied, b.x, batch, progress)) for b in source.episodes]
        episodes = source.episodes._make(parts)
        return dataclasses.replace(source, episodes=episodes, extractor=copied)
    raise ConfigError(
        f"features are computed for a pool of classes (glyphs, omniglot, from_folder) or for from_arrays; a "
        f"{type(source).__name__} draws inputs anew. Put the frozen module into the learner's network instead."
    )


def extract(extractor: nn.Module, x: Any) -> Tensor:
    """The features of n inputs, in the extractor's own precision and on its own device."""
    tensors = [*extractor.parameters(), *extractor.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), None)
    if like is not None:
        x = trees.mapped(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype), x)
    return call(extractor, {}, x)


def frozen(module: nn.Module) -> nn.Module:
    """A copy in eval mode without gradients. Raises ConfigError for a module whose outputs depend on the batch."""
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    if normalisation(copied) in ("batch", "support"):
        raise ConfigError(
            "the module normalises by whatever batch it is given, so its features are not those of an example "
            'alone. Use norm="layer" or "none", or torch\'s BatchNorm with the averages of its training.'
        )
    return copied


def _of_tasks(extractor: nn.Module, x: Any, batch: int, progress: bool) -> Tensor:
    """The features [tasks, n, ...] of inputs with a task axis."""
    tasks, n = trees.first(x).shape[:2]
    z = _extracted(extractor, trees.mapped(lambda t: t.flatten(0, 1), x), batch, progress)
    return z.unflatten(0, (tasks, n))


def _extracted(extractor: nn.Module, examples: Any, batch: int, progress: bool) -> Tensor:
    parts = [trees.rows(examples, slice(i, i + batch)) for i in range(0, trees.size(examples), batch)]

    def features_of(x: Any) -> Tensor:
        return extract(extractor, scaled(x) if isinstance(x, Tensor) else x)

    return in_batches(features_of, parts, "the extractor", progress, trees.size)


def in_batches(
    function: Callable[[Any], Any], parts: Sequence[Any], who: str, progress: bool, size: Callable[[Any], int] = len
) -> Tensor:
    """The outputs of `function` for all parts in one tensor [N, ...], on the CPU, in torch's default precision.

    `size` gives the number of examples of a part. Raises ConfigError, naming `who`, where an output is not a tensor
    with one row per example.
    """
    found = []
    with torch.no_grad(), counting_bar("features", sum(map(size, parts)), progress) as count:
        for part in parts:
            z, n = function(part), size(part)
            if not isinstance(z, Tensor) or z.dim() < 2 or len(z) != n:
                got = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
                raise ConfigError(f"{who} must give features [n, ...]; for n = {n} it gave {got}.")
            found.append(z.to("cpu", torch.get_default_dtype()))
            count(n)
    return torch.cat(found)
