"""Tasks on the features of a frozen network, which looks at each example once and not in every episode."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quickstudy.errors import ConfigError
from quickstudy.model import call, normalisation
from quickstudy.progress import counting_bar
from quickstudy.tasks.arrays import ArrayTasks
from quickstudy.tasks.classes import ClassTasks, scaled

Source = TypeVar("Source", ClassTasks, ArrayTasks)


def features(source: Source, extractor: nn.Module, *, batch: int = 256, progress: bool = False) -> Source:
    """The same tasks, with the extractor's features in place of their inputs: a head meta-trains in seconds.

    extractor   any module, x [n, ...] -> features [n, ...] for x of the source: a torchvision model, one of `qs.nn`,
                or your own. A frozen copy in eval mode is used; yours is not touched
    batch       examples that it sees at once

    Every example goes through it once, now; episodes are drawn as before. What is trained on these tasks knows the
    extractor: `trained.adapt` and the predictor take raw inputs, and a file holds its weights.

    >>> import torch, quickstudy as qs
    >>> extractor = qs.nn.conv4(channels=1, filters=8, norm="layer")
    >>> tasks = qs.tasks.features(qs.tasks.glyphs("val", queries=5), extractor)
    >>> learner = qs.R2D2(torch.nn.Linear(32, 32))

    Raises ConfigError for a source other than a pool of classes or arrays, and for an extractor that normalises by its
    batch, whose features would depend on what else is in it.
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
        parts = (
            _extracted(copied, b.x.flatten(0, 1), batch, progress).unflatten(0, b.y.shape[:2]) for b in source.episodes
        )
        episodes = source.episodes._make(b._replace(x=x) for b, x in zip(source.episodes, parts, strict=True))
        return dataclasses.replace(source, episodes=episodes, extractor=copied)
    raise ConfigError(
        f"features are computed for a pool of classes (glyphs, omniglot, from_folder) or for from_arrays; a "
        f"{type(source).__name__} draws inputs anew. Put the frozen module into the learner's network instead."
    )


def extract(extractor: nn.Module, x: Tensor) -> Tensor:
    """The features of x [n, ...], in the extractor's own precision and on its own device."""
    tensors = [*extractor.parameters(), *extractor.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), None)
    if like is not None:
        x = x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
    return call(extractor, {}, x)


def frozen(module: nn.Module) -> nn.Module:
    """A copy in eval mode without gradients. Raises ConfigError for one whose answers depend on the batch."""
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    if normalisation(copied) in ("batch", "support"):
        raise ConfigError(
            "the module normalises by whatever batch it is given, so its features are not those of an example "
            'alone. Use norm="layer" or "none", or torch\'s BatchNorm with the averages of its training.'
        )
    return copied


def _extracted(extractor: nn.Module, examples: Tensor, batch: int, progress: bool) -> Tensor:
    return in_batches(lambda x: extract(extractor, scaled(x)), examples.split(batch), "the extractor", progress)


def in_batches(function: Callable[[Any], Any], parts: Sequence[Any], who: str, progress: bool) -> Tensor:
    """What `function` makes of all examples [N, ...], on the CPU, as the learner's network wants its numbers."""
    found = []
    with torch.no_grad(), counting_bar("features", sum(map(len, parts)), progress) as count:
        for part in parts:
            z = function(part)
            if not isinstance(z, Tensor) or z.dim() < 2 or len(z) != len(part):
                got = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
                raise ConfigError(f"{who} must give features [n, ...]; for n = {len(part)} it gave {got}.")
            found.append(z.to("cpu", torch.get_default_dtype()))
            count(len(part))
    return torch.cat(found)
