"""Omniglot: the same pixels from every layout, the published split, and a download that is checked."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import json
import os
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quickstudy.errors import ConfigError, DataError
from quickstudy.tasks.images.folders import load_image
from quickstudy.tasks.images.omniglot import ARCHIVES, ARRAY_FILE, download_omniglot, omniglot

module = importlib.import_module("quickstudy.tasks.images.omniglot")  # the package's attribute is the function
SHARED = Path(os.environ.get("QUICKSTUDY_SHARED_DATA") or Path(__file__).parents[2].parent / "shared/data") / "omniglot"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data/omniglot is absent")

LETTERS = {  # a small Omniglot; the evaluation zip holds Zeta
    "Alpha/character01": "t",
    "Alpha/character02": "t",
    "Alpha/character03": "v",
    "Zeta/character01": "e",
    "Zeta/character02": "e",
}
small = partial(omniglot, ways=1, shots=1, queries=2)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Neither the user's cache nor their data or proxy is touched; no test sees what another has read."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("QUICKSTUDY_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "BASE_URL", "http://127.0.0.1:9/")  # nobody answers there
    module._read.cache_clear()
    return folder / "quickstudy"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(module, "_letters", lambda: LETTERS)


@pytest.fixture(scope="module")
def unzipped(tmp_path_factory):
    """The small Omniglot as folders of 105x105 1-bit PNG files, 20 drawings per character."""
    root = tmp_path_factory.mktemp("unzipped")
    rng = np.random.default_rng(0)
    for number, name in enumerate(LETTERS):
        folder = root / ("images_evaluation" if name.startswith("Zeta") else "images_background") / name
        folder.mkdir(parents=True)
        for drawer in range(1, 21):
            paper = np.kron(rng.random((15, 15)) < 0.8, np.ones((7, 7), bool))
            Image.fromarray(paper).save(folder / f"{number:04d}_{drawer:02d}.png")
    return root


def zipped(source: Path, target: Path, leave_out: str = "nothing") -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for name in ARCHIVES:
        with zipfile.ZipFile(target / name, "w") as archive:
            archive.writestr("__MACOSX/images_background/Alpha/character01/._0000_01.png", b"a resource fork")
            for path in sorted((source / name.removesuffix(".zip")).rglob("*"), reverse=True):
                if leave_out not in str(path):
                    archive.write(path, path.relative_to(source))
    return target


def as_array(source: Path, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    folders = [next(source.glob(f"*/{name}")) for name in LETTERS]
    images = torch.stack([torch.stack([load_image(p)[0] for p in sorted(f.iterdir())]) for f in folders])
    alphabet, character = zip(*(name.split("/") for name in LETTERS), strict=True)
    np.savez(target / ARRAY_FILE, images=images.numpy(), alphabet=alphabet, character=character)
    return target


# ---- layouts


@pytest.mark.parametrize("below", [".", "omniglot", "omniglot-py", "omniglot/omniglot-py"])
@pytest.mark.parametrize("layout", ["array", "zips", "folders"])
def test_every_layout_and_place_gives_the_same_drawings(tiny, unzipped, tmp_path, layout, below):
    place = tmp_path / below
    if layout == "folders":
        place.mkdir(parents=True, exist_ok=True)
        for folder in unzipped.iterdir():
            (place / folder.name).symlink_to(folder)
    else:
        (zipped if layout == "zips" else as_array)(unzipped, place)
    for split, first in (
        ("train", "images_background/Alpha/character01/0000"),
        ("test", "images_evaluation/Zeta/character01/0003"),
    ):
        tasks = small(split, root=tmp_path, rotations=False)
        options = {key: value for key, value in tasks.preprocess.items() if key != "kind"}
        expected = torch.stack([load_image(unzipped / f"{first}_{d:02d}.png", **options) for d in range(1, 21)])
        assert torch.equal(tasks.examples[:20], expected)


def test_ink_is_255_and_paper_0(tiny, unzipped):
    tasks = small("train", root=unzipped)
    assert tasks.examples.dtype == torch.uint8 and tasks.examples.shape[1:] == (1, 28, 28)
    assert 0.1 < (tasks.examples > 127).float().mean() < 0.3  # a fifth of the small pictures is ink
    assert (tasks.name, tasks.split) == ("omniglot", "train")
    assert tasks.preprocess == {"kind": "image", "size": 28, "channels": 1, "invert": True}


def test_the_array_file_is_preferred(tiny, unzipped, tmp_path):
    as_array(unzipped, tmp_path)
    for name in ARCHIVES:
        (tmp_path / name).write_bytes(b"not a zip")
    assert len(small("val", root=tmp_path).classes) == 1


@pytest.mark.parametrize("below", [".", "omniglot"])
def test_the_environment_names_the_folder_or_its_parent(tiny, unzipped, tmp_path, monkeypatch, below):
    as_array(unzipped, tmp_path / below)
    monkeypatch.setenv("QUICKSTUDY_DATA", str(tmp_path))
    assert len(small("test").classes) == 2


def test_the_folder_data_is_the_default(tiny, unzipped, tmp_path, monkeypatch):
    as_array(unzipped, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert len(small("test").classes) == 2


# ---- splits


def test_rotations_are_new_classes_of_the_train_split_only(tiny, unzipped):
    train = small("train", root=unzipped)
    assert list(train.classes)[1:4] == ["Alpha/character02", "Alpha/character01@90", "Alpha/character02@90"]
    assert len(train.classes) == 8 and len(small("test", root=unzipped).classes) == 2
    assert torch.equal(train.examples[40], train.examples[0].rot90(1, (-2, -1)))


def test_division_1200_trains_on_vinyals_train_and_val(tiny, unzipped):
    train = small("train", root=unzipped, division="1200", rotations=False)
    assert list(train.classes) == [name for name, letter in LETTERS.items() if letter in "tv"]
    assert list(small("test", root=unzipped, division="1200").classes) == ["Zeta/character01", "Zeta/character02"]
    with pytest.raises(ConfigError, match=r"has no 'val' split.*1028 and 172"):
        small("val", root=unzipped, division="1200")


def test_unknown_words_are_refused_with_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match=r"got 'tests'.*Did you mean 'test'"):
        omniglot("tests", root=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown division 'vinyal'.*'vinyals'"):
        omniglot("test", root=tmp_path, division="vinyal")


def test_the_packaged_split_has_the_published_counts():
    letters = list(module._letters().values())
    assert [letters.count(letter) for letter in "tve"] == [1028, 172, 423]


@needs_data
def test_the_packaged_split_is_the_published_one():
    published = json.loads((SHARED / "split_vinyals.json").read_text())
    for split, names in published.items():
        assert set(module._names(split, "vinyals")) == set(names)


# ---- cache


def test_zips_are_read_once_per_process(tiny, unzipped, tmp_path, monkeypatch):
    zipped(unzipped, tmp_path)
    first = small("train", root=tmp_path)
    monkeypatch.setattr(module, "_entries", lambda path: pytest.fail("read again"))
    monkeypatch.setattr(module, "_cache_file", lambda source: pytest.fail("read again"))
    assert small("test", root=tmp_path).examples.shape[0] == 40
    assert torch.equal(small("train", root=tmp_path).examples, first.examples)


@pytest.mark.parametrize("layout", ["zips", "folders"])
def test_the_cache_serves_the_next_process(tiny, unzipped, tmp_path, monkeypatch, cache, layout):
    root = zipped(unzipped, tmp_path) if layout == "zips" else unzipped
    first = small("train", root=root)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]  # and no temporary file
    module._read.cache_clear()
    monkeypatch.setattr(module, "decode_image", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr(module, "read_classes", lambda *_, **__: pytest.fail("read again"))
    again = small("train", root=root)
    assert torch.equal(again.examples, first.examples) and again.classes == first.classes


def test_changed_zips_are_read_again(tiny, unzipped, tmp_path, cache):
    zipped(unzipped, tmp_path)
    small("train", root=tmp_path)
    os.utime(tmp_path / "images_background.zip", (1, 1))
    module._read.cache_clear()
    small("train", root=tmp_path)
    assert len(list(cache.iterdir())) == 2


def test_a_broken_cache_is_read_over(tiny, unzipped, cache):
    first = small("train", root=unzipped)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:500])
    module._read.cache_clear()
    assert torch.equal(small("train", root=unzipped).examples, first.examples)
    assert kept.stat().st_size > 500


def test_a_cache_that_cannot_be_written_is_no_error(tiny, unzipped, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(small("test", root=unzipped).classes) == 2


# ---- bad data


def test_a_corrupt_zip_is_named(tiny, unzipped, tmp_path):
    path = zipped(unzipped, tmp_path) / "images_evaluation.zip"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:300] + bytes(40) + whole[340:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"images_evaluation\.zip.*(Remove|remove)"):
            small("test", root=tmp_path)


@pytest.mark.parametrize("leave_out", ["character02", "0001_07", "Zeta"])
def test_incomplete_data_says_what_lacks(tiny, unzipped, tmp_path, leave_out):
    zipped(unzipped, tmp_path, leave_out)
    with pytest.raises(DataError, match=r"not complete: \d characters have not 20 drawings"):
        small("test", root=tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"pictures": np.zeros(3)},
        {"images": np.zeros((2, 20, 28, 28)), "alphabet": ["a", "a"], "character": ["b", "c"]},
        {"images": np.zeros((2, 20, 32, 32), np.uint8), "alphabet": ["a", "a"], "character": ["b", "c"]},
        {"images": np.zeros((2, 20, 28, 28), np.uint8), "alphabet": ["a"], "character": ["b", "c"]},
        {"images": np.zeros((2, 20, 28, 28), np.uint8), "alphabet": "a", "character": ["b", "c"]},
        {"images": np.array([None]), "alphabet": ["a"], "character": ["b"]},
    ],
    ids=["names", "floats", "size", "lengths", "scalar", "objects"],
)
def test_an_array_file_of_another_kind_is_refused(tmp_path, arrays):
    np.savez(tmp_path / ARRAY_FILE, **arrays)
    with pytest.raises(DataError, match=r"omniglot_28x28_uint8\.npz.*[Rr]emove it"):
        omniglot("test", root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04 and then nothing", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    (tmp_path / ARRAY_FILE).write_bytes(content)
    with pytest.raises(DataError, match="not the Omniglot array file"):
        omniglot("test", root=tmp_path)


def test_a_single_array_under_the_name_is_refused(tmp_path):
    with (tmp_path / ARRAY_FILE).open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="not the Omniglot array file"):
        omniglot("test", root=tmp_path)


def test_a_file_as_root_is_refused(tmp_path):
    (tmp_path / ARRAY_FILE).touch()
    with pytest.raises(DataError, match="is a file"):
        omniglot("test", root=tmp_path / ARRAY_FILE)


# ---- download


@pytest.fixture
def server(unzipped, tmp_path, monkeypatch):
    """The small zips on a local server, which BASE_URL and the checksums point to; yields the served folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = zipped(unzipped, tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    checksums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ARCHIVES}
    monkeypatch.setattr(module, "ARCHIVES", checksums)
    monkeypatch.setattr(module, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_download_fetches_both_files_whole(server, tmp_path, capfd):
    download_omniglot(tmp_path / "new" / "folder")
    assert names_in(tmp_path / "new" / "folder") == sorted(ARCHIVES)
    for name in ARCHIVES:
        assert (tmp_path / "new" / "folder" / name).read_bytes() == (server / name).read_bytes()
    assert capfd.readouterr().out == ""  # progress is no result


def test_omniglot_downloads_what_is_not_there(tiny, server, tmp_path):
    assert len(small("test", root=tmp_path / "root").classes) == 2
    assert names_in(tmp_path / "root" / "omniglot") == sorted(ARCHIVES)


def test_a_second_zip_is_put_beside_the_first(tiny, server, tmp_path):
    (tmp_path / "root").mkdir()
    (server / "images_background.zip").rename(tmp_path / "root" / "images_background.zip")
    assert len(small("test", root=tmp_path / "root").classes) == 2
    assert names_in(tmp_path / "root") == sorted(ARCHIVES)


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    (server / "images_evaluation.zip").write_bytes(b"<html>Please log in to this network</html>")
    with pytest.raises(DataError, match=r"images_evaluation\.zip came with md5") as caught:
        download_omniglot(tmp_path / "root")
    assert names_in(tmp_path / "root") == ["images_background.zip"]
    assert "by hand" in str(caught.value)


def test_an_absent_file_on_the_server_is_told(server, tmp_path):
    (server / "images_background.zip").unlink()
    with pytest.raises(DataError, match=r"images_background\.zip could not be fetched: .*404"):
        download_omniglot(tmp_path / "root")
    assert names_in(tmp_path / "root") == []


def test_without_connection_the_error_says_what_to_do(tmp_path):
    with pytest.raises(DataError) as caught:
        omniglot("train", root=tmp_path / "root")
    message = str(caught.value)
    for needed in (*(module.BASE_URL + name for name in ARCHIVES), str(tmp_path / "root" / "omniglot"), ARRAY_FILE):
        assert needed in message
    for needed in ("images_background and images_evaluation", "omniglot-py", "QUICKSTUDY_DATA"):
        assert needed in message
    assert not (tmp_path / "root").exists()


# ---- the real data


@needs_data
def test_real_splits_have_the_published_counts_and_are_disjoint():
    splits = {split: omniglot(split, root=SHARED, rotations=False).classes for split in ("train", "val", "test")}
    assert [len(names) for names in splits.values()] == [1028, 172, 423]
    assert len(set().union(*splits.values())) == 1623
    assert len(omniglot("train", root=SHARED, rotations=False, division="1200").classes) == 1200


@needs_data
def test_real_rotations_and_episodes():
    tasks = omniglot("train", ways=20, shots=1, queries=5, root=SHARED)
    assert len(tasks.classes) == 4112 and tasks.examples.shape == (4112 * 20, 1, 28, 28)
    episode = tasks.sample(2, torch.Generator().manual_seed(0))
    assert episode.query.x.shape == (2, 100, 1, 28, 28)
    assert 0.02 < episode.query.x.mean() < 0.25  # thin ink on paper


@needs_data
def test_real_zips_give_the_pixels_of_the_array_file(tmp_path):
    chosen = ("Greek/character05", "Korean/character40", "Tengwar/character25")
    for name in ARCHIVES:
        with zipfile.ZipFile(SHARED / name) as whole, zipfile.ZipFile(tmp_path / name, "w") as part:
            for entry in whole.namelist():
                if entry.rsplit("/", 1)[0].endswith(chosen):
                    part.writestr(entry, whole.read(entry))
    drawings = module._read_zips([tmp_path / name for name in ARCHIVES])
    array = module._read((SHARED / ARRAY_FILE,))
    assert set(drawings) == set(chosen)
    assert all(torch.equal(images, array[name]) for name, images in drawings.items())
