"""Several processes give what one gives: the same theta, the same scores, the same errors, killed or not."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import on_ranks
import pytest
import torch

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.engine import ranks
from quickstudy.errors import ConfigError
from quickstudy.tasks.images.augment import Augmentation

RANKS = 2  # with odd numbers of tasks
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    """What each rank found in each case; a rank was killed before, and torchrun has started all again."""
    flags = ["--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, str(HERE / "on_ranks.py"), str(folder)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained MAML") == 2, "only the first rank prints"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture
def alone(tmp_path, double):
    """The same case in this process."""
    return lambda name: json.loads(json.dumps(on_ranks.CASES[name](tmp_path / name)))


# --- the same as one process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["without_tasks", "classes", "of_unequal_sizes"])
def test_theta_is_that_of_one_process(found, alone, name):
    assert all(rank[name] == found[0][name] for rank in found), "the ranks went apart"
    assert found[0][name] == pytest.approx(alone(name), rel=1e-6, abs=1e-12)
    assert len(set(found[0][name])) > 10


def test_so_are_the_losses_and_validations_of_a_run(found, alone):
    one, (first, *others) = alone("uneven"), [rank["uneven"] for rank in found]
    assert all(other["theta"] == first["theta"] for other in others)
    assert first["theta"] == pytest.approx(one["theta"], rel=1e-6, abs=1e-12)
    assert [line["iteration"] for line in first["lines"]] == [2, 4, 5]
    for ours, theirs in zip(first["lines"], one["lines"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_scores_are_bit_identical(found, alone):
    one = alone("scores")
    assert len(set(one["values"]["values"])) > 3 and one["values"]["controls"]
    assert all(rank["scores"] == one for rank in found)


def test_training_and_evaluation_on_the_command_line(found, alone):
    one, ours = alone("on_the_command_line"), [rank["on_the_command_line"] for rank in found]
    assert all(rank["codes"] == one["codes"] == [0, 0] for rank in ours)
    (score,), (theirs,) = ours[0]["scores"], one["scores"]
    assert score["protocol"] == theirs["protocol"]
    assert score["values"] == pytest.approx(theirs["values"], rel=1e-6)
    assert score["controls"]["zero_steps"]["mean"] == pytest.approx(theirs["controls"]["zero_steps"]["mean"], rel=1e-6)


def test_each_rank_draws_numbers_of_its_own(found, alone):
    """For two tasks one process draws one after the other; of two ranks the first draws what that draws first."""
    drawn, one = [rank["random_numbers"][-2:] for rank in found], alone("random_numbers")[-4:]
    assert len(set(itertools.chain(*drawn))) == 2 * RANKS
    assert drawn[0] == [one[0], one[2]]


def test_as_module_trains_under_distributed_data_parallel(found, alone):
    one = alone("in_parallel_by_torch")
    for rank in found:
        assert rank["in_parallel_by_torch"] == pytest.approx(one, rel=1e-9, abs=1e-12)


def test_as_module_trains_under_lightning_fabric(double):
    fabric = pytest.importorskip("lightning.fabric", reason="needs lightning").Fabric(accelerator="cpu", devices=1)
    plain = qs.as_module(on_ranks.maml())
    module, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    before, batch = plain.theta(), on_ranks.sines().sample(2, torch.Generator().manual_seed(0))  # type: ignore[operator]
    before = {name: value.detach().clone() for name, value in before.items()}
    slope = qs.meta_gradient(on_ranks.maml(), before, batch)[1]
    fabric.backward(module(batch, batched=True))
    optimizer.step()
    assert all(torch.allclose(v, before[n] - 0.1 * slope[n]) for n, v in plain.theta().items())  # type: ignore[operator]


# --- stopping --------------------------------------------------------------------------------------------------------


def test_all_ranks_stop_with_the_same_error_when_one_task_overflows(found, alone):
    told = {rank["not_finite"] for rank in found}
    assert len(told) == 1
    assert told.pop().startswith("NonFiniteError: iteration 3: the meta-gradient of")
    assert alone("not_finite").startswith("NonFiniteError")


def test_all_ranks_run_out_of_patience_together(found, alone):
    one, (first, *others) = alone("patience"), [rank["patience"] for rank in found]
    assert all(other == first for other in others) and first["early"]
    assert first["theta"] == pytest.approx(one["theta"], rel=1e-6, abs=1e-12)


def test_ctrl_c_at_one_rank_stops_all_and_the_run_goes_on(found):
    assert all(rank["interrupted"]["stopped"] and rank["interrupted"]["early"] for rank in found)
    assert all(rank["interrupted"]["theta"] == rank["whole"] for rank in found)


def test_ranks_that_begin_with_other_weights_are_refused(found):
    for told, made in (rank["other_weights"] for rank in found):
        assert told.startswith("ConfigError: rank 1 begins with another theta than rank 0")
        assert not made, "a folder was made for a run that cannot begin"


def test_an_error_at_one_rank_does_not_hang_the_others(found):
    *others, last = (rank["one_fails"] for rank in found)
    assert last == "DataError: a broken image"
    assert all("RankError: the other ranks cannot be reached" in other for other in others)


def test_killed_and_restarted_by_torchrun_is_bit_identical(found, folder):
    for rank in found:
        assert rank["killed"]["code"] == 0
        assert rank["killed"]["resumed"] >= on_ranks.DIES - 1, "more was lost than the last step"
    runs = [folder / name for name in ("on_the_command_line", "killed")]
    a, b = (qs.load(run / "learner.qs").theta for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    protocols = [json.loads((run / "protocol.json").read_text())["training"] for run in runs]
    assert protocols[0] == protocols[1] and protocols[0]["ranks"] == RANKS


# --- the parts -------------------------------------------------------------------------------------------------------


def as_rank(monkeypatch, rank: int, size: int) -> None:
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "size", lambda: size)


@pytest.mark.parametrize(("n", "size"), [(16, 4), (16, 5), (3, 8), (1, 2), (7, 1)])
def test_shares_are_even_and_together_all(monkeypatch, n, size):
    shares = []
    for rank in range(size):
        as_rank(monkeypatch, rank, size)
        shares.append(ranks.share(n))
    assert [place for share in shares for place in share] == list(range(n))
    assert len(shares[0]) - len(shares[-1]) <= 1


@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_a_share_of_classes_is_that_part_of_the_sample(augment):
    tasks = qs.tasks.glyphs("val", ways=3, shots=1, queries=2).replace(augment=augment)
    sample = tasks.sample(5, torch.Generator().manual_seed(3))
    for places in (range(0, 2), range(2, 5), range(5, 5)):
        share = tasks.share(5, places, torch.Generator().manual_seed(3))
        for ours, theirs in zip(itertools.chain(*share), itertools.chain(*sample), strict=True):
            assert torch.equal(ours, theirs[places.start : places.stop])


def under_torchrun(monkeypatch, **also: int) -> None:
    told = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 1, "LOCAL_WORLD_SIZE": 2} | also
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))


def test_what_one_process_does_is_refused_under_torchrun(monkeypatch, capsys):
    under_torchrun(monkeypatch)
    assert main.run(["list"]) == 2
    assert "'quickstudy list' runs in one process. Start it without torchrun" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(monkeypatch):
    under_torchrun(monkeypatch, LOCAL_RANK=1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ConfigError, match=r"has 1 GPUs, but process 1 \(from 0\) was started"),
        ranks.joined("cuda"),
    ):
        pass


@pytest.mark.parametrize(("told", "threads"), [("1", 4), ("3", 1)])
def test_ranks_share_the_cores_unless_told_how_many_threads(monkeypatch, told, threads):
    under_torchrun(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    ranks._share_cores()
    assert torch.get_num_threads() == threads  # conftest starts each test with one


def test_without_a_process_group_nothing_is_sent():
    assert (ranks.size(), ranks.rank(), ranks.first(), ranks.restarted()) == (1, 0, True, False)
    loss, slope = torch.ones(()), {"a": torch.ones(2)}
    mean = ranks.begin_mean(loss, slope, 0.5, True)()
    assert mean[0] is loss and mean[1] is slope and mean[2] is True
    with ranks.joined("cpu") as device:
        assert device == torch.device("cpu") and ranks.size() == 1
