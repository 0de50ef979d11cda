"""Every option of the command line reaches what it is for: seen in theta, in the run folder, in the protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor

from quickstudy.base import files
from quickstudy.cli import main
from quickstudy.tasks.images.glyphs import draw_glyphs
from quickstudy.trained.load import load
from quickstudy.training.checkpoint import read_metrics

SINES = ["--iterations", "2", "--meta-batch", "2", "--val-episodes", "2", "--engine", "loop", "--hidden", "6"]
GLYPHS = ["--iterations", "1", "--meta-batch", "2", "--queries", "2", "--val-episodes", "2", "--ways", "3"]
GLYPHS += ["--filters", "4", "--engine", "loop"]


def trained(out: Path, *argv: str) -> Path:
    assert main.run(["train", *argv, "--out", str(out)]) == 0
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def theta_of(run: Path) -> Tensor:
    return torch.cat([value.flatten() for value in load(run / "learner.qs").theta.values()])


def checkpoint(run: Path) -> dict[str, Any]:
    return files.read_tensors(run / "checkpoint.safetensors", "checkpoint")[1]


# --- train -----------------------------------------------------------------------------------------------------------


def test_clip_bounds_the_step_of_plain_descent(tmp_path):
    """Reptile's outer loop is descent at rate 1, so one iteration moves theta by the clipped gradient itself."""
    one = ["sinusoid", "reptile", *SINES[2:], "--iterations", "1", "--lr", "0.1"]
    start = theta_of(trained(tmp_path / "still", *one, "--outer-lr", "0"))
    free = theta_of(trained(tmp_path / "free", *one)) - start
    clipped = theta_of(trained(tmp_path / "clipped", *one, "--clip", "0.01")) - start
    assert float(free.norm()) > 0.02
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-2)
    slow = theta_of(trained(tmp_path / "slow", *one, "--outer-lr", "0.5")) - start
    torch.testing.assert_close(slow, free / 2, rtol=1e-3, atol=1e-6)


def test_patience_and_val_every_stop_a_run_that_stands_still(tmp_path):
    still = ["--iterations", "20", "--outer-lr", "0", "--val-every", "3", "--patience", "2"]
    run = trained(tmp_path / "run", "sinusoid", "maml", *SINES, *still)
    # The first validation is the best; two more without a better one follow.
    assert [line["iteration"] for line in read_metrics(run) if "val" in line] == [3, 6, 9]


@pytest.mark.parametrize(
    ("schedule", "name"), [("constant", None), ("cosine", "CosineAnnealingLR"), ("linear", "LinearLR")]
)
def test_the_schedule_is_the_one_named(tmp_path, schedule, name):
    config = read(trained(tmp_path / "run", "sinusoid", "maml", *SINES, "--schedule", schedule) / "config.json")
    assert (config["scheduler"] or {"name": None})["name"] == name


def test_the_seed_determines_weights_and_tasks(tmp_path):
    still = ["--outer-lr", "0"]
    zero, again, one = (
        theta_of(trained(tmp_path / name, "sinusoid", "maml", *SINES, *still, "--seed", seed))
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    assert torch.equal(zero, again) and not torch.equal(zero, one)
    assert [read(tmp_path / name / "config.json")["seed"] for name in "abc"] == [0, 0, 1]
    losses = [read_metrics(tmp_path / name)[-1]["loss"] for name in "abc"]
    assert losses[0] == losses[1] != losses[2]


def test_precision_layout_and_chunk_reach_the_training(tmp_path):
    options = ["--precision", "bf16", "--channels-last", "--chunk", "1", "--keep", "2", "--val-every", "1"]
    run = trained(tmp_path / "run", "glyphs", "maml", *GLYPHS, *options, "--iterations", "2")
    config = read(run / "config.json")
    assert config["precision"] == "bf16" and config["channels_last"] is True
    assert checkpoint(run)["chunk"] == 1 and checkpoint(run)["keep"] == 2
    assert "bf16" in read(run / "timing.json")["reason"]
    assert len(load(run / "learner.qs").best) == 2


@pytest.mark.parametrize(
    ("learner", "given", "kept"),
    [
        ("protonet", ["--norm", "layer", "--downsample", "stride"], {"norm": "layer", "downsample": "stride"}),
        ("maml", ["--norm", "none", "--downsample", "pool"], {"norm": "none", "downsample": "pool", "filters": 4}),
    ],
)
def test_the_network_is_the_one_asked_for(tmp_path, learner, given, kept):
    fields = read(trained(tmp_path / "run", "glyphs", learner, *GLYPHS, *given) / "config.json")["learner"]["fields"]
    network = fields.get("encoder", fields.get("model"))["network"]
    assert {name: network[name] for name in kept} == kept


def test_sizes_of_tasks_are_those_asked_for(tmp_path):
    sizes = ["--ways", "4", "--shots", "2", "--queries", "3", "--meta-batch", "5"]
    config = read(trained(tmp_path / "run", "glyphs", "protonet", *GLYPHS, *sizes) / "config.json")
    assert {name: config["tasks"][name] for name in ("ways", "shots", "queries")} == {
        "ways": 4,
        "shots": 2,
        "queries": 3,
    }
    assert config["meta_batch"] == 5 and config["learner"]["fields"]["ways"] == 4
    assert config["request"]["shots"] == 2


def test_hidden_widths_are_those_asked_for(tmp_path):
    config = read(trained(tmp_path / "run", "sinusoid", "maml", *SINES, "--hidden", "7", "3") / "config.json")
    assert config["learner"]["fields"]["model"]["network"]["hidden"] == [7, 3]


def schools(path: Path) -> Path:
    """A table of ten schools: a number, a code that is only a name, a day, noise, and marks of four values."""
    rng = np.random.default_rng(0)
    n = 120
    frame = pandas.DataFrame(
        {
            "school": np.repeat([f"school {i}" for i in range(10)], n // 10),
            "hours": rng.normal(50, 10, n),
            "code": rng.integers(3, 7, n),
            "day": rng.permutation(n),
            "weather": rng.normal(size=n),
            "mark": rng.integers(0, 4, n),
        }
    )
    frame.to_csv(path, index=False)
    return path


def test_columns_of_a_table_are_read_as_asked(tmp_path):
    table = [str(schools(tmp_path / "schools.csv")), "maml", *SINES, "--task", "school", "--target", "mark"]
    table += ["--shots", "2", "--queries", "2"]
    plain = load(trained(tmp_path / "plain", *table) / "learner.qs").preprocess
    asked = ["--ignore", "weather", "day", "--categories", "code", "--kind", "class"]
    given = load(trained(tmp_path / "given", *table, *asked) / "learner.qs").preprocess
    timed = load(trained(tmp_path / "timed", *table, "--time", "day") / "learner.qs").preprocess
    kinds = [{column["name"]: column["kind"] for column in p["columns"]} for p in (plain, given)]
    assert kinds[0] == dict.fromkeys(("hours", "code", "day", "weather"), "number")
    assert kinds[1] == {"hours": "number", "code": "category"}
    assert "classes" not in plain and given["classes"] == ["0", "1", "2", "3"]
    assert plain["time"] is None and timed["time"] == "day"


def test_texts_are_read_up_to_the_number_of_words(tmp_path):
    words = [f"{a} {b}" for a in ("refund", "hours", "order", "login", "address") for b in "abcdefgh"]
    frame = pandas.DataFrame({"text": words * 2, "label": [f"class {i % 10}" for i in range(80)]}).drop_duplicates()
    frame["text"] = [f"{text} number {i}" for i, text in enumerate(frame["text"])]
    frame.to_csv(tmp_path / "texts.csv", index=False)
    argv = [str(tmp_path / "texts.csv"), "nearestcentroid", "--text", "text", "--label", "label", "--words", "3"]
    run = trained(tmp_path / "run", *argv, "--ways", "2", "--queries", "1", "--iterations", "1", "--meta-batch", "1")
    assert load(run / "learner.qs").preprocess["words"] == 3


def test_images_of_a_folder_get_the_size_that_is_asked(tmp_path):
    for c, drawings in enumerate(draw_glyphs(10, 3, seed=5)):
        for i, drawing in enumerate(drawings):
            path = tmp_path / "images" / f"class{c:02d}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - drawing.numpy()).save(path)
    argv = [str(tmp_path / "images"), "protonet", *GLYPHS, "--ways", "2", "--size", "20"]
    run = trained(tmp_path / "run", *argv)
    assert load(run / "learner.qs").preprocess["size"] == 20
    assert read(run / "config.json")["learner"]["fields"]["encoder"]["network"]["size"] == 20


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["TABLE", "maml", "--text", "weather", "--label", "code", "--task", "school"], "--task has no effect"),
        (["TABLE", "maml", "--task", "school", "--target", "mark", "--ways", "3"], "--ways has no effect"),
        (["TABLE", "maml", "--task", "school", "--target", "mark", "--items", "x.csv"], "--task has no effect"),
        (["TABLE", "maml", "--task", "school", "--target", "mark", "--words", "3"], "--words has no effect"),
        (["TABLE", "maml", "--task", "school", "--target", "mark", "--filters", "8"], "--filters has no effect"),
        (["TABLE", "maml", "--task", "school", "--target", "mark", "--channels-last"], "--channels-last has no effect"),
        (["TABLE", "maml", "--user", "school", "--item", "code", "--item-id", "a"], "--item-id has no effect"),
        (["TABLE", "protonet", "--text", "weather", "--label", "code", "--hidden", "8"], "--hidden has no effect"),
        (["TABLE", "protonet", "--text", "day", "--label", "code", "--encoder", "e", "--words", "8"], "--words has no"),
        (["glyphs", "maml", "--data", "here"], "--data has no effect"),
        (["glyphs", "maml", "--size=20"], "--size has no effect"),
        (["glyphs", "maml", "--dropblock", "0.1"], "--dropblock has no effect on the network of maml"),
        (["glyphs", "maml", "--network", "resnet12", "--downsample", "pool"], "--downsample has no effect"),
        (["glyphs", "nearestcentroid", "--norm", "layer"], "--norm has no effect"),
        (["sinusoid", "maml", "--target", "mark"], "--target has no effect"),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan", "compare"])
def test_an_option_that_would_have_no_effect_is_refused(command, argv, message, tmp_path, capsys):
    table = str(schools(tmp_path / "schools.csv"))
    if command == "compare" and ("--channels-last" in argv or "nearestcentroid" in argv):
        pytest.skip("compare has no such option, and adds finetune, which has a network")
    assert main.run([command, *(table if word == "TABLE" else word for word in argv)]) == 2
    assert message in capsys.readouterr().err


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "glyphs", "glyphs", "maml", *GLYPHS)


def evaluated(run: Path, *argv: str) -> dict[str, Any]:
    """The first score of scores.json."""
    few = ["--episodes", "3", "--engine", "loop", "--controls", "shuffled_labels"]
    assert main.run(["evaluate", str(run), *few, *argv]) == 0
    return read(run / "scores.json")["scores"][0]


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        (["--episodes", "5"], "episodes", 5),
        (["--shots", "4"], "shots", 4),
        (["--queries", "6"], "queries", 6),
        (["--steps", "3"], "steps", 3),
        (["--seed", "9"], "seed", 9),
        (["--split", "val"], "split", "val"),
    ],
)
def test_an_option_of_evaluate_is_in_the_protocol_and_changes_the_episodes(run, given, field, value):
    plain, changed = evaluated(run), evaluated(run, *given)
    assert plain["protocol"][field] != value
    assert changed["protocol"] == plain["protocol"] | {field: value}
    assert field == "steps" or changed["values"] != plain["values"]


def test_fewer_ways_are_tested_with_a_learner_that_compares(tmp_path):
    run = trained(tmp_path / "run", "glyphs", "protonet", *GLYPHS)
    assert evaluated(run, "--ways", "2")["protocol"]["ways"] == 2


def test_a_size_that_the_tasks_do_not_have_is_refused(tmp_path, capsys):
    run = trained(tmp_path / "run", "sinusoid", "maml", *SINES)
    assert main.run(["evaluate", str(run), "--ways", "3"]) == 2
    assert "--ways has no effect" in capsys.readouterr().err


def test_only_the_controls_named_are_run(run, capsys):
    score = evaluated(run, "--controls", "zero_steps", "nearest_centroid")
    assert set(score["controls"]) == {"zero_steps", "nearest_centroid"}
    assert "control zero_steps" in capsys.readouterr().out
    assert evaluated(run, "--controls")["controls"] == {}


def test_the_training_request_is_evaluated_unless_said(run):
    """Ways, shots and queries come from config.json."""
    protocol = evaluated(run)["protocol"]
    assert (protocol["ways"], protocol["shots"], protocol["queries"]) == (3, 1, 2)
    assert (protocol["tasks"], protocol["split"], protocol["seed"]) == ("glyphs", "test", 1)


# --- check -----------------------------------------------------------------------------------------------------------


OFF = """
import torch

class Off(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 1.01 * g

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.above = torch.nn.Linear(2, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.above(Off.apply(torch.tanh(self.below(x))))
"""


def test_the_tolerance_of_check_is_the_one_given(tmp_path, capsys):
    """A derivative that is one hundredth too large is wrong, unless a tenth is allowed."""
    (tmp_path / "net.py").write_text(OFF)
    argv = ["check", f"{tmp_path / 'net.py'}:Net", "--shape", "2", "--ways", "3", "--steps", "0"]
    assert main.run(argv) == 1
    assert "wrong" in capsys.readouterr().out
    assert main.run([*argv, "--tolerance", "0.1"]) == 0
