"""The outer loop: it learns, it stops cleanly, and a run that was cut and resumed is one that never stopped."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from problems import clusters

import quickstudy as qs
from quickstudy.base import files
from quickstudy.errors import ConfigError, DataError, NonFiniteError, RunError
from quickstudy.training import loop
from quickstudy.training.checkpoint import read_metrics

SCRIPT = """
import sys, torch, quickstudy as qs
from quickstudy import training
training.CHECKPOINT_SECONDS = float(sys.argv[3])
torch.manual_seed(7)
learner = qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), loss=qs.mse_loss, lr=0.01, steps=2)
scheduler = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 300)
qs.train(learner, qs.tasks.sinusoid("train", 5, 5), iterations=300, meta_batch=4, seed=3, out=sys.argv[1], resume=True,
         val=qs.tasks.sinusoid("val", 5, 5), val_every=50, val_episodes=10, engine=sys.argv[2], scheduler=scheduler,
         progress=False)
"""


def maml(seed: int = 0, **fields) -> qs.MAML:
    torch.manual_seed(seed)
    return qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), **{"loss": F.mse_loss, "lr": 0.01, "steps": 1, **fields})


def sines(split: str = "train"):
    return qs.tasks.sinusoid(split, 5, 5)


def train(learner, **options) -> qs.Trained:
    settings = {"iterations": 10, "meta_batch": 4, "progress": False, "engine": "loop", **options}
    return qs.train(learner, sines(), **settings)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_step_is_the_optimizers_step_on_the_meta_gradient():
    learner, tasks = maml(), sines()
    theta = {name: value.clone() for name, value in learner.init().items()}
    optimizer = torch.optim.SGD(theta.values(), lr=0.1)
    step = next(loop.meta_steps(learner, theta, tasks, optimizer, iterations=1, meta_batch=3, seed=5))
    loss, slope = qs.meta_gradient(learner, learner.init(), step.episodes)
    assert step.loss == float(loss)
    assert all(torch.allclose(theta[n], v - 0.1 * slope[n]) for n, v in learner.init().items())


def test_the_learner_is_left_as_it_was():
    learner = maml()
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    trained = train(learner)
    assert same(before, learner.model.state_dict())
    assert not same(trained.theta, before)


def test_same_seed_same_theta_and_another_seed_another():
    first, again, other = (train(maml(), seed=s).theta for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_the_callers_random_numbers_are_untouched():
    torch.manual_seed(11)
    expected = torch.rand(3)
    learner = maml()
    torch.manual_seed(11)
    train(learner, val=sines("val"), val_every=5, val_episodes=3)
    assert torch.equal(torch.rand(3), expected)


def test_dropout_repeats_with_the_seed():
    def run():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        return train(qs.MAML(model, loss=F.mse_loss, lr=0.01), seed=2).theta

    assert same(run(), run())


@pytest.mark.parametrize("engine", ["vmap", "threads"])
def test_killed_at_random_moments_and_resumed_is_bit_identical(tmp_path, engine):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, str(whole), engine, "1e9"], check=True, timeout=200)
    chance, kills = random.Random(1), 0
    while True:
        process = subprocess.Popen([*command, str(cut), engine, "0.02"])
        # Wait for the run to have begun: killing an interpreter that is still importing tests nothing.
        reached = _wait_for_checkpoint(process, cut, kills)
        if reached and kills < 4:
            time.sleep(chance.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        if process.wait(timeout=200) == 0:
            break
        kills += 1
        assert kills < 30
    assert kills >= 2, "the run ended before it was killed twice: nothing was tested"
    assert same(qs.load(whole / "learner.qs").theta, qs.load(cut / "learner.qs").theta)
    (a, b) = (files.read_tensors(run / "checkpoint.safetensors", "checkpoint")[0] for run in (whole, cut))
    assert same(a, b)
    kept = ("iteration", "loss", "error", "val")
    lines = [[{k: line.get(k) for k in kept} for line in read_metrics(run)] for run in (whole, cut)]
    assert lines[0] == lines[1]


def _wait_for_checkpoint(process: subprocess.Popen, folder: Path, kills: int) -> bool:
    """Until the checkpoint of this attempt has moved on, or the process has ended."""
    path = folder / "checkpoint.safetensors"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None:
        if path.exists() and path.stat().st_mtime_ns != before:
            return True
        time.sleep(0.005)
    return False


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, str(script), str(out), "loop", "1e9"], stderr=subprocess.PIPE)
    while not (out / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert process.stderr is not None
    assert b"KeyboardInterrupt" in process.stderr.read()
    process.stderr.close()
    done = files.read_tensors(out / "checkpoint.safetensors", "checkpoint")[1]["iteration"]
    assert 20 <= done < 300
    subprocess.run([sys.executable, str(script), str(out), "loop", "1e9"], check=True, timeout=100)
    assert (out / "learner.qs").exists()


def test_validation_keeps_the_best_theta(tmp_path):
    """Climbing the loss makes every iteration worse: the best theta is an early one, not the last."""
    learner = maml()
    options = {"val": sines("val"), "val_every": 1, "val_episodes": 8, "iterations": 6}
    trained = train(
        learner, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, maximize=True), out=tmp_path / "run", **options
    )
    lines = read_metrics(tmp_path / "run")
    best = min(line["val"] for line in lines)
    assert best < lines[-1]["val"]
    assert qs.evaluate(trained, sines("val"), episodes=8, seed=1_000_003).mean == pytest.approx(best)


def test_patience_stops_early(tmp_path):
    options = {"val": sines("val"), "val_every": 1, "val_episodes": 4, "patience": 2, "iterations": 200}
    train(maml(), optimizer=lambda p: torch.optim.SGD(p, lr=0.01, maximize=True), out=tmp_path / "run", **options)
    last = read_metrics(tmp_path / "run")[-1]["iteration"]
    assert last < 200
    train(
        maml(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01, maximize=True),
        out=tmp_path / "run",
        resume=True,
        **options,
    )
    assert read_metrics(tmp_path / "run")[-1]["iteration"] == last, "a run that had stopped early went on"


def test_non_finite_stops_and_names_the_parameter_and_keeps_the_checkpoint(tmp_path):
    class Diverging:
        def sample(self, n, generator=None):
            episode = sines().sample(n, generator)
            self.calls = getattr(self, "calls", 0) + 1
            scale = 1e30 if self.calls > 8 else 1.0
            return episode._replace(query=episode.query._replace(y=episode.query.y * scale))

    with pytest.raises(NonFiniteError, match=r"iteration \d+: .*not finite") as caught:
        qs.train(maml(), Diverging(), iterations=20, meta_batch=2, engine="loop", out=tmp_path / "run", progress=False)
    assert "layer1" in str(caught.value) or "the loss" in str(caught.value)
    state = files.read_tensors(tmp_path / "run" / "checkpoint.safetensors", "checkpoint")[0]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_an_existing_run_is_not_overwritten(tmp_path):
    train(maml(), out=tmp_path / "run")
    before = (tmp_path / "run" / "learner.qs").read_bytes()
    with pytest.raises(RunError, match="--resume"):
        train(maml(1), out=tmp_path / "run")
    assert (tmp_path / "run" / "learner.qs").read_bytes() == before


def test_resuming_with_other_settings_is_refused_and_named(tmp_path):
    train(maml(), out=tmp_path / "run")
    with pytest.raises(RunError, match="meta_batch: 4, now 8"):
        train(maml(), out=tmp_path / "run", meta_batch=8, resume=True)
    with pytest.raises(RunError, match="another learner"):
        train(maml(lr=0.5), out=tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="another optimizer"):
        train(maml(), out=tmp_path / "run", resume=True, optimizer=lambda p: torch.optim.Adam(p, lr=0.1))


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    with pytest.raises(DataError, match="cannot read this task"):
        qs.train(qs.MAML(qs.nn.mlp(3, 1), loss=F.mse_loss), sines(), iterations=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_longer_run_continues_a_shorter_one(tmp_path):
    train(maml(), out=tmp_path / "run", iterations=10)
    longer = train(maml(), out=tmp_path / "run", iterations=25, resume=True)
    assert same(longer.theta, train(maml(), iterations=25).theta)


def test_fewer_iterations_than_were_done_are_refused(tmp_path):
    train(maml(), out=tmp_path / "run", iterations=10)
    with pytest.raises(RunError, match="has done 10 iterations already"):
        train(maml(), out=tmp_path / "run", iterations=5, resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["iterations"] == 10


def test_out_that_is_a_file_or_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="is a file"):
        train(maml(), out=tmp_path / "file")
    with pytest.raises(RunError, match="cannot write"):
        train(maml(), out=tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write"):
        train(maml(), out=tmp_path / "run")


def test_a_full_disk_gives_a_clear_error_and_keeps_the_last_checkpoint(tmp_path):
    """A limit on the size of files makes the operating system refuse the write, as a full disk does."""
    path = tmp_path / "checkpoint.safetensors"
    files.write_tensors(path, "checkpoint", {"a": torch.ones(3)}, {"iteration": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*untouched"):
            files.write_tensors(path, "checkpoint", {"a": torch.ones(3000)}, {"iteration": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "the temporary file is left behind"


def test_a_broken_checkpoint_is_refused(tmp_path):
    train(maml(), out=tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(qs.errors.FileFormatError, match=r"truncated or damaged"):
        train(maml(), out=tmp_path / "run", iterations=20, resume=True)


@pytest.mark.parametrize(("name", "value"), [("iterations", 0), ("meta_batch", 0), ("val_every", 0), ("patience", -1)])
def test_impossible_numbers(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got {value}"):
        train(maml(), **{name: value})


def test_resume_needs_a_folder():
    with pytest.raises(ConfigError, match="run folder"):
        train(maml(), resume=True)


def test_a_learner_without_theta_is_ready_at_once(tmp_path):
    tasks = qs.tasks.glyphs("test")
    trained = qs.train(qs.NearestCentroid(5), tasks, iterations=3, out=tmp_path / "run", progress=False)
    assert trained.theta == {}
    assert isinstance(qs.load(tmp_path / "run" / "learner.qs").learner, qs.NearestCentroid)


def test_finetune_pretrains_on_the_whole_pool():
    """Labels of all training classes: more of them than ways, which only the pooled source gives."""
    tasks = qs.tasks.glyphs("val", ways=5, shots=1, queries=2)
    torch.manual_seed(0)
    learner = qs.FineTune(qs.nn.mlp(784, len(tasks.classes), hidden=(16,)), ways=5)
    trained = qs.train(learner, tasks, iterations=5, meta_batch=2, progress=False)
    assert trained.tasks["pooled"] is True
    assert trained.theta["head.weight"].shape[0] == 100


def test_metrics_and_config_are_plain_and_complete(tmp_path):
    train(maml(), out=tmp_path / "run", iterations=45, val=sines("val"), val_every=20, val_episodes=3)
    lines = read_metrics(tmp_path / "run")
    assert [line["iteration"] for line in lines] == [20, 40, 45]
    assert all({"loss", "error", "seconds", "val"} <= line.keys() for line in lines)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["learner"]["fields"]["lr"] == 0.01
    assert config["learner"]["fields"]["model"]["network"]["hidden"] == [8]


def test_the_options_of_the_engine(tmp_path):
    source, learner, threads = clusters(), qs.MAML(torch.nn.Linear(4, 3), lr=0.1), set()

    class Told:
        """A source that tells which thread asks it."""

        def sample(self, n, generator):
            threads.add(threading.current_thread().name)
            return source.sample(n, generator)

    common = {"iterations": 3, "meta_batch": 5, "engine": "vmap", "progress": False}
    whole = qs.train(learner, Told(), out=tmp_path / "run", **common)
    parts = qs.train(learner, source, chunk=2, **common)
    for name, value in whole.theta.items():
        torch.testing.assert_close(parts.theta[name], value)
    assert any(name.startswith("episodes") for name in threads)
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert 0 < timing["choosing"] <= timing["total"]
    with pytest.raises(ConfigError, match=r"compile=True .* engine='threads'"):
        qs.train(learner, source, compile=True, **common | {"engine": "threads"})
    with pytest.raises(ConfigError, match="chunk must be at least 1"):
        qs.train(learner, source, chunk=0, **common)
