"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction", Science 2015,
https://doi.org/10.1126/science.aab3050. The split by characters is that of Vinyals et al., "Matching Networks for One
Shot Learning", 2016, https://arxiv.org/abs/1606.04080.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.tasks.classes import ClassTasks, stack_classes
from quickstudy.tasks.download import console, data_folder, fetch, replacing
from quickstudy.tasks.images.folders import decode_image, read_classes, rotated
from quickstudy.tasks.splits import check_split

BASE_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
ARCHIVES = {  # the official files and their md5
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
ARRAY_FILE = "omniglot_28x28_uint8.npz"
LAYOUTS = ((ARRAY_FILE,), tuple(ARCHIVES), ("images_background", "images_evaluation"))  # in order of preference
PREPROCESS = {"kind": "image", "size": 28, "channels": 1, "invert": True}
DRAWERS = 20
DIVISIONS = {  # division -> split -> letters of omniglot_split.txt
    "vinyals": {"train": "t", "val": "v", "test": "e"},
    "1200": {"train": "tv", "test": "e"},
}


def omniglot(
    split: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    root: str | Path | None = None,
    division: str = "vinyals",
    rotations: bool = True,
) -> ClassTasks:
    """Omniglot episodes; examples uint8 [N, 1, 28, 28], 255 = ink, 20 drawings per character.

    `root` is the folder with the data or its parent, by default QUICKSTUDY_DATA, else "data". If it holds no Omniglot,
    `download_omniglot` fetches it there. `division` "vinyals" has 1028 characters for training, 172 for validation and
    423 for testing; "1200" trains on the first two together. `rotations` adds every training character turned by 90,
    180 and 270 degrees as characters of their own.

    Raises DataError where the data is missing or broken, ConfigError for an unknown division or split.
    """
    names = _names(split, division)
    drawings = _complete(_located(data_folder(root, "Omniglot")))
    classes = {name: drawings[name] for name in names}
    if rotations and split == "train":
        classes = rotated(classes)
    examples, starts = stack_classes(list(classes.values()))
    return ClassTasks(examples, starts, list(classes), ways, shots, queries, "omniglot", split, dict(PREPROCESS))


def download_omniglot(root: str | Path) -> None:
    """Download the two official zip files (16 MB) into the folder `root`; existing files are kept.

    Each is checked by md5 and appears under its name only when it is complete. Raises DataError where a download fails,
    with instructions for doing it by hand.
    """
    folder = Path(root).expanduser()
    for name in ARCHIVES:
        if not (folder / name).exists():
            try:
                fetch(BASE_URL + name, ARCHIVES[name], folder / name)
            except DataError as error:
                raise DataError(_by_hand(folder, str(error))) from error


def _names(split: str, division: str) -> list[str]:
    """Characters "Alphabet/characterNN" of a split."""
    check_split(split)
    if division not in DIVISIONS:
        known = " and ".join(map(repr, DIVISIONS))
        raise ConfigError(f"unknown division {division!r}; there are {known}.{suggest(str(division), DIVISIONS)}")
    if split not in DIVISIONS[division]:
        raise ConfigError(
            f"division {division!r} has no {split!r} split: its 1200 training characters are the 1028 and 172 that "
            "division 'vinyals' trains and validates on. Use division='vinyals' to validate."
        )
    letters = DIVISIONS[division][split]
    return [name for name, letter in _letters().items() if letter in letters]


def _letters() -> dict[str, str]:
    """Character -> t, v or e, from the file beside this one: one line per alphabet, one letter per character."""
    text = resources.files("quickstudy.tasks.images").joinpath("omniglot_split.txt").read_text("utf-8")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {f"{alphabet}/character{i:02d}": letter for alphabet, row in rows for i, letter in enumerate(row, 1)}


def _places(root: Path) -> list[Path]:
    """Folders that may hold Omniglot; torchvision calls its folder omniglot-py."""
    return [root, root / "omniglot", root / "omniglot-py", root / "omniglot" / "omniglot-py"]


def _located(root: Path) -> tuple[Path, ...]:
    """The paths of the most preferred layout below root, downloaded if there is none."""
    found = _find(root)
    if not found:
        begun = (place for place in _places(root) if any((place / name).exists() for name in ARCHIVES))
        download_omniglot(next(begun, root if root.name == "omniglot" else root / "omniglot"))
    return found or _find(root)


def _find(root: Path) -> tuple[Path, ...]:
    candidates = (tuple(place / name for name in layout) for layout in LAYOUTS for place in _places(root))
    return next((paths for paths in candidates if all(path.exists() for path in paths)), ())


def _complete(source: tuple[Path, ...]) -> Mapping[str, Tensor]:
    """Character -> drawings. Raises DataError where one is missing."""
    drawings = _read(source)
    lacking = [name for name in _letters() if len(drawings.get(name, ())) != DRAWERS]
    if lacking:
        raise DataError(
            f"Omniglot in {source[0].parent} is not complete: {len(lacking)} characters have not {DRAWERS} drawings, "
            f"first {lacking[0]!r}. Remove {' and '.join(path.name for path in source)}, then fetch or unzip again."
        )
    return drawings


@functools.lru_cache(maxsize=2)  # the files are read once for train, val and test
def _read(source: tuple[Path, ...]) -> Mapping[str, Tensor]:
    """Character -> uint8 [drawers, 1, 28, 28], 255 = ink."""
    if source[0].suffix == ".npz":
        return _read_array(source[0])
    kept = _cache_file(source)
    if kept.exists():
        with contextlib.suppress(DataError):  # ignore a broken cache
            return _read_array(kept)
    drawings = _read_zips(source) if source[0].suffix == ".zip" else _read_folders(source)
    with contextlib.suppress(OSError, ValueError):  # not writable; or unequal numbers of drawings
        _write_array(kept, drawings)
    return drawings


def _read_array(path: Path) -> dict[str, Tensor]:
    """The array file: images [characters, drawers, 28, 28] with 255 = paper, alphabet and character [characters]."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            images, alphabets, characters = file["images"], file["alphabet"], file["character"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not the Omniglot array file, or broken: {error}. Replace or remove it.") from error
    shapes = [images.shape[1:], alphabets.shape, characters.shape]
    if images.dtype != np.uint8 or shapes != [(DRAWERS, 28, 28), images.shape[:1], images.shape[:1]]:
        raise DataError(
            f"{path} should hold uint8 images [characters, {DRAWERS}, 28, 28] and an alphabet and character for each; "
            f"its images are {images.dtype} {list(images.shape)}. Replace or remove it."
        )
    ink = torch.from_numpy(255 - images)[:, :, None]
    return {f"{a}/{c}": ink[i] for i, (a, c) in enumerate(zip(alphabets, characters, strict=True))}


def _write_array(path: Path, drawings: Mapping[str, Tensor]) -> None:
    names = [name.split("/") for name in drawings]
    images = 255 - np.stack([of_class[:, 0].numpy() for of_class in drawings.values()])
    with replacing(path) as file:
        np.savez_compressed(file, images=images, alphabet=[a for a, _ in names], character=[c for _, c in names])


def _read_zips(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Entries images_x/Alphabet/characterNN/IIII_DD.png, pixels as `load_image` would give them."""
    drawings: dict[str, list[Tensor]] = {}
    for path in paths:
        for name, data in _entries(path):
            pixels = decode_image(data, f"{path}: {name}", size=28, channels=1, invert=True)
            drawings.setdefault("/".join(name.split("/")[-3:-1]), []).append(pixels)
    return {name: torch.stack(of_class) for name, of_class in drawings.items()}


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the PNG files in a zip, sorted by name: drawer after drawer."""
    try:
        with zipfile.ZipFile(path) as archive:
            pictures = (name for name in archive.namelist() if name.endswith(".png"))
            names = sorted(name for name in pictures if "/._" not in name)  # what macOS adds to a zip
            for name in track(names, f"reading {path.name}", console=console(), transient=True):
                yield name, archive.read(name)
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is not a whole zip file: {error}. Remove it and fetch it again.") from error


def _read_folders(paths: Iterable[Path]) -> dict[str, Tensor]:
    parts = [read_classes(path, size=28, channels=1, invert=True) for path in paths]
    return {name: images for part in parts for name, images in part.items()}


def _cache_file(source: Sequence[Path]) -> Path:
    """Where the array of these zips or folders is cached: a new name whenever a file's size or time changes."""
    files = sorted(file for path in source for file in ([path] if path.is_file() else path.rglob("*.png")))
    states = [(file.parts[-3:], file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr(states).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "quickstudy", f"omniglot-{key}.npz")


def _by_hand(folder: Path, problem: str) -> str:
    urls = "\n".join(f"  {BASE_URL}{name}" for name in ARCHIVES)
    return (
        f"No Omniglot was found, and {problem}.\nFetch these two files by hand\n{urls}\nand put them into {folder}. "
        "Also accepted there: the unzipped folders images_background and images_evaluation (with "
        f"Alphabet/characterNN/*.png in them), torchvision's folder omniglot-py, or the array file {ARRAY_FILE}. "
        "If you have the data elsewhere, name its folder by root=, --data or the variable QUICKSTUDY_DATA."
    )
