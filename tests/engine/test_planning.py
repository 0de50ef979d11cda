"""Memory and time before a training: what is foretold, what fits, what is said when it does not; cheaper numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import assert_close, cores

import quickstudy as qs
from quickstudy.base import memory
from quickstudy.cli import main
from quickstudy.engine import agreement, mapping
from quickstudy.engine.choice import choose, forecast
from quickstudy.engine.engines import find_engine
from quickstudy.episodes import count
from quickstudy.errors import ConfigError, OutOfMemoryError
from quickstudy.experiments import recipes

CPU = torch.device("cpu")
needs_peaks = pytest.mark.skipif(memory.taken(CPU) is None, reason="this system does not tell a process's memory")


def glyphs(steps: int = 2, **more) -> tuple[qs.Learner, qs.TaskSource]:
    torch.manual_seed(0)
    learner = qs.MAML(qs.nn.conv4(filters=8, classes=3), lr=0.1, steps=steps, **more)
    return learner, qs.tasks.glyphs("train", ways=3, shots=1, queries=2)


def sine() -> tuple[qs.Learner, qs.TaskSource]:
    torch.manual_seed(0)
    return qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01), qs.tasks.sinusoid("train", 5, 5)


# --- memory ----------------------------------------------------------------------------------------------------------


@needs_peaks
def test_a_peak_is_of_the_time_inside_alone():
    held = torch.ones(2**26)  # 256 MB
    assert held.numel()
    del held
    memory.tidy()
    before = memory.taken(CPU)
    with memory.peak(CPU) as small:
        torch.ones(2**20)
    with memory.peak(CPU) as large:
        torch.ones(2**25)  # 128 MB
    assert small.bytes - before < 50e6 < 125e6 < large.bytes - before < 200e6
    assert memory.room(CPU) > memory.taken(CPU)


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 5e8), ("2GB", 2e9), ("1.5 GiB", 1.5 * 2**30), ("300k", 3e5), ("64", 64.0), ("1tb", 1e12)],
)
def test_sizes_in_words(text, size):
    assert memory.bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-2GB", "2 GBit", "1..5GB", "."])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="as in 500MB or 2GB"):
        memory.bytes_of(text)


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = memory.room(CPU)
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.room(CPU) == 1e6 < free


# --- plans -----------------------------------------------------------------------------------------------------------


def test_every_setting_gives_the_same_meta_gradient(double):
    learner, tasks = sine()
    exact = mapping.meta_gradient(learner, learner.init(), tasks.sample(3, torch.Generator().manual_seed(0)))
    with cores(2):
        found = qs.plan(learner, tasks, meta_batch=3)
    assert {one.adjoint for one in found} == {"unroll", "remat"}
    for name in ("vmap", "replay"):
        assert {one.chunk for one in found if one.engine == name} == {1, 2, None}
    assert {one.engine for one in found} == set(forecast.ENGINES)
    assert found == sorted(found, key=lambda one: one.seconds)
    for one in found:
        same = qs.MAML(learner.model, loss=qs.mse_loss, lr=0.01, adjoint=one.adjoint)
        episodes = tasks.sample(3, torch.Generator().manual_seed(0))
        found_again = mapping.meta_gradient(same, learner.init(), episodes, one.engine, one.chunk)
        assert_close(found_again[1], exact[1], 1e-10)


def test_a_plan_keeps_what_was_decided():
    learner, tasks = sine()
    first_order = qs.MAML(learner.model, loss=qs.mse_loss, lr=0.01, first_order=True)
    assert {one.adjoint for one in qs.plan(first_order, tasks, meta_batch=4, engine="loop")} == {None}
    found = qs.plan(learner, tasks, meta_batch=4, engine="vmap", chunk=3)
    assert {(one.engine, one.chunk) for one in found} == {("vmap", 3)}
    with pytest.raises(ConfigError, match="learns nothing across tasks"):
        qs.plan(qs.NearestCentroid(3), glyphs()[1])
    with pytest.raises(ConfigError, match="knows the engines"):
        qs.plan(learner, tasks, engine="compile")


GRADIENT = ("maml", "anil", "boil", "metasgd", "mamlplusplus", "metacurvature", "cavia", "leo", "reptile", "imaml")


@pytest.mark.filterwarnings("ignore::quickstudy.errors.AccuracyWarning")  # of iMAML, which solves a system
@pytest.mark.parametrize("name", GRADIENT)
def test_every_gradient_learner_can_be_planned_with_many_steps(name):
    cls, (_, tasks) = qs.LEARNERS[name], glyphs()
    learner = recipes.build_learner(cls, tasks, {"steps": 16}, {"filters": 4})
    found = qs.plan(learner, tasks, meta_batch=2, engine="loop")
    assert {one.adjoint for one in found} == ({"unroll", "remat"} if hasattr(learner, "adjoint") else {None})


def test_what_draws_at_random_is_not_planned_on_threads():
    _, tasks = glyphs()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(784, 3))
    with cores(2):
        found = qs.plan(qs.MAML(model, lr=0.1), tasks, meta_batch=2)
    assert {one.engine for one in found} == {"vmap", "loop"}


GROWING = """
from dataclasses import dataclass
import torch
from quickstudy.base import memory
from quickstudy.engine.choice.forecast import _need
from quickstudy.engine.choice.work import Work

@dataclass(frozen=True)
class Learner:
    steps: int
    adjoint: str = "unroll"

def run(work, check):
    torch.ones((1 + work.learner.steps) * 2**20)  # 4 MB each

device = torch.device("cpu")
_need(lambda k: Work(Learner(k or 40), {}, None), run, device)  # what Python and torch make once
memory.tidy()
before = memory.taken(device)
found, _ = _need(lambda k: Work(Learner(k or 40), {}, None), run, device)
print((found - before) / 2**22)
"""


@needs_peaks
def test_many_inner_steps_are_foretold_from_few():
    """Affine in the steps: exact for a stand-in of (4 MB + 4 MB per step). In a process of its own: in this one others
    give memory back meanwhile."""
    done = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(41, rel=0.1), done.stderr[-2000:]


@needs_peaks
def test_the_fastest_that_fits_is_taken_and_the_least_is_told():
    learner, tasks = glyphs(steps=3)
    found = qs.plan(learner, tasks, meta_batch=4, engine="vmap")
    limit = sorted(one.memory for one in found)[len(found) // 2]
    able = forecast.fitting(found, limit)
    assert able == [one for one in found if one.memory <= limit] and 0 < len(able) < len(found)
    with pytest.raises(
        ConfigError, match=r"no exact setting stays within 1 MB: the least is [\d.]+ [MG]B, with --engine"
    ):
        qs.plan(learner, tasks, meta_batch=2, memory="1MB", engine="loop")


def test_the_command_line_plans(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["glyphs", "maml", "--ways", "3", "--queries", "2", "--filters", "4", "--meta-batch", "2"]
    assert main.run(["plan", *common, "--iterations", "10", "--engine", "replay"]) == 0
    told = capsys.readouterr().out
    assert "peak memory" in told and "remat" in told and "10 of them" in told
    options = told.splitlines()[-1].split("... ")[1].split()
    assert main.run(["train", *common, "--iterations", "2", *options]) == 0
    assert main.run(["plan", *common, "--memory", "lots"]) == 2
    assert "as in 500MB or 2GB" in capsys.readouterr().err
    assert main.run(["plan", "glyphs"]) == 2
    assert "quickstudy plan TASKS LEARNER" in capsys.readouterr().err


# --- while training --------------------------------------------------------------------------------------------------


def test_tasks_are_taken_in_chunks_where_memory_is_short(monkeypatch, tmp_path):
    learner, tasks = sine()
    common = {"iterations": 3, "meta_batch": 6, "progress": False}
    whole = qs.train(learner, tasks, engine="vmap", **common)
    monkeypatch.setattr(forecast, "tasks_within", lambda each, device: 4)
    parts = qs.train(learner, tasks, engine="vmap", out=tmp_path / "run", **common)
    assert_close(parts.theta, whole.theta, 1e-5)
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["engine"] == "vmap" and "4 tasks at a time, for memory" in timing["reason"]
    resumed = qs.train(learner, tasks, engine="vmap", out=tmp_path / "run", resume=True, **common | {"iterations": 3})
    assert_close(resumed.theta, parts.theta, 0.0)


def test_how_many_tasks_fit(monkeypatch):
    monkeypatch.setattr(memory, "room", lambda device: 1000.0)
    monkeypatch.setattr(memory, "taken", lambda device: 400.0)
    assert [forecast.tasks_within(each, CPU) for each in (100.0, 250.0, 601.0, 0.0)] == [6, 2, 1, None]


class Short:
    """The engine of a machine that holds the steps of so many tasks and no more."""

    def __init__(self, room: int) -> None:
        self.room, self.own = room, mapping.meta_gradient

    def __call__(self, learner, theta, episodes, engine="loop", chunk=None, precision="float32"):
        together = min(chunk or count(episodes), count(episodes)) if find_engine(engine).name == "vmap" else 1
        if together * (learner.steps if learner.adjoint == "unroll" else 1) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000 bytes.")
        return self.own(learner, theta, episodes, engine, chunk, precision)


@pytest.mark.parametrize(
    ("room", "what"),
    [
        (20, "--engine vmap --adjoint unroll --chunk 4"),
        (5, "--engine vmap --adjoint unroll --chunk 1"),
        (4, "--engine vmap --adjoint remat --chunk 4"),
        (0, None),
    ],
)
def test_out_of_memory_names_what_fits(monkeypatch, room, what):
    learner, tasks = sine()
    learner = qs.MAML(learner.model, loss=qs.mse_loss, lr=0.01, steps=5)
    monkeypatch.setattr(mapping, "meta_gradient", Short(room))
    with pytest.raises(OutOfMemoryError, match=what or "No exact setting that was tried fits") as error:
        optimizer = torch.optim.Adam(list((theta := learner.init()).values()))
        next(qs.meta_steps(learner, theta, tasks, optimizer, iterations=1, meta_batch=8, engine="vmap"))
    assert "meta-gradient of 8 tasks with engine 'vmap'" in str(error.value)


def test_a_training_that_runs_out_while_it_chooses_says_so_too(monkeypatch):
    """Even the loop takes too much: only the adjoint can help."""
    learner, tasks = sine()
    learner = qs.MAML(learner.model, loss=qs.mse_loss, lr=0.01, steps=5)
    monkeypatch.setattr(mapping, "meta_gradient", Short(3))
    with pytest.raises(OutOfMemoryError, match="What fits: --engine loop --adjoint remat"):
        qs.train(learner, tasks, iterations=1, meta_batch=4, progress=False)


def test_other_errors_are_not_taken_for_it(monkeypatch):
    learner, tasks = sine()
    monkeypatch.setattr(mapping, "meta_gradient", lambda *args: (_ for _ in ()).throw(RuntimeError("another one")))
    with pytest.raises(RuntimeError, match="another one"):
        choose.share_gradient(learner, learner.init(), tasks.sample(2, torch.Generator()), "loop")


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_a_process_that_runs_out_says_what_fits():
    """For real: the address space is limited after all is built, so that torch's allocator fails.

    Layers are wide, so that it is one of their large tensors that finds no room and not a library's small one.
    """
    code = """
import resource, torch
import quickstudy as qs
torch.set_num_threads(1)
learner = qs.MAML(qs.nn.mlp(1, 1, hidden=(500, 500)), loss=qs.mse_loss, lr=0.001, steps=30)
tasks = qs.tasks.sinusoid("train")
theta = learner.init()
optimizer = torch.optim.Adam(list(theta.values()))
steps = qs.meta_steps(learner, theta, tasks, optimizer, iterations=9, meta_batch=16, engine="vmap")
qs.meta_gradient(learner, theta, tasks.sample(1, torch.Generator()), "vmap")
size = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 500 * 2**20,) * 2)
try:
    next(steps)
except qs.errors.OutOfMemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "memory ran out in the meta-gradient of 16 tasks with engine 'vmap'" in done.stdout, done.stderr[-2000:]
    assert "What fits: --engine vmap --adjoint unroll --chunk" in done.stdout


# --- what was chosen before ------------------------------------------------------------------------------------------


def test_the_same_learner_and_shapes_are_not_measured_twice(monkeypatch):
    (learner, tasks), asked = sine(), []
    again, wider = (
        qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01),
        qs.MAML(qs.nn.mlp(1, 1, hidden=(30,)), loss=qs.mse_loss, lr=0.01),
    )
    own = mapping.meta_gradient
    monkeypatch.setattr(choose, "_known", {})
    monkeypatch.setattr(mapping, "meta_gradient", lambda *args, **more: (asked.append(args[3]), own(*args, **more))[1])
    episodes = tasks.sample(4, torch.Generator().manual_seed(0))
    first = choose.choose_engine(learner, learner.init(), episodes, "auto", seed=0)
    measured, asked[:] = len(asked), []
    second = choose.choose_engine(again, again.init(), episodes, "auto", seed=1)
    assert second[:3] == first[:3] and len(asked) < measured / 2  # checked, not measured
    choose.choose_engine(wider, wider.init(), episodes, "auto", seed=0)
    assert len(choose._known) == 2


# --- cheaper numbers -------------------------------------------------------------------------------------------------


def test_bf16_and_channels_last_and_what_they_cost(tmp_path):
    learner, tasks = glyphs()
    common = {"iterations": 2, "meta_batch": 2, "progress": False, "engine": "loop"}
    exact = qs.train(learner, tasks, **common)
    for name, given in (("bf16", {"precision": "bf16"}), ("channels last", {"channels_last": True})):
        found = qs.train(learner, tasks, out=tmp_path / name, **common, **given)
        reason = json.loads((tmp_path / name / "timing.json").read_text())["reason"]
        off = float(reason.split(f"{name}: the first meta-gradient is ")[1].split(" off")[0])
        assert (1e-4 < off < 0.5) if name == "bf16" else (0 <= off < 1e-4)
        assert all(value.dtype == torch.float32 for value in found.theta.values())
        assert any(not torch.equal(value, exact.theta[key]) for key, value in found.theta.items())
    kernels = [value for value in found.theta.values() if value.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert qs.load(tmp_path / "channels last").theta.keys() == exact.theta.keys()
    with pytest.raises(ConfigError, match=r"precision must be one of float32, bf16; got 'bf61'\. Did you mean 'bf16'"):
        qs.train(learner, tasks, precision="bf61", **common)


@pytest.mark.parametrize("name", ["vmap", "threads", "loop"])
def test_every_engine_computes_in_bf16(name):
    learner, tasks = glyphs()
    theta, episodes = learner.init(), tasks.sample(3, torch.Generator().manual_seed(0))
    exact = mapping.meta_gradient(learner, theta, episodes)
    with cores(2):
        off = agreement.relative_difference(mapping.meta_gradient(learner, theta, episodes, name, None, "bf16"), exact)
    assert 1e-4 < off < 0.5
