"""CIFAR-FS and FC100: the same photographs from every layout, the published splits, and a download that is checked."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib
import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.errors import ConfigError, DataError
from quickstudy.experiments import recipes
from quickstudy.experiments.request import NAMED, Request, open_tasks
from quickstudy.tasks.images.cifar import ARCHIVE, ARRAYS, GROUPS, RECORD, RECORDS, cifar_fs, download_cifar100, fc100

module = importlib.import_module("quickstudy.tasks.images.cifar")
SHARED = Path(os.environ.get("QUICKSTUDY_SHARED_DATA") or Path(__file__).parents[2].parent / "shared/data") / "cifar100"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data/cifar100 is absent")

GROUP_OF = {name: group for group, (names, _, _) in enumerate(GROUPS.values()) for name in names.split()}
ALPHABET = sorted(GROUP_OF)
COUNTS = (3, 2)  # images of a class in the two parts of the small CIFAR-100
small = partial(cifar_fs, ways=5, shots=1, queries=2)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """The user's data and proxy are not touched; no test sees what another has read."""
    monkeypatch.delenv("QUICKSTUDY_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/cifar-100-binary.tar.gz")  # nobody answers there
    module._pool.cache_clear()
    yield
    module._pool.cache_clear()  # the real one is large


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(module, "COUNTS", COUNTS)
    monkeypatch.setattr(module, "EACH", sum(COUNTS))


def part(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [100 * count, 3, 32, 32] and labels of one part, mixed; every image begins with its label."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(100, dtype=np.uint8), count))
    images = rng.integers(0, 256, (len(labels), 3, 32, 32), np.uint8)
    images[:, 0, 0, 0] = labels
    return images, labels


PARTS = [part(count, seed) for seed, count in enumerate(COUNTS)]


def records(images: np.ndarray, labels: np.ndarray) -> bytes:
    groups = np.array([GROUP_OF[name] for name in ALPHABET], np.uint8)[labels]
    return np.concatenate([groups[:, None], labels[:, None], images.reshape(len(images), -1)], 1).tobytes()


def as_records(folder: Path) -> Path:
    folder = folder / "cifar-100-binary"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(RECORDS, PARTS, strict=True):
        (folder / name).write_bytes(records(*values))
    return folder


def as_archive(folder: Path, contents: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    contents = contents or {name: records(*values) for name, values in zip(RECORDS, PARTS, strict=True)}
    with tarfile.open(folder / ARCHIVE, "w:gz", compresslevel=1) as archive:
        for name, data in {"fine_label_names.txt": b"apple\n", **contents}.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return folder


def as_arrays(folder: Path, **changes: object) -> Path:
    """Sorted by class, as the array files are, so in another order than the records."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in zip(ARRAYS, PARTS, strict=True):
        order = labels.argsort()
        arrays = {"images": images[order].transpose(0, 2, 3, 1), "labels": labels[order], "classes": ALPHABET}
        np.savez(folder / name, **{key: np.asarray(value) for key, value in (arrays | changes).items()})
    return folder


LAYOUTS = {"arrays": as_arrays, "archive": as_archive, "records": as_records}


# ---- formats


@pytest.mark.parametrize("below", [".", "cifar100"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_place_gives_the_same_photographs(tiny, tmp_path, layout, below):
    LAYOUTS[layout](tmp_path / below)
    for split in ("train", "val", "test"):
        tasks = small(split, root=tmp_path)
        for i, name in enumerate(tasks.classes):
            number = ALPHABET.index(name.partition("/")[2])
            expected = {image.tobytes() for images, labels in PARTS for image in images[labels == number]}
            found = [image.numpy().tobytes() for image in tasks.examples[tasks.starts[i] : tasks.starts[i + 1]]]
            assert set(found) == expected and found == sorted(found)  # one order, whatever the layout


def test_red_rows_come_first(tiny, tmp_path):
    """A record is all red pixels row by row, then green, then blue: an image with one bright pixel finds it again."""
    images, labels = part(COUNTS[0], 0)
    images[:] = 0
    images[:, 1, 4, 9] = 200
    body = records(images, labels)
    assert body[:RECORD].index(200, 2) == 2 + 32 * 32 + 4 * 32 + 9
    found, _ = module._records(body, "train.bin")
    assert found[:, 1, 4, 9].tolist() == [200] * len(images) and int((found > 0).sum()) == len(images)


def test_examples_are_raw_and_say_how_to_read_an_image(tiny, tmp_path):
    tasks = small("test", root=as_arrays(tmp_path))
    assert tasks.examples.dtype == torch.uint8 and tasks.examples.shape == (20 * 5, 3, 32, 32)
    assert (tasks.name, tasks.split) == ("cifar_fs", "test")
    assert tasks.preprocess == {"kind": "image", "size": 32, "channels": 3, "invert": False}
    x = tasks.sample(2).support.x
    assert x.shape == (2, 5, 3, 32, 32) and x.dtype == torch.float32 and 0 <= x.min() <= x.max() <= 1


def test_the_splits_share_one_memory(tiny, tmp_path):
    as_arrays(tmp_path)
    splits = [small(split, root=tmp_path).examples for split in ("train", "val", "test")]
    assert len({examples.untyped_storage().data_ptr() for examples in splits}) == 1


@pytest.mark.parametrize("below", [".", "cifar100"])
def test_the_environment_names_the_folder_or_its_parent(tiny, tmp_path, monkeypatch, below):
    as_records(tmp_path / below)
    monkeypatch.setenv("QUICKSTUDY_DATA", str(tmp_path))
    assert len(small("test").classes) == 20


@pytest.mark.parametrize("root", [".", "cifar-100-binary"])
def test_the_unpacked_folder_or_its_parent_is_given(tiny, tmp_path, root):
    as_records(tmp_path)
    assert len(small("test", root=tmp_path / root).classes) == 20


def test_record_files_of_something_else_are_left_alone(tmp_path):
    for name in RECORDS:
        (tmp_path / name).write_bytes(b"tokens")
    with pytest.raises(DataError, match="No CIFAR-100 was found"):
        small("test", root=tmp_path)


# ---- splits


@pytest.mark.parametrize(("tasks", "sizes"), [(cifar_fs, [64, 16, 20]), (fc100, [60, 20, 20])])
def test_splits_have_the_published_sizes_and_share_no_class(tiny, tmp_path, tasks, sizes):
    as_arrays(tmp_path)
    splits = [tasks(split, 5, 1, 2, root=tmp_path) for split in ("train", "val", "test")]
    assert [len(s.classes) for s in splits] == sizes
    assert len({name for s in splits for name in s.classes}) == 100
    firsts = [int(s.examples[s.starts[i], 0, 0, 0]) for s in splits for i in range(len(s.classes))]
    assert firsts == [ALPHABET.index(name.partition("/")[2]) for s in splits for name in s.classes]


def test_splits_of_fc100_share_no_group_and_tasks_can_stay_in_one(tiny, tmp_path):
    as_arrays(tmp_path)
    splits = [fc100(split, 5, 1, 2, root=tmp_path) for split in ("train", "val", "test")]
    assert [len(s.groups) for s in splits] == [12, 4, 4]
    assert len({group for s in splits for group in s.groups}) == 20
    inside = splits[2].replace(grouped=True)
    (group,) = inside.facts(1, torch.Generator().manual_seed(0))["group"]
    drawn = inside.sample(1, torch.Generator().manual_seed(0)).support.x[0, :, 0, 0, 0].mul(255).round().int().tolist()
    assert sorted(drawn) == [ALPHABET.index(name) for name in GROUPS[group][0].split()]


def test_unknown_split_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match=r"got 'tests'.*Did you mean 'test'"):
        cifar_fs("tests", root=tmp_path)


@needs_data
def test_the_written_splits_are_the_published_ones():
    published = json.loads((SHARED / "splits.json").read_text())
    divisions = {"cifar_fs": published["splits"]["cifar-fs"], "fc100": published["splits"]["fc100_fine"]}
    for division, splits in divisions.items():
        for split, names in splits.items():
            found = module._division(division)[split]
            assert set(found) == {f"{published_group(published, n)}" for n in names}
    assert module._alphabet() == published["classes"]
    assert {group: names.split() for group, (names, _, _) in GROUPS.items()} == published["coarse"]


def published_group(published: dict, name: str | list[str]) -> str:
    """'group/class' of a class, or of a pair of the two."""
    if isinstance(name, list):
        return "/".join(name)
    return next(f"{group}/{name}" for group, names in published["coarse"].items() if name in names)


# ---- bad data


def test_a_damaged_archive_is_named(tiny, tmp_path):
    path = as_archive(tmp_path) / ARCHIVE
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>", whole[:3000] + bytes(400) + whole[3400:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cifar-100-binary\.tar\.gz.*Remove it"):
            small("test", root=tmp_path)


def test_an_archive_of_other_things_is_refused(tiny, tmp_path):
    as_archive(tmp_path, {"train": b"a pickle"})
    with pytest.raises(DataError, match=r"does not hold train\.bin and test\.bin"):
        small("test", root=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "labels", "groups"])
def test_records_of_another_kind_are_refused(tiny, tmp_path, damage):
    path = as_records(tmp_path) / "test.bin"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-1]
    else:
        data[1 if damage == "labels" else 0] = 200
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"test\.bin should hold records of 3074 bytes"):
        small("test", root=tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_images_are_told(tmp_path, layout):
    LAYOUTS[layout](tmp_path)  # 3 and 2 of a class where there should be 500 and 100
    with pytest.raises(DataError, match=r"not complete: each of 100 classes has 500 images.*have 3 to 3"):
        small("test", root=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.zeros((300, 32, 32, 3))},
        {"images": np.zeros((300, 28, 28, 3), np.uint8)},
        {"labels": np.zeros((300, 1), np.uint8)},
        {"labels": np.zeros(300)},
        {"classes": ALPHABET[::-1]},
        {"classes": np.array([None])},
    ],
    ids=["floats", "size", "columns", "float labels", "order", "objects"],
)
def test_an_array_file_of_another_kind_is_refused(tiny, tmp_path, changes):
    as_arrays(tmp_path, **changes)
    with pytest.raises(DataError, match=r"cifar100_train\.npz.*[Rr]emove it"):
        small("test", root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04 and then nothing", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    for name in ARRAYS:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="not a CIFAR-100 array file"):
        small("test", root=tmp_path)


def test_a_file_as_root_is_refused(tmp_path):
    (tmp_path / ARCHIVE).touch()
    with pytest.raises(DataError, match=r"holds CIFAR-100, but .* is a file"):
        small("test", root=tmp_path / ARCHIVE)


# ---- download


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{ARCHIVE}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The small archive on a local server, which URL and the checksum point to."""
    folder = as_archive(tmp_path / "served")
    monkeypatch.setattr(module, "MD5", hashlib.md5((folder / ARCHIVE).read_bytes()).hexdigest())
    with served(folder) as url:
        monkeypatch.setattr(module, "URL", url)
        yield folder


def test_what_is_not_there_is_downloaded(tiny, server, tmp_path, capfd):
    assert len(small("test", root=tmp_path / "root").classes) == 20
    assert [path.name for path in (tmp_path / "root" / "cifar100").iterdir()] == [ARCHIVE]
    assert capfd.readouterr().out == ""  # progress is no result


def test_an_archive_that_is_there_is_kept(server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(b"mine")
    download_cifar100(tmp_path)
    assert (tmp_path / ARCHIVE).read_bytes() == b"mine"


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    (server / ARCHIVE).write_bytes(b"<html>Please log in to this network</html>")
    with pytest.raises(DataError, match=r"came with md5 .* instead of (.|\n)*by hand") as caught:
        small("test", root=tmp_path / "root")
    assert list((tmp_path / "root" / "cifar100").iterdir()) == []
    assert module.MD5 in str(caught.value)


def test_without_connection_the_error_says_what_to_do(tmp_path):
    with pytest.raises(DataError) as caught:
        fc100("train", root=tmp_path / "root")
    message = str(caught.value)
    for needed in (module.URL, str(tmp_path / "root" / "cifar100"), *ARRAYS, *RECORDS, "QUICKSTUDY_DATA", "pickle"):
        assert needed in message
    assert not (tmp_path / "root").exists()


# ---- command line


@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_the_command_line_opens_them_by_name(tiny, tmp_path, name):
    as_arrays(tmp_path)
    tasks = open_tasks(Request(name, 5, 1, 2, data=str(tmp_path)), "val")
    assert (tasks.name, tasks.split) == (name, "val") and name in NAMED
    learner = recipes.build_learner(qs.R2D2, tasks, {}, {"filters": 4})
    assert learner.meta_loss(learner.init(), qs.Episode(*(qs.Batch(b.x[0], b.y[0]) for b in tasks.sample(1)))) > 0


def test_the_command_line_trains_on_fewer_tasks_at_once(capsys):
    for name, tasks in (("cifar_fs", 4), ("fc100", 4), ("omniglot", 16)):
        with pytest.raises(SystemExit):
            main.run(["train", name, "protonet", "--help"])
        assert f"tasks per update (default: {tasks})" in " ".join(capsys.readouterr().out.split())


# ---- benchmark rows


@pytest.fixture
def cifar_rows(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("benchmarks.reproduce.rows").cifar_rows


@pytest.mark.parametrize("long", [False, True])
def test_every_row_of_the_benchmark_can_be_built(cifar_rows, tmp_path, monkeypatch, long):
    monkeypatch.setattr(module, "COUNTS", (20, 5))
    monkeypatch.setattr(module, "EACH", 25)
    monkeypatch.setattr(sys.modules[__name__], "PARTS", [part(20, 0), part(5, 1)])
    as_arrays(tmp_path)
    found = [row for part_of in cifar_rows(long) for row in part_of]
    assert len({row.name for row in found}) == len(found) == (31 if long else 7)
    for row in found:
        if row.seed == 0:
            tasks = open_tasks(Request("cifar_fs", *row.sizes, data=str(tmp_path)), "train")
            cls = recipes.find_learner(row.learner)[1]
            theta = recipes.build_learner(cls, tasks, dict(row.fields), dict(row.network)).init()
            assert all(torch.isfinite(value).all() for value in theta.values())
            assert [(t.ways, t.queries, t.episodes) for t in row.tests] == [(5, 15, 600)] * len(row.tests)


def test_the_long_row_of_r2d2_has_the_papers_network(cifar_rows):
    filters = {row.network.get("filters") for row in cifar_rows(True)[0] if row.learner == "r2d2"}
    assert filters == {(96, 192, 384, 512)}


# ---- the real data


@needs_data
def test_real_counts_means_and_splits():
    images, labels = module._read_array(SHARED / ARRAYS[0])
    assert images.shape == (50_000, 3, 32, 32) and set(np.bincount(labels)) == {500}
    means = [images[:, channel].mean() for channel in range(3)]
    assert means == pytest.approx([129.304, 124.070, 112.434], abs=5e-4)  # the published 0.5071, 0.4865, 0.4409
    del images
    splits = [cifar_fs(split, root=SHARED.parent) for split in ("train", "val", "test")]
    assert [tuple(s.examples.shape) for s in splits] == [(600 * n, 3, 32, 32) for n in (64, 16, 20)]
    assert len({name for s in splits for name in s.classes}) == 100
    assert splits[0].starts.diff().unique().tolist() == [600]
