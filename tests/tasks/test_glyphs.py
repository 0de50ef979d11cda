"""Generated characters: repeatable, disjoint, and neither trivial nor hopeless. And the example that draws new ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quickstudy as qs
from quickstudy.errors import ConfigError
from quickstudy.tasks.images.folders import read_classes
from quickstudy.tasks.images.glyphs import draw_glyphs

ROOT = Path(__file__).parents[2]


def test_the_same_seed_draws_the_same_and_another_another():
    state = torch.get_rng_state()
    first, again, other = draw_glyphs(5, 3, seed=1), draw_glyphs(5, 3, seed=1), draw_glyphs(5, 3, seed=2)
    assert first.shape == (5, 3, 28, 28)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_drawing_has_ink_and_most_of_it_is_paper():
    ink = (draw_glyphs(60, 10, seed=3) > 127).float().mean((2, 3))
    assert float(ink.min()) > 0.01
    assert float(ink.max()) < 0.5


def test_splits_share_no_drawing():
    pools = [qs.tasks.glyphs(split).examples for split in ("train", "val", "test")]
    assert [len(pool) for pool in pools] == [12000, 2000, 4000]
    seen = [{bytes(image.numpy().tobytes()) for image in pool} for pool in pools]
    assert seen[0].isdisjoint(seen[1] | seen[2])
    assert seen[1].isdisjoint(seen[2])


def test_unknown_split():
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        qs.tasks.glyphs("trian")


def test_pixels_are_neither_trivial_nor_hopeless():
    tasks = qs.tasks.glyphs("test", ways=5, shots=1, queries=5)
    score = qs.evaluate(qs.Trained(qs.NearestCentroid(5), {}), tasks, episodes=400, engine="vmap")
    assert score.mean - score.interval > 0.35
    assert score.mean + score.interval < 0.65


def test_protonet_learns_them():
    torch.manual_seed(0)
    learner = qs.ProtoNet(qs.nn.conv4(channels=1, filters=32, downsample="pool"), ways=20)  # half as wide as usual
    trained = qs.train(learner, qs.tasks.glyphs("train", 20, 1, 5), iterations=300, meta_batch=1, progress=False)
    score = qs.evaluate(trained, qs.tasks.glyphs("test", 5, 1, 15), episodes=200)
    assert score.mean - score.interval > 0.94


def test_the_example_draws_characters_that_can_be_adapted_to(tmp_path):
    script = ROOT / "examples" / "draw_new_glyphs.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, cwd=ROOT, capture_output=True)
    assert len(list((tmp_path / "support").rglob("*.png"))) == 5
    assert len(list((tmp_path / "query").glob("*.png"))) == 10
    assert list(read_classes(tmp_path / "support")) == ["alef", "bira", "cumo", "deth", "esk"]
