"""Pictures from files: what the eye sees is what the tensor holds, and every bad file is named."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.images.folders import from_folder, load_image, read_classes, rotated
from quickstudy.tasks.splits import SPLITS, by_name


def corner(mode: str = "L", dark: object = 0, light: object = 255) -> Image.Image:
    """A 56x56 picture, light with one dark quarter at the top left: turning or mirroring it shows."""
    image = Image.new(mode, (56, 56), light)  # type: ignore[arg-type]
    image.paste(dark, (0, 0, 28, 28))  # type: ignore[arg-type]
    return image


def saved(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (corner() if image is None else image).save(path, **options)
    return path


def class_folders(root: Path, names: list[str], count: int = 2, mode: str = "L") -> Path:
    for i, name in enumerate(names):
        for j in range(count):
            saved(root / name / f"{j}.png", Image.new(mode, (9, 9), (i * 7) % 256 if mode == "L" else (i, 0, 99)))
    return root


def quarters(image: torch.Tensor) -> list[int]:
    """First channel at the middle of the quarters: top left, top right, bottom left, bottom right."""
    return [int(image[0, row, column]) for row in (4, 12) for column in (4, 12)]


# ---- one picture


def test_the_dark_quarter_is_where_it_was_and_white_is_255(tmp_path):
    image = load_image(saved(tmp_path / "a.png"), size=16)
    assert image.dtype == torch.uint8 and image.shape == (1, 16, 16) and image.is_contiguous()
    assert quarters(image) == [0, 255, 255, 255]


def test_invert_makes_ink_255(tmp_path):
    path = saved(tmp_path / "a.png")
    assert torch.equal(load_image(path, invert=True), 255 - load_image(path))


def test_the_whole_picture_is_squeezed_not_cut(tmp_path):
    wide = corner().resize((300, 20), Image.Resampling.NEAREST)
    assert quarters(load_image(saved(tmp_path / "a.png", wide), size=16)) == [0, 255, 255, 255]


def test_shrinking_averages_fine_stripes(tmp_path):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (280, 140)))
    inner = load_image(saved(tmp_path / "a.png", stripes))[:, 2:-2, 2:-2].int()
    assert int((inner - 128).abs().max()) <= 6


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("bit.png", corner("1", 0, 1)),
        ("bit.tif", corner("1", 0, 1)),
        ("grey.bmp", corner()),
        ("grey_alpha.png", corner("LA", (0, 255), (255, 255))),
        ("rgb.png", corner("RGB", (0, 0, 0), (255, 255, 255))),
        ("rgb.webp", corner("RGB", (0, 0, 0), (255, 255, 255))),
        ("rgba.png", corner("RGBA", (0, 0, 0, 255), (255, 255, 255, 255))),
        ("palette.gif", corner().convert("P")),
        ("palette.png", corner().convert("P")),
        ("cmyk.tif", corner("CMYK", (0, 0, 0, 255), (0, 0, 0, 0))),
        ("cmyk.jpg", corner("CMYK", (0, 0, 0, 255), (0, 0, 0, 0))),
        ("sixteen.png", Image.fromarray(np.asarray(corner()).astype(np.uint16) * 257)),
        ("sixteen.tif", Image.fromarray(np.asarray(corner()).astype(np.uint16) * 257)),
        ("thirty-two.tif", Image.fromarray(np.asarray(corner()).astype(np.int32) * 257)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_shows_the_same_picture(tmp_path, name, image, channels):
    shown = load_image(saved(tmp_path / name, image), size=16, channels=channels)
    assert shown.shape == (channels, 16, 16)
    assert (torch.tensor(quarters(shown)) - torch.tensor([0, 255, 255, 255])).abs().max() <= 3  # jpeg rounds


def test_sixteen_bits_are_scaled_by_their_range_not_cut(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    assert load_image(saved(tmp_path / "a.png", grey)).unique().tolist() == [128]


@pytest.mark.parametrize("value", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 70_000, np.int32)])
def test_values_without_a_known_range_are_refused(tmp_path, value):
    with pytest.raises(DataError, match="neither 8- nor 16-bit"):
        load_image(saved(tmp_path / "a.tif", Image.fromarray(value)))


@pytest.mark.parametrize(
    "image",
    [
        corner("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
        corner("LA", (0, 255), (0, 0)),
    ],
    ids=["rgba", "la"],
)
def test_transparent_is_white_not_black(tmp_path, image):
    assert quarters(load_image(saved(tmp_path / "a.png", image), size=16)) == [0, 255, 255, 255]


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = corner("P", 0, 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    path = saved(tmp_path / "a.png", image, transparency=1)
    assert quarters(load_image(path, size=16)) == [0, 255, 255, 255]


def test_half_transparent_black_is_grey(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert load_image(saved(tmp_path / "a.png", image)).unique().tolist() == [127]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    """Store the picture as a camera held in that way would, with the tag that says so."""
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Image.Transpose members
    image = Image.fromarray(np.array([[0, 80], [160, 240]], np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
    for turn in undo.get(orientation, []):
        image = image.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = load_image(saved(tmp_path / "a.jpg", image, exif=exif, quality=95), size=16)
    assert (torch.tensor(quarters(shown)) - torch.tensor([0, 80, 160, 240])).abs().max() <= 3


def test_channels_none_looks_for_colour(tmp_path):
    grey = saved(tmp_path / "grey.png", Image.new("RGB", (8, 8), (9, 9, 9)))
    dot = Image.new("RGB", (8, 8), (9, 9, 9))
    dot.putpixel((3, 3), (9, 9, 200))
    assert load_image(grey, channels=None).shape[0] == 1
    assert load_image(saved(tmp_path / "dot.png", dot), channels=None).shape[0] == 3


def test_rgb_channels_come_first_in_order(tmp_path):
    image = load_image(saved(tmp_path / "a.png", Image.new("RGB", (8, 8), (10, 20, 30))), channels=3)
    assert image[:, 0, 0].tolist() == [10, 20, 30]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [corner().convert("P"), Image.new("P", (56, 56), 0)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert quarters(load_image(path, size=16)) == [0, 255, 255, 255]


# ---- bad files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"these are words", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "a.png"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
    ids=["empty", "text", "png header only", "postscript"],
)
def test_a_file_that_is_no_image_is_named(tmp_path, content, words):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_image(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no image .*gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="is a folder"):
        load_image(tmp_path)


noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_truncated_file_is_broken(tmp_path, kind):
    path = saved(tmp_path / f"a.{kind}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=re.escape(str(path))):
        load_image(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["png", "jpg", "gif", "tif", "webp"]), place=st.floats(0, 1), byte=st.integers(0, 255))
def test_damaged_bytes_give_an_image_or_a_data_error(tmp_path, kind, place, byte):
    path = tmp_path / f"a.{kind}"
    noise.save(path, exif=Image.Exif())
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] = byte
    path.write_bytes(data)
    try:
        assert load_image(path).shape == (1, 28, 28)
    except DataError as error:
        assert str(path) in str(error)


def huge_png(path: Path) -> Path:
    """A few bytes that claim 60000 x 60000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_a_decompression_bomb_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"bomb\.png has too many pixels"):
        load_image(huge_png(tmp_path / "bomb.png"))


@pytest.mark.parametrize("options", [{"size": 0}, {"size": -3}, {"channels": 2}, {"channels": 0}])
def test_impossible_options_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        load_image(saved(tmp_path / "a.png"), **options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        read_classes(tmp_path, **options)


# ---- a folder of class folders


def test_classes_and_files_come_sorted_and_others_are_ignored(tmp_path):
    for name, level in (("b/2.png", 2), ("b/10.PNG", 10), ("a/x.jpeg", 7), ("a/.hidden.png", 9)):
        saved(tmp_path / name, Image.new("L", (8, 8), level), format="PNG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    saved(tmp_path / "overview.png")
    classes = read_classes(tmp_path, size=4)
    assert list(classes) == ["a", "b"]
    assert {name: x[:, 0, 0, 0].tolist() for name, x in classes.items()} == {"a": [7], "b": [10, 2]}
    assert classes["b"].shape == (2, 1, 4, 4) and classes["b"].dtype == torch.uint8


def test_nested_class_folders_have_a_slash_in_their_names(tmp_path):
    class_folders(tmp_path, ["Greek/alpha", "Greek/beta", "Latin/a", "digits"])
    assert list(read_classes(tmp_path)) == ["Greek/alpha", "Greek/beta", "Latin/a", "digits"]


def test_one_colour_picture_makes_all_classes_rgb(tmp_path):
    class_folders(tmp_path, ["a", "b"])
    assert {x.shape[1] for x in read_classes(tmp_path).values()} == {1}
    saved(tmp_path / "b" / "9.png", Image.new("RGB", (8, 8), (200, 0, 0)))
    assert {x.shape[1] for x in read_classes(tmp_path).values()} == {3}
    assert {x.shape[1] for x in read_classes(tmp_path, channels=1).values()} == {1}


def test_an_empty_class_folder_is_named(tmp_path):
    class_folders(tmp_path, ["a"])
    (tmp_path / "vacant").mkdir()
    (tmp_path / "vacant" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"vacant holds no images \(\.png"):
        read_classes(tmp_path)


def test_images_and_folders_side_by_side_are_ambiguous(tmp_path):
    class_folders(tmp_path, ["a", "a/inner"])
    with pytest.raises(DataError, match="both images and folders"):
        read_classes(tmp_path)


def test_loose_images_are_no_classes(tmp_path):
    saved(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"no class folders.*directly in it \(1\)"):
        read_classes(tmp_path)


@pytest.mark.parametrize("read", [read_classes, lambda path: from_folder(path, "train")], ids=["read", "from_folder"])
def test_a_folder_that_is_absent_empty_or_a_file_is_refused(tmp_path, read):
    with pytest.raises(DataError, match=r"there is no folder .*gone"):
        read(tmp_path / "gone")
    with pytest.raises(DataError, match="no class folders"):
        read(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        read(saved(tmp_path / "a.png"))


@pytest.mark.parametrize("count", [1, 5, 7])
def test_all_broken_files_are_told_in_one_error(tmp_path, count):
    class_folders(tmp_path, ["a", "b"])
    for i in range(count):
        (tmp_path / "ab"[i % 2] / f"broken{i}.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        read_classes(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"images that cannot be used: {count}.") and len(
        re.findall(r"broken\d\.png", message)
    ) == min(count, 5)
    assert ("and 2 more" in message) == (count == 7)


# ---- episodes from a folder


def test_split_folders_are_the_splits(tmp_path):
    for split, names in (("train", ["a", "b"]), ("val", ["c", "d"]), ("test", ["e", "f", "g"])):
        class_folders(tmp_path / "set" / split, names)
    found = {split: from_folder(tmp_path / "set", split, 2, 1, 1).classes for split in SPLITS}
    assert found == {"train": ["a", "b"], "val": ["c", "d"], "test": ["e", "f", "g"]}


def test_classes_without_split_folders_are_split_60_20_20(tmp_path):
    names = [f"class{i}" for i in range(25)]
    root = class_folders(tmp_path, names)
    found = {split: set(from_folder(root, split, 5, 1, 1).classes) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [15, 5, 5]
    assert set.union(*found.values()) == set(names)


@given(st.integers(0, 60))
def test_the_split_is_exhaustive_and_stable(count):
    files = {f"class{i}": [Path(str(i))] for i in range(count)}
    before = {name: split for split, part in by_name(files).items() for name in part}
    assert before.keys() == files.keys()
    after = by_name(files | {"new": []})
    moved = [name for split, part in after.items() for name in part if before.get(name, split) != split]
    assert len(moved) <= 3
    reordered = by_name(dict(reversed(files.items())))
    assert {name: split for split, part in reordered.items() for name in part} == before


def test_a_class_called_train_is_a_class_beside_others(tmp_path):
    root = class_folders(tmp_path, ["train", "bus", "car", "tram", "ship"])
    assert "train" in {c for split in SPLITS for c in from_folder(root, split, 1, 1, 1).classes}


def test_episodes_name_and_preprocess(tmp_path):
    root = class_folders(tmp_path / "my photos" / "train", ["a", "b", "c"], count=4, mode="RGB").parent
    tasks = from_folder(root, "train", ways=3, shots=1, queries=2, size=12, invert=True)
    episode = tasks.sample(2, torch.Generator().manual_seed(0))
    assert episode.support.x.shape == (2, 3, 3, 12, 12) and episode.query.x.shape == (2, 6, 3, 12, 12)
    assert (tasks.name, tasks.split, tasks.examples.dtype) == ("my photos", "train", torch.uint8)
    assert tasks.preprocess == {"kind": "image", "size": 12, "channels": 3, "invert": True}
    options = {key: value for key, value in tasks.preprocess.items() if key != "kind"}
    assert torch.equal(load_image(root / "train" / "b" / "0.png", **options), tasks.examples[4])


def test_channels_are_the_same_in_every_split(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"])
    class_folders(tmp_path / "test", ["c", "d"], mode="RGB")
    shapes = {from_folder(tmp_path, split, 2, 1, 1).examples.shape[1] for split in ("train", "test")}
    assert shapes == {3}


def test_the_current_folder_has_a_name_too(tmp_path, monkeypatch):
    class_folders(tmp_path / "here" / "train", ["a", "b"])
    monkeypatch.chdir(tmp_path / "here")
    assert from_folder(".", "train", 2, 1, 1).name == "here"


def test_rotations_are_classes_of_the_train_split_only(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"])
    class_folders(tmp_path / "test", ["c", "d"])
    train = from_folder(tmp_path, "train", 8, 1, 1, rotations=True)
    assert list(train.classes) == ["a", "b", "a@90", "b@90", "a@180", "b@180", "a@270", "b@270"]
    assert len(from_folder(tmp_path, "test", 2, 1, 1, rotations=True).classes) == 2


def test_rotations_turn_anticlockwise(tmp_path):
    turned = rotated({"c": load_image(saved(tmp_path / "a.png"), size=16)[None]})
    assert {name: quarters(x[0]).index(0) for name, x in turned.items()} == {"c": 0, "c@90": 2, "c@180": 3, "c@270": 1}


@pytest.mark.parametrize(("given_", "hint"), [("tset", "'test'"), ("training", "'train'"), ("all", "")])
def test_an_unknown_split_is_refused_with_a_suggestion(tmp_path, given_, hint):
    with pytest.raises(ConfigError, match=f"got '{given_}'.*{hint}"):
        from_folder(tmp_path, given_)


def test_too_few_classes_says_how_many_each_split_has(tmp_path):
    root = class_folders(tmp_path, [f"class{i}" for i in range(10)])
    with pytest.raises(DataError, match=r"split 'val' .* has 2 classes, but ways=5.*6 train, 2 val, 2 test"):
        from_folder(root, "val")


def test_an_absent_split_folder_says_which_there_are(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"])
    class_folders(tmp_path / "test", ["c"])
    class_folders(tmp_path / "valid", ["d"])
    with pytest.raises(DataError, match=r"no folder 'val'.*2 train, 1 test.*Did you mean 'valid'"):
        from_folder(tmp_path, "val", 1, 1, 1)


def test_a_class_in_two_splits_is_refused(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"])
    class_folders(tmp_path / "test", ["b", "c"])
    with pytest.raises(DataError, match="class 'b' is in both"):
        from_folder(tmp_path, "train", 2, 1, 1)


def test_too_few_images_in_a_class_are_told_by_class(tmp_path):
    root = class_folders(tmp_path / "train", ["a", "b"]).parent
    with pytest.raises(DataError, match=r"class 'a' .* has 2 examples"):
        from_folder(root, "train", 2, 1, 15)
