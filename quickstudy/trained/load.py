"""Files of trained learners and of predictors, read back."""

from __future__ import annotations

import os
from typing import Any

from quickstudy.base import files
from quickstudy.nn.parameters import part
from quickstudy.tasks.texts.sentences import opened
from quickstudy.trained.adapting import Basis, Learned
from quickstudy.trained.learner_file import build_extractor, build_learner, check_theta
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.readers.known import check_kind
from quickstudy.trained.support import unpack_support
from quickstudy.trained.trained import Trained


def load(path: str | os.PathLike, *, text_encoder: Any = None, **fields: Any) -> Trained | Predictor:
    """Read a `.qs` file (of `Trained.save` or `Predictor.save`), or the learner of a run folder.

    `fields` are the learner's fields that a file cannot hold, such as a model of your own: load(path, model=MyNet()).
    If it was trained on features (`qs.tasks.features`) of a module of your own, pass that as `extractor`. Weights come
    from the file. `text_encoder` is the function that turned texts into vectors (`qs.tasks.from_text`), if it was your
    own; without it the loaded object takes only vectors.

    Raises FileFormatError for a file that is not what it claims to be, for a missing field, and for a kind of input
    that only a later version reads. Nothing is ever unpickled.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "learner.qs")
    kind = files.kind_of(path)
    tensors, header = files.read_tensors(path, "predictor" if kind == "predictor" else "trained")
    check_kind(path, header["preprocess"], header.get("quickstudy", "0"))
    learner = build_learner(path, header, tensors, fields)
    # safetensors sorts the names. Restore theta's order, because optimizer state is matched to theta by position.
    theta = part(tensors, "theta.")
    theta = {name: theta[name] for name in header.get("names", theta)}
    check_theta(path, learner, theta)
    extractor = build_extractor(path, header, tensors, fields)
    asked = None if text_encoder is None else opened(text_encoder)
    if kind == "predictor":
        phi = files.unpack(header["phi"], tensors, type(learner).__module__)
        classes = None if header["classes"] is None else tuple(header["classes"])
        kept = header.get("support")
        shown = unpack_support(kept, tensors, type(learner).__module__) if kept else None
        basis = Basis(learner, theta, header["preprocess"], extractor, asked)
        return Predictor(basis, Learned(learner, phi, classes, header.get("axis", 1)), shown)
    best = (theta, *files.unpack(header["best"], tensors)) if "best" in header else ()
    return Trained(learner, theta, header["tasks"], header["preprocess"], best, extractor, asked)
