"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, each with 600 colour photographs of 32 x 32, split by class.

The images: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. CIFAR-FS draws its classes at random: Bertinetto, Henriques, Torr and
Vedaldi, "Meta-learning with Differentiable Closed-form Solvers", 2019, https://arxiv.org/abs/1805.08136. FC100 splits
by group of classes, so that test classes are unlike those of training: Oreshkin, Rodriguez and Lacoste, "TADAM", 2018,
https://arxiv.org/abs/1805.10123.
"""

from __future__ import annotations

import functools
import itertools
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quickstudy.errors import DataError
from quickstudy.tasks.classes import ClassTasks
from quickstudy.tasks.download import data_folder, fetch
from quickstudy.tasks.images.augment import Augmentation, for_images
from quickstudy.tasks.splits import SPLITS, check_split

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"
ARCHIVE = "cifar-100-binary.tar.gz"
ARRAYS = ("cifar100_train.npz", "cifar100_test.npz")
UNPACKED = "cifar-100-binary"  # the folder in the archive
RECORDS = ("train.bin", "test.bin")  # the files in that folder
LAYOUTS = (ARRAYS, (ARCHIVE,), tuple(f"{UNPACKED}/{name}" for name in RECORDS))  # in order of preference
COUNTS = (500, 100)  # images of a class in the two parts
EACH = sum(COUNTS)
SIDE = 32
IMAGE = (3, SIDE, SIDE)
RECORD = 2 + 3 * SIDE**2  # bytes: group, class, pixels
PREPROCESS = {"kind": "image", "size": SIDE, "channels": 3, "invert": False}
GROUPS = {  # group: classes; split of each class in CIFAR-FS (t train, v val, e test); split of the group in FC100
    "aquatic_mammals": ("beaver dolphin otter seal whale", "vtvte", "e"),
    "fish": ("aquarium_fish flatfish ray shark trout", "tvtvt", "t"),
    "flowers": ("orchid poppy rose sunflower tulip", "teett", "t"),
    "food_containers": ("bottle bowl can cup plate", "ttttt", "t"),
    "fruit_and_vegetables": ("apple mushroom orange pear sweet_pepper", "tttte", "t"),
    "household_electrical_devices": ("clock keyboard lamp telephone television", "ttvev", "t"),
    "household_furniture": ("bed chair couch table wardrobe", "ettee", "t"),
    "insects": ("bee beetle butterfly caterpillar cockroach", "tvvtt", "e"),
    "large_carnivores": ("bear leopard lion tiger wolf", "tettt", "v"),
    "large_man-made_outdoor_things": ("bridge castle house road skyscraper", "ttttt", "t"),
    "large_natural_outdoor_scenes": ("cloud forest mountain plain sea", "tttev", "t"),
    "large_omnivores_and_herbivores": ("camel cattle chimpanzee elephant kangaroo", "vvett", "v"),
    "medium_mammals": ("fox porcupine possum raccoon skunk", "etttt", "e"),
    "non-insect_invertebrates": ("crab lobster snail spider worm", "vtete", "v"),
    "people": ("baby boy girl man woman", "ettee", "e"),
    "reptiles": ("crocodile dinosaur lizard snake turtle", "vtttt", "t"),
    "small_mammals": ("hamster mouse rabbit shrew squirrel", "ttttt", "v"),
    "trees": ("maple_tree oak_tree palm_tree pine_tree willow_tree", "vtttt", "t"),
    "vehicles_1": ("bicycle bus motorcycle pickup_truck train", "etvet", "t"),
    "vehicles_2": ("lawn_mower rocket streetcar tank tractor", "tettv", "t"),
}
LETTERS = dict(zip("tve", SPLITS, strict=True))


class Part(NamedTuple):
    """Training or test images of CIFAR-100; both are used for episodes."""

    images: np.ndarray  # uint8 [n, 3, 32, 32]
    labels: np.ndarray  # [n], indices into the 100 class names in alphabetical order


def cifar_fs(
    split: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    root: str | Path | None = None,
    augment: bool | Augmentation = False,
) -> ClassTasks:
    """CIFAR-FS episodes; examples uint8 [N, 3, 32, 32], 600 per class, 64 / 16 / 20 classes in train / val / test.

    Classes are named "group/class", such as "people/baby"; a group may have classes in several splits. `root` is the
    folder with the data or its parent, by default QUICKSTUDY_DATA, else "data". If it holds no CIFAR-100,
    `download_cifar100` fetches it there (161 MB). `augment` is as in `from_folder`.

    Raises DataError where the data is missing or broken, ConfigError for an unknown split and for `augment` on
    validation or test images.
    """
    return _tasks("cifar_fs", split, (ways, shots, queries), root, augment)


def fc100(
    split: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    root: str | Path | None = None,
    augment: bool | Augmentation = False,
) -> ClassTasks:
    """FC100 episodes. As `cifar_fs`, but with 60 / 20 / 20 classes that share no group: 12 / 4 / 4 groups of five."""
    return _tasks("fc100", split, (ways, shots, queries), root, augment)


def download_cifar100(root: str | Path) -> None:
    """Download the official archive of binary records (161 MB) into the folder `root`; an existing archive is kept.

    It is checked by md5 and appears under its name only when it is complete. Raises DataError where the download fails,
    with instructions for doing it by hand.
    """
    folder = Path(root).expanduser()
    if not (folder / ARCHIVE).exists():
        try:
            fetch(URL, MD5, folder / ARCHIVE)
        except DataError as error:
            raise DataError(_by_hand(folder, str(error))) from error


def _tasks(
    name: str, split: str, sizes: tuple[int, int, int], root: str | Path | None, augment: bool | Augmentation
) -> ClassTasks:
    check_split(split)
    changed = for_images(augment, split, SIDE, 3)
    division = _division(name)
    classes = division[split]
    before = sum(len(division[s]) for s in SPLITS[: SPLITS.index(split)])
    pool = _pool(_located(data_folder(root, "CIFAR-100")), name)
    examples = pool[before * EACH : (before + len(classes)) * EACH]  # a view, so the splits share memory
    starts = torch.arange(len(classes) + 1) * EACH
    return ClassTasks(examples, starts, classes, *sizes, name, split, dict(PREPROCESS), augment=changed)


def _division(name: str) -> dict[str, list[str]]:
    """Split -> classes "group/class"."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for group, (classes, of_class, of_group) in GROUPS.items():
        words = classes.split()
        for word, letter in zip(words, of_class if name == "cifar_fs" else of_group * len(words), strict=True):
            found[LETTERS[letter]].append(f"{group}/{word}")
    return found


def _alphabet() -> list[str]:
    """The 100 classes in the order of their labels."""
    return sorted(itertools.chain.from_iterable(classes.split() for classes, _, _ in GROUPS.values()))


def _located(root: Path) -> tuple[Path, ...]:
    """The paths of the most preferred layout below root, downloaded if there is none."""
    found = _find(root)
    if not found:
        download_cifar100(root if root.name == "cifar100" else root / "cifar100")
    return found or _find(root)


def _find(root: Path) -> tuple[Path, ...]:
    places = [root.parent if root.name == UNPACKED else root, root / "cifar100"]
    candidates = (tuple(place / name for name in layout) for layout in LAYOUTS for place in places)
    return next((paths for paths in candidates if all(path.exists() for path in paths)), ())


@functools.lru_cache(maxsize=1)  # the files are read once for train, val and test, 184 MB
def _pool(source: tuple[Path, ...], name: str) -> Tensor:
    """uint8 [60000, 3, 32, 32]: the classes of train, val and test one after another, 600 images each."""
    parts = _read(source)
    alphabet = _alphabet()
    pool = np.empty((len(alphabet) * EACH, *IMAGE), np.uint8)
    for i, full in enumerate(itertools.chain.from_iterable(_division(name).values())):
        number = alphabet.index(full.partition("/")[2])
        images = [image for part in parts for image in part.images[part.labels == number]]
        # The layouts order images differently. Sort them, so that the same seed draws the same episodes from each.
        pool[i * EACH : (i + 1) * EACH] = sorted(images, key=lambda image: image.tobytes())
    return torch.from_numpy(pool)


def _read(source: Sequence[Path]) -> list[Part]:
    """Both parts. Raises DataError where an image is missing."""
    reading = _read_array if source[0].suffix == ".npz" else _read_records
    parts = _read_archive(source[0]) if len(source) == 1 else [reading(path) for path in source]
    for part, path, count in zip(parts, (source[0], source[-1]), COUNTS, strict=True):
        found = np.bincount(part.labels, minlength=100)
        if len(found) != 100 or (found != count).any():
            raise DataError(
                f"{path} is not complete: each of 100 classes has {count} images in this part of CIFAR-100, here they "
                f"have {found.min()} to {found.max()}. Remove it, then fetch it again."
            )
    return parts


def _read_array(path: Path) -> Part:
    """A part from an array file: images uint8 [n, 32, 32, 3], labels [n], and the class names in label order."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            images, labels, classes = file["images"], file["labels"], file["classes"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a CIFAR-100 array file, or broken: {error}. Replace or remove it.") from error
    fits = images.dtype == labels.dtype == np.uint8 and images.shape == (*labels.shape, SIDE, SIDE, 3)
    if not fits or labels.ndim != 1 or classes.tolist() != _alphabet():
        raise DataError(
            f"{path} should hold uint8 images [n, 32, 32, 3], uint8 labels [n] and the 100 classes of CIFAR-100 in the "
            f"order of the alphabet; its images are {images.dtype} {list(images.shape)}. Replace or remove it."
        )
    return Part(images.transpose(0, 3, 1, 2), labels)


def _read_archive(path: Path) -> list[Part]:
    """The two record files, read from the official archive without unpacking it."""
    found: dict[str, Part] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for entry in archive:
                name = Path(entry.name).name
                if name in RECORDS and (file := archive.extractfile(entry)):
                    found[name] = _records(file.read(), f"{name} in {path}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole archive: {error}. Remove it and fetch it again.") from error
    if len(found) < len(RECORDS):
        raise DataError(f"{path} does not hold {' and '.join(RECORDS)}. Remove it and fetch {URL} again.")
    return [found[name] for name in RECORDS]


def _read_records(path: Path) -> Part:
    try:
        return _records(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the file's permissions.") from error


def _records(data: bytes, name: str) -> Part:
    """A part from binary records: a byte for the group, a byte for the class, then all red, green and blue pixels."""
    records = np.frombuffer(data, np.uint8)[: len(data) // RECORD * RECORD].reshape(-1, RECORD)
    groups, labels = records[:, 0], records[:, 1]
    if len(data) % RECORD or not np.array_equal(groups, _groups()[labels]):
        raise DataError(
            f"{name} should hold records of {RECORD} bytes: the number of a group, of a class in it, and 3 x 32 x 32 "
            "pixels, as CIFAR-100's binary version does. Remove it and fetch it again."
        )
    return Part(records[:, 2:].reshape(-1, *IMAGE), labels)


def _groups() -> np.ndarray:
    """The group number of each label [256]; 255 for labels that do not exist."""
    alphabet, found = _alphabet(), np.full(256, 255, np.uint8)
    for number, (classes, _, _) in enumerate(GROUPS.values()):
        found[[alphabet.index(name) for name in classes.split()]] = number
    return found


def _by_hand(folder: Path, problem: str) -> str:
    return (
        f"No CIFAR-100 was found, and {problem}.\nFetch this file by hand\n  {URL}\nand put it into {folder}. Also "
        f"accepted there: its unpacked folder {UNPACKED} with {' and '.join(RECORDS)}, or the array files "
        f"{' and '.join(ARRAYS)}. The Python version (torchvision's cifar-100-python) is a pickle, which can run any "
        "code, and is not read. If you have the data elsewhere, name its folder by root=, --data or the variable "
        "QUICKSTUDY_DATA."
    )
