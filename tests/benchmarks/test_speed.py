"""The speed benchmark: its cases, what its contestants compute, and its bookkeeping."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.speed.{name}")


@pytest.fixture
def cases(load):
    return load("cases")


def by_hand(case, theta, rates, lr):
    """The mean meta-loss as a plain loop of autograd, in the parameters and in the rates."""
    problem = case.problem(torch.float64)
    names = [name for name, _ in problem.model.named_parameters()]

    def loss_at(phi, x, y):
        return problem.loss(torch.func.functional_call(problem.model, dict(zip(names, phi, strict=True)), (x,)), y)

    losses = []
    for xs, ys, xq, yq in zip(*problem.episodes.support, *problem.episodes.query, strict=True):
        phi = theta
        for _ in range(problem.steps):
            gradient = torch.autograd.grad(loss_at(phi, xs, ys), phi, create_graph=True)
            phi = [p - r * g for p, r, g in zip(phi, rates or [lr] * len(phi), gradient, strict=True)]
        losses.append(loss_at(phi, xq, yq))
    loss = torch.stack(losses).mean()
    return loss.detach(), torch.autograd.grad(loss, [*theta, *rates])


@pytest.mark.filterwarnings("ignore")  # the peers' deprecations
def test_every_installed_contestant_computes_the_exact_gradient_or_is_known_not_to(load, cases):
    peers, memory = load("peers"), load("memory")
    for case in cases.SMALLEST:
        problem = case.problem(torch.float64)
        theta = [p.detach().clone().requires_grad_() for p in problem.model.parameters()]
        rates = [torch.full_like(p, problem.lr).requires_grad_() for p in theta] if problem.rates else []
        if "transformer" not in case.name:  # the fused attention has no second derivative
            exact = by_hand(case, theta, rates, problem.lr)
            assert memory.relative_error(peers.quickstudy(problem, "loop")(), exact) < 1e-12, case.name
        exact = peers.quickstudy(problem, "loop")()
        for library in (name for name in peers.PEERS if not peers.missing(name)):
            way = list(peers.ways(library, problem).values())[-1]
            if library != "torchopt under vmap":  # torch's rule for fused normalisation is wrong, and it has no LSTM's
                assert memory.relative_error(way(problem)(), exact) < 1e-8, (case.name, library)


def test_both_lstms_are_the_same_network(cases):
    torch_lstm, cells = cases.TorchLSTM(6), cases.CellLSTM(6)
    renamed = {name.replace("_l0", ""): value for name, value in torch_lstm.state_dict().items()}
    cells.load_state_dict(renamed)
    x = torch.randn(3, 7, 1)
    torch.testing.assert_close(cells(x), torch_lstm(x))


def test_a_case_is_the_same_whenever_it_is_asked_for(cases):
    for case in cases.SMALLEST:
        one, two = case.problem(torch.float32), case.problem(torch.float64)
        for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
            torch.testing.assert_close(a.double(), b)
        torch.testing.assert_close(one.episodes.support.x.double(), two.episodes.support.x)


def test_names_tell_cases_apart(load, cases):
    growth = load("growth")
    every = (*cases.CASES, *cases.SMALLEST, *cases.INNER_STEPS, *cases.SMALLEST_INNER_STEPS)
    found = [case.name for case in (*every, *growth.further(growth.GROWTH, cases.CASES))]
    assert len(set(found)) == len(found)
    assert all(cases.find(case.name) is case for case in every)


def test_operations_of_a_linear_layer_and_a_convolution(load):
    work = load("work")
    x = torch.rand(7, 5)
    assert work.operations(lambda: x @ torch.rand(5, 3)) == 2 * 7 * 5 * 3
    images = torch.rand(2, 3, 8, 8)
    convolution = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert work.operations(lambda: convolution(images)) == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)


def test_the_race_is_fair_in_turns_and_counts_every_round(load):
    race, order = load("race"), []
    computes = {(name, "way"): lambda name=name: order.append(name) for name in "abc"}
    times = race.race(computes, repeats=3, budget=1.0)
    assert {key: len(taken) for key, taken in times.items()} == dict.fromkeys(computes, 3)
    assert "".join(order[6:]) == "abcbcacab"  # after warming up and planning


def test_regret_and_ratios_are_those_of_the_medians(load, cases):
    race = load("race")
    times = {("quickstudy", "vmap"): [2.0, 4.0, 3.0], ("quickstudy", "loop"): [1.5] * 3, ("higher", "once"): [6.0] * 3}
    times |= {race.FLOOR: [1.0] * 3}
    found = {"quickstudy": race.Tried(problems={"compile": "missing"}), "higher": race.Tried(correct=["once"])}
    entries = [race.Entry("quickstudy", "quickstudy", "vmap", ""), race.of_peer("higher", found["higher"])]
    entries += [race.fixed(name, times, found["quickstudy"]) for name in race.FIXED]
    for entry in entries:
        if (entry.contestant, entry.way) in times:
            race.settle(entry, times[entry.contestant, entry.way], times, at_best=0.3)
    entries[0].made_s = 0.25 * 3.0 * race.ITERATIONS  # choosing took a quarter of the whole training
    plain = race.plain(cases.SMALLEST[0], entries, found, times)
    named = {entry["name"]: entry for entry in plain["contestants"]}
    assert plain["regret"] == 2.5 and plain["best_way"] == "loop"
    assert named["higher"]["ratio"] == 2.0 and named["quickstudy"]["floors"] == 3.0
    assert named["quickstudy"]["share"] == pytest.approx(0.1)
    assert named["quickstudy without compile"]["way"] == "loop"
    assert named["quickstudy with compile"]["reason"] == "missing" and named["quickstudy with compile"]["ratio"] is None


def test_peak_memory_is_that_of_the_process_itself(load):
    """Not what Linux hands down from a larger process that started it."""
    held = torch.ones(2**27)  # 512 MB
    code = "from benchmarks.speed import memory; print(memory.peak_mb('cpu'))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert held.numel() and load("memory").peak_mb("cpu") > 512
    assert 50 < float(told.stdout) < 512


def test_a_way_that_fails_in_its_process_says_why(load, cases):
    with pytest.raises(RuntimeError, match="KeyError: 'no such way'"):
        load("memory").alone(cases.SMALLEST[0].name, "quickstudy", "no such way")


def test_a_peer_that_cannot_be_built_is_left_out(load, monkeypatch, tmp_path):
    built = load("built")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(built.sys, "executable", str(tmp_path / "no python"))
    assert "could not be built and is left out" in built.build()
    assert not built.folder().exists()
    with pytest.raises(ModuleNotFoundError, match="was not built"):
        built.learn2learn("algorithms.maml")


def test_a_page_tells_what_another_commit_measured(load):
    pages = load("pages")
    old, new = ({"command": "all", "commit": commit} for commit in ("old", "new"))
    done = new | {"cases": [old | {"name": "one"}, new | {"name": "two"}]}
    assert pages.elsewhere(done | {"inner_steps": new}) == " By `all` at commit old: one."
    assert pages.elsewhere(done | {"inner_steps": None, "cases": done["cases"][1:]}) == ""


@pytest.mark.parametrize("changed", [None, "commit", "machine", "versions"])
def test_only_results_of_the_same_code_and_machine_are_kept(load, tmp_path, changed):
    report, out = load("report"), tmp_path / "speed.json"
    now = {
        "command": "all",
        "commit": "abc",
        "machine": {"cpu": "a"},
        "device": "cpu",
        "versions": {},
        "cases": [],
        "inner_steps": None,
    }
    now |= {"matrix_rate": 2.0}
    before = now | {"cases": [{"name": "one"}], "matrix_rate": 1.0}
    before |= {changed: "another"} if changed else {}
    out.write_text(json.dumps(before))
    kept = [{"command": "all", "commit": before["commit"], "name": "one"}]
    assert report.resumed(now, out)["cases"] == ([] if changed else kept)
    other_machine = changed in ("machine", "versions")
    assert report.resumed(now, out, again=["two"])["cases"] == ([] if other_machine else kept)
    assert report.resumed(now, out, again=["one"])["cases"] == []
    dirty = now | {"commit": "abc+dirty"}
    out.write_text(json.dumps(before | {"commit": "abc+dirty"}))
    assert report.resumed(dirty, out)["cases"] == []
    assert report.resumed(now, tmp_path / "none.json") == now
