"""Augmentation: every image is a moved, mirrored, lit form of its own, labels and draws stay, and only in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from problems import assert_close
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.cli import evaluating, main, training
from quickstudy.errors import ConfigError
from quickstudy.experiments.request import Request, open_tasks
from quickstudy.tasks.images.augment import Augmentation
from quickstudy.tasks.images.folders import from_folder


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(root: Path, mode: str = "RGB", side: int = 16) -> Path:
    """Three classes of noise for each split, six images each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for k in range(3):
            folder = root / split / f"{split}{k}"
            folder.mkdir(parents=True)
            for i in range(6):
                shape = (side, side, 3) if mode == "RGB" else (side, side)
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def crops(image: Tensor, shift: int, flip: bool) -> list[Tensor]:
    """All that moving and mirroring can make of an image [channels, side, side], by padding and cutting."""
    side = image.shape[-1]
    wide = F.pad(image[None], (shift,) * 4, mode="replicate")[0]
    places = range(2 * shift + 1)
    found = [wide[:, a : a + side, b : b + side] for a in places for b in places]
    return found + ([one.flip(2) for one in found] if flip else [])


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_a_crop_of_itself_padded_by_its_edges(flip):
    x = torch.rand(200, 2, 5, 5)
    found = Augmentation(shift=1, flip=flip)(x, drawn())
    kinds = [
        [torch.equal(z, crop) for crop in crops(one, 1, flip)].index(True) for one, z in zip(x, found, strict=True)
    ]
    counts = np.bincount(kinds, minlength=18 if flip else 9)
    assert (counts > 0).all() and counts.max() < 5 * 200 / len(counts)


def test_images_need_not_be_square():
    x = torch.rand(4, 1, 6, 3)
    assert Augmentation(shift=2, flip=True, light=0.1)(x).shape == x.shape
    assert torch.equal(Augmentation(shift=0)(x), x)


def test_light_keeps_the_mean_and_changes_all_channels_alike():
    """Contrast c and brightness l are drawn per image, so x' = mean + c (x - mean) + l can be solved for both."""
    x = 0.4 + 0.2 * torch.rand(2000, 3, 6, 6, dtype=torch.float64)  # nothing is cut off at 0 and 1
    found = Augmentation(shift=0, light=0.2)(x, drawn())
    flat, lit = x.flatten(1), found.flatten(1)
    mean = flat.mean(1, keepdim=True)
    contrast = ((lit - lit.mean(1, keepdim=True)) * (flat - mean)).sum(1) / ((flat - mean) ** 2).sum(1)
    brightness = lit.mean(1) - mean[:, 0]
    assert_close(lit, mean + contrast[:, None] * (flat - mean) + brightness[:, None], 1e-9)
    for value, middle, half in ((contrast, 1.0, 0.2), (brightness, 0.0, 0.1)):
        assert float((value - middle).abs().max()) <= half and float((value - middle).abs().max()) > 0.98 * half
        error = half / 3**0.5 / 2000**0.5  # of the mean of a uniform distribution
        assert abs(float(value.mean()) - middle) < 4 * error
    assert float(Augmentation(light=0.9)(torch.rand(9, 3, 4, 4)).min()) >= 0


def test_labels_and_draws_are_those_without(tmp_path):
    plain, changed = (
        from_folder(photos(tmp_path / str(a)), "train", 2, 1, 2, size=16, augment=a) for a in (False, True)
    )
    for source in (plain, plain.pooled()), (changed, changed.pooled()):
        assert all(torch.equal(s.sample(2, drawn(3)).query.x, s.sample(2, drawn(3)).query.x) for s in source)
    assert not torch.equal(changed.sample(2, drawn(3)).query.x, changed.sample(2, drawn(4)).query.x)
    one, other = plain.sample(3, drawn(1)), changed.sample(3, drawn(1))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.y, b.y) and a.x.shape == b.x.shape and not torch.equal(a.x, b.x)
        assert float(b.x.min()) >= 0 and float(b.x.max()) <= 1
        assert abs(float((a.x - b.x).mean())) < 0.05
    assert torch.equal(changed.rows(3, drawn(1))[0], plain.rows(3, drawn(1))[0])
    assert torch.equal(changed.pooled().sample(2, drawn(1)).query.y, plain.pooled().sample(2, drawn(1)).query.y)
    assert changed.describe()["augment"] == "Augmentation(shift=2, flip=True, light=0.2)"
    assert torch.equal(changed.examples, plain.examples) and "augment" not in plain.describe()


def test_grey_images_are_moved_only(tmp_path):
    tasks = from_folder(photos(tmp_path, "L"), "train", 3, 2, 4, size=16, augment=True)
    assert tasks.augment == Augmentation(shift=2)
    episode, rows = tasks.sample(1, drawn()), tasks.rows(1, drawn())
    for z, row in zip(episode.query.x[0], rows[1].flatten(), strict=True):
        assert any(torch.equal(z, crop) for crop in crops(tasks.examples[row] / 255, 2, False))
    own = from_folder(tmp_path, "train", 3, 2, 4, size=16, augment=Augmentation(1, flip=True))
    assert own.augment == Augmentation(1, flip=True)


def test_validation_and_test_images_stay_as_they_are(tmp_path):
    root = photos(tmp_path)
    for split in ("val", "test"):
        with pytest.raises(ConfigError, match=f"the images of the '{split}' split stay as they are"):
            from_folder(root, split, 2, 1, 1, augment=True)
    with pytest.raises(ConfigError, match="'test' split stay as they are"):
        qs.tasks.cifar_fs("test", augment=True)


def test_features_of_images_that_change_are_refused(tmp_path):
    tasks = from_folder(photos(tmp_path), "train", 2, 1, 1, augment=True)
    with pytest.raises(ConfigError, match="looks at each image once"):
        qs.tasks.features(tasks, nn.Flatten())


def test_impossible_changes_are_refused():
    for wrong in ({"shift": -1}, {"light": 1.0}):
        with pytest.raises(ConfigError, match="shift is 0 or more and light from 0"):
            Augmentation(**wrong)


def test_the_command_line_changes_images_in_training_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    seen, opens = [], open_tasks

    def watched(request: Request, split: str, *more: object) -> object:
        tasks = opens(request, split, *more)
        seen.append((split, tasks.augment is not None))
        return tasks

    for command in (training, evaluating):
        monkeypatch.setattr(command, "open_tasks", watched)
    train = ["train", "photos", "nearestcentroid", "--ways", "2", "--queries", "2", "--size", "16", "--augment"]
    assert main.run([*train, "--iterations", "1", "--meta-batch", "1", "--out", "run"]) == 0
    few = ["--episodes", "4", "--engine", "loop", "--controls", "shuffled_labels"]
    assert main.run(["evaluate", "run", "--split", "train", *few]) == 0
    assert seen == [("train", True), ("val", False), ("test", False), ("train", False)]
    assert "Augmentation(shift=2, flip=True" in (tmp_path / "run" / "config.json").read_text()
    capsys.readouterr()
    for tasks in ("glyphs", "sinusoid"):
        assert main.run(["train", tasks, "maml", "--augment"]) == 2
        assert f"--augment has no effect on '{tasks}'" in capsys.readouterr().err
