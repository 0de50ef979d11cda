"""Texts as vectors of a sentence-embedding model. It reads each text once, and only a head is meta-trained."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.features import frozen, in_batches

BATCH = 256  # texts that the model encodes at once
Encoder = Callable[[list[str]], Any]  # n texts -> [n, d], an array or a tensor


def embedded(texts: Sequence[str], encoder: Encoder, *, progress: bool = False) -> Tensor:
    """The vectors of texts [n, d].

    Raises ConfigError where the encoder gives something else, DataError for NaN or infinity.
    """
    parts = [list(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    found = in_batches(lambda part: _as_tensor(encoder(part)), parts, "the encoder of texts", progress)
    if found.dim() != 2:
        raise ConfigError(f"the encoder of texts must give a vector for each, [n, d]; it gave {list(found.shape)}.")
    if not torch.isfinite(found).all():
        wrong = int((~torch.isfinite(found)).any(1).nonzero()[0])
        raise DataError(f"the encoder gives NaN or infinity for the text {texts[wrong]!r}.")
    return found


def _as_tensor(vectors: Any) -> Any:
    try:
        return vectors if isinstance(vectors, Tensor) else torch.as_tensor(np.asarray(vectors))
    except (TypeError, ValueError):
        return vectors  # `in_batches` says what it should have been


def opened(encoder: Any, *, download: bool = True) -> Encoder:
    """The function that turns texts into vectors, from any form in which users may give an encoder.

    The forms are the name of a sentence_transformers model, an object with a method `encode`, a function, or a module,
    of which a frozen copy in eval mode is used. A model by name is downloaded only with `download`.

    Raises ConfigError for anything else, for a model that cannot be opened, and for a module that normalises by batch.
    """
    if isinstance(encoder, str):
        return _installed(encoder, download)
    if callable(getattr(encoder, "encode", None)):
        return encoder.encode
    if isinstance(encoder, nn.Module):
        return frozen(encoder)
    if not callable(encoder):
        raise ConfigError(
            f"an encoder of texts is a name, or maps a list of texts to vectors [n, d]; got {type(encoder).__name__}."
        )
    return encoder


@functools.lru_cache(maxsize=1)  # models are large and slow to open
def _installed(name: str, download: bool) -> Encoder:
    try:
        library = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ConfigError(
            f"the encoder {name!r} is a model of sentence_transformers, which is not installed: pip install "
            "sentence-transformers. Without it, leave the encoder out (hashed subwords need no model)."
        ) from error
    try:
        return library.SentenceTransformer(name, local_files_only=not download).encode
    except (OSError, ValueError) as error:
        where = "" if download else " on this machine (what a file names is not downloaded)"
        raise ConfigError(
            f"sentence_transformers cannot open the model {name!r}{where}: {str(error).splitlines()[0]}"
        ) from error


def facts(encoder: Any, width: int) -> dict[str, Any]:
    """What a file says about an encoder: its name, its width d, and whether the name is enough to open it."""
    name = encoder if isinstance(encoder, str) else getattr(encoder, "__qualname__", type(encoder).__name__)
    return {"encoder": name, "width": width, "named": isinstance(encoder, str)}


def as_vectors(preprocess: Mapping[str, Any], texts: list[str], encoder: Encoder | None) -> Tensor:
    """Texts as vectors [n, d] of the encoder used in training, which is given or opened by its name.

    Raises ConfigError where the encoder is missing or cannot be opened, DataError where its width has changed.
    """
    name, width = preprocess["encoder"], preprocess["width"]
    if encoder is None and not preprocess["named"]:
        raise ConfigError(
            f"these texts were read by {name!r}, an encoder of your own, which a file cannot hold. Attach it, "
            f"qs.load(path, text_encoder=...), or give vectors [n, {width}]."
        )
    found = embedded(texts, encoder or opened(name, download=False))
    if found.shape[1] != width:
        raise DataError(
            f"the encoder gives vectors of {found.shape[1]} numbers; that of training, {name!r}, gave {width}. Attach "
            "that one."
        )
    return found
