"""Images: a support set is a folder with a subfolder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quickstudy.errors import DataError
from quickstudy.tasks.images.folders import EXTENSIONS, load_image, read_classes
from quickstudy.trained.readers.reader import Asked, Preprocess, Reader, Shown, as_given, unchanged


def _support(preprocess: Preprocess, path: Path, classification: bool) -> Shown:
    if not path.is_dir():
        raise DataError(f"there is no folder {str(path)!r}. SUPPORT is a folder with a subfolder of images per class.")
    classes = read_classes(path, **_options(preprocess))
    names = [name for name, images in classes.items() for _ in range(len(images))]
    return Shown(torch.cat(list(classes.values())), names)


def _inputs(preprocess: Preprocess, path: Path) -> Asked:
    """An image, or all images in a folder and its subfolders."""
    paths = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in EXTENSIONS] if path.is_dir() else [path]
    if not paths:
        raise DataError(f"the folder {str(path)!r} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    return Asked(torch.stack([load_image(p, **_options(preprocess)) for p in paths]), [str(p) for p in paths])


def _options(preprocess: Preprocess) -> dict[str, Any]:
    return {key: preprocess[key] for key in ("size", "channels", "invert")}


IMAGES = Reader(_support, _inputs, as_given, unchanged, unchanged)
