"""Images from files: single images, folders of class folders, and episodes drawn from such folders."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from torch import Tensor

from quickstudy.errors import ConfigError, DataError, suggest
from quickstudy.tasks.classes import ClassTasks, stack_classes
from quickstudy.tasks.images.augment import Augmentation, for_images
from quickstudy.tasks.splits import SPLITS, by_name, check_disjoint, check_split

EXTENSIONS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm")
# Pillow would also open formats that start other programs (EPS runs Ghostscript). A data set does not need those.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
ADVICE = " Open it in a picture viewer and save it again as PNG or JPEG, or remove it."
NAMED = 5  # broken files listed by name in one message
TOGETHER = "Put all images of a class into one split, or give one folder of all classes and it is split by class."


def load_image(path: str | Path, *, size: int = 28, channels: int | None = 1, invert: bool = False) -> Tensor:
    """One image as uint8 [channels, size, size], 255 = white; with `invert`, 255 = black (ink).

    The whole image is resized to a square (Lanczos). EXIF orientation is applied, transparent parts become white, and
    16-bit grey is scaled to 8 bits. `channels` is 1 (grey), 3 (RGB) or None (3 if the image has any colour, else 1).
    Animations give their first frame.

    Raises DataError for a file that is missing or not a complete image, ConfigError for other sizes or channels.
    """
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"there is no image {path}. Check the path.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, an image was expected. Give the path of one file in it.") from error
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}. Check the file's permissions.") from error
    return decode_image(data, str(path), size=size, channels=channels, invert=invert)


def decode_image(data: bytes, name: str, *, size: int, channels: int | None, invert: bool) -> Tensor:
    """`load_image` for the bytes of a file; `name` names it in errors."""
    _check_options(size, channels)
    picture = _decoded(data, name)
    if channels is None:
        channels = 3 if _has_colour(picture) else 1
    square = picture.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(square)).reshape(size, size, channels).permute(2, 0, 1).contiguous()
    return 255 - values if invert else values


def read_classes(
    folder: str | Path, *, size: int = 28, channels: int | None = None, invert: bool = False
) -> dict[str, Tensor]:
    """A folder of class folders as class name -> uint8 [n, channels, size, size], classes and files sorted by name.

    A class folder may lie deeper: `Greek/alpha/*.png` is the class "Greek/alpha". Hidden files and files without an
    image extension are ignored. `channels=None` gives 3 if any image has colour, else 1.

    Raises DataError for a class folder without images and for broken images (one error lists them), ConfigError for
    other sizes or channels.
    """
    _check_options(size, channels)
    files = _some_classes(Path(folder).expanduser())
    return _read(files, size, channels or _channels_of([files]), invert)


def from_folder(
    path: str | Path,
    split: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    size: int = 28,
    channels: int | None = None,
    invert: bool = False,
    rotations: bool = False,
    augment: bool | Augmentation = False,
) -> ClassTasks:
    """Episodes from a folder of class folders (see `read_classes`); examples uint8 [N, channels, size, size].

    If `path` has subfolders train, val and test, they are the splits and must not share classes. Otherwise the classes
    are split 60/20/20 by a hash of their names: the same on every machine, and nearly the same after adding a class.
    `channels=None` looks at all splits, so that one network fits all of them. `rotations` adds the classes turned by
    90, 180 and 270 degrees to the train split. This suits symbols, but is wrong where turning keeps the class.

    `augment` changes training images slightly, anew in every episode, with draws from the episode's generator. Images
    are moved by up to an eighth of the side, and colour images are also mirrored and lit differently. An
    `Augmentation(shift, flip, light)` sets other limits. Grey images are not mirrored, because that turns characters
    into other ones.

    Raises DataError for missing, broken or too few images or classes and for classes in two splits, ConfigError for an
    unknown split, for other sizes or channels and for `augment` on validation or test images.
    """
    check_split(split)
    _check_options(size, channels)
    root = Path(path).expanduser()
    splits = _splits(root)
    turned = rotations and split == "train"
    _check_enough(root, splits, split, ways, turns=4 if turned else 1)
    channels = channels or _channels_of(list(splits.values()))
    classes = _read(splits[split], size, channels, invert)
    if turned:
        classes = rotated(classes)
    examples, starts = stack_classes(list(classes.values()))
    preprocess = {"kind": "image", "size": size, "channels": channels, "invert": invert}
    changed = for_images(augment, split, size, channels)
    name = root.resolve().name
    return ClassTasks(examples, starts, list(classes), ways, shots, queries, name, split, preprocess, augment=changed)


def rotated(classes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classes [n, channels, size, size] and, as new classes "name@90", "@180", "@270", their rotations.

    Rotations are anticlockwise. Turned symbols are different symbols, so this gives four times as many classes, as is
    usual for Omniglot.
    """
    turns = {f"{name}@{90 * k}": images.rot90(k, (-2, -1)) for k in (1, 2, 3) for name, images in classes.items()}
    return {**classes, **turns}


def _check_options(size: int, channels: int | None) -> None:
    if size < 1:
        raise ConfigError(f"size is the side of the square picture in pixels, at least 1, got {size}.")
    if channels not in (1, 3, None):
        raise ConfigError(f"channels must be 1 (grey), 3 (RGB) or None (decide from the pictures), got {channels}.")


def _decoded(data: bytes, name: str) -> Image.Image:
    """The image as a viewer shows it, 8-bit grey ("L") or "RGB"."""
    if not data:
        raise DataError(f"{name} is an empty file. Copy it again, or remove it.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _on_white(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image of a known kind ({', '.join(FORMATS)}).{ADVICE}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} has too many pixels to be opened safely: {error}{ADVICE}") from error
    except Exception as error:  # Pillow's decoders raise almost any error type on broken bytes
        raise DataError(f"{name} is a broken image: {error}.{ADVICE}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        image = _eight_bit(image)
    if not image.has_transparency_data:
        return image.convert("L" if image.mode in GREY_MODES else "RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled by the full 16-bit range, so that the images of one set stay comparable."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values, {values.min()} to {values.max()}, are neither 8- nor 16-bit")
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))


def _has_colour(picture: Image.Image) -> bool:
    """Whether red, green and blue differ anywhere: many grey scans are stored as RGB."""
    red, green, blue = picture.convert("RGB").split()
    return any(ImageChops.difference(red, other).getbbox() is not None for other in (green, blue))


def _file_has_colour(path: Path) -> bool:
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            if header.mode in GREY_MODES:  # known without decoding the pixels
                return False
        return _has_colour(_decoded(data, str(path)))
    except Exception:  # a broken image: `_read` reports it if it is in the split that is read
        return False


def _channels_of(splits: Sequence[Mapping[str, Sequence[Path]]]) -> int:
    paths = (path for files in splits for of_class in files.values() for path in of_class)
    return 3 if any(map(_file_has_colour, paths)) else 1


def _children(folder: Path) -> list[Path]:
    """The entries of a folder sorted by name, without hidden ones and those that macOS adds to zip files."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}. Give a folder that holds one folder of images per class.")
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from error
    return sorted(entries, key=lambda entry: entry.name)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _children(folder) if entry.is_dir()]


def _images(folder: Path) -> list[Path]:
    return [entry for entry in _children(folder) if entry.suffix.lower() in EXTENSIONS and not entry.is_dir()]


def _class_files(folder: Path, prefix: str = "") -> dict[str, list[Path]]:
    """Class name -> its image files, for all class folders below `folder`."""
    found: dict[str, list[Path]] = {}
    for child in _folders(folder):
        images, folders, name = _images(child), _folders(child), prefix + child.name
        if images and folders:
            raise DataError(f"{child} holds both images and folders: is it one class or many? Move one of them away.")
        if not images and not folders:
            raise DataError(f"class folder {child} holds no images ({', '.join(EXTENSIONS)}). Fill or remove it.")
        found |= {name: images} if images else _class_files(child, name + "/")
    return dict(sorted(found.items()))


def _some_classes(folder: Path) -> dict[str, list[Path]]:
    files = _class_files(folder)
    if files:
        return files
    loose = len(_images(folder))
    hint = f" The images that lie directly in it ({loose}) belong into such folders." if loose else ""
    raise DataError(f"{folder} holds no class folders. Give a folder that holds one folder of images per class.{hint}")


def _read(files: Mapping[str, Sequence[Path]], size: int, channels: int, invert: bool) -> dict[str, Tensor]:
    images: dict[str, list[Tensor]] = {name: [] for name in files}
    broken: list[str] = []
    for name, paths in files.items():
        for path in paths:
            try:
                images[name].append(load_image(path, size=size, channels=channels, invert=invert))
            except DataError as error:
                broken.append(str(error).removesuffix(ADVICE))
    if broken:
        more = f"\n  and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        listed = "\n  ".join(broken[:NAMED]) + more
        raise DataError(f"images that cannot be used: {len(broken)}. Repair or remove them:\n  {listed}")
    return {name: torch.stack(of_class) for name, of_class in images.items()}


def _splits(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Split -> class -> image files."""
    folders = [entry.name for entry in _folders(root)]
    given = [split for split in SPLITS if split in folders]
    # A single such name among others is a class, as with images of a train, a bus and a car.
    if len(given) >= 2 or len(given) == len(folders) == 1:
        splits = {split: _class_files(root / split) for split in given}
        check_disjoint("class", "classes", {str(root / split): files for split, files in splits.items()}, TOGETHER)
        return splits
    return by_name(_some_classes(root))


def _check_enough(root: Path, splits: Mapping[str, Mapping[str, object]], split: str, ways: int, turns: int) -> None:
    """Raise DataError where the split is missing or has too few classes. `turns` is 4 with rotations as classes."""
    counts = ", ".join(f"{len(files)} {name}" for name, files in splits.items())
    if split not in splits:
        others = [entry.name for entry in _folders(root)]
        hint = suggest(split, others)
        raise DataError(f"{root} has no folder {split!r}; its classes are: {counts}. Add the folder.{hint}")
    if turns * len(splits[split]) < ways:
        raise DataError(
            f"split {split!r} of {root} has {turns * len(splits[split])} classes, but ways={ways} were asked for "
            f"(classes: {counts}). Lower ways, add classes, or sort them into folders train, val and test yourself."
        )
