"""Trainings that end by the clock: what counts, when they validate, how rates fall, and how they go on."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import quickstudy as qs
from quickstudy.base.own_time import own_share, share_between
from quickstudy.errors import ConfigError
from quickstudy.training import session
from quickstudy.training.budget import Budget, used

# --- own time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ran", "waited", "cores", "share"),
    [
        ([1.0], [0.0], 2, 1.0),  # one thread alone
        ([0.5], [0.5], 2, 0.5),  # half of its time others had its core
        ([0.2], [0.0], 2, 1.0),  # mostly idle, as when it waits for a disk: idle time counts
        ([0.1], [0.2], 2, 0.8),
        ([1.0, 1.0], [0.0, 0.0], 2, 1.0),  # two threads at once count once
        ([0.5, 0.5], [0.5, 0.5], 2, 0.5),
        ([2 / 3] * 3, [1 / 3] * 3, 2, 1.0),  # own threads stand in each other's way: nobody took anything
        ([0.0], [0.0], 2, 1.0),
    ],
)
def test_the_share_of_a_second(ran: list[float], waited: list[float], cores: int, share: float) -> None:
    before = {str(i): (5.0, 7.0) for i in range(len(ran))} | {"ended": (9.0, 9.0)}
    after = {str(i): (5 + r, 7 + w) for i, (r, w) in enumerate(zip(ran, waited, strict=True))} | {"new": (1.0, 1.0)}
    assert share_between(before, after, 1.0, cores) == pytest.approx(share)


def test_the_share_is_read_from_the_threads(tmp_path: Path) -> None:
    def write(ran: float, waited: float) -> None:
        (tmp_path / "17" / "schedstat").write_text(f"{int(1e9 * ran)} {int(1e9 * waited)} 4\n")

    (tmp_path / "17").mkdir()
    write(1.0, 1.0)
    share = own_share(tmp_path)
    assert share() == 1.0  # read a moment ago
    write(1.01, 1.03)
    time.sleep(0.06)
    assert 0.49 < share() < 0.99  # 0.03 s of the 0.06 s, or of more on a busy machine


def test_without_such_times_own_seconds_are_seconds(tmp_path: Path) -> None:
    share = own_share(tmp_path / "nothing")
    time.sleep(0.06)
    assert share() == 1.0


# --- trainings -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every iteration takes a second."""
    monkeypatch.setattr(session, "stopwatch", lambda device: lambda seconds: 1.0)


def train(out: Path | None, seconds: float, learner: qs.Learner | None = None, **options: object) -> qs.Trained:
    torch.manual_seed(0)
    learner = learner or qs.MAML(qs.nn.mlp(1, 1, hidden=(4,)), loss=F.mse_loss, lr=0.01)
    known = {"iterations": 10**9, "meta_batch": 2, "engine": "loop", "progress": False, "budget": Budget(seconds, 5)}
    return qs.train(learner, qs.tasks.sinusoid("train", 5, 5), out=out, **known | options)  # type: ignore[arg-type]


def same(a: qs.Trained, b: qs.Trained) -> bool:
    return all(torch.equal(a.theta[name], b.theta[name]) for name in a.theta)


def test_it_ends_when_its_time_is_used_up(clock: None, tmp_path: Path) -> None:
    found = train(tmp_path / "a", 6.5)
    timing, config, protocol = (
        json.loads((tmp_path / "a" / f"{name}.json").read_text()) for name in ("timing", "config", "protocol")
    )
    assert (timing["iterations"], used(timing)) == (7, 7.0)  # the iteration in which the time is used up is the last
    assert config["iterations"] == protocol["training"]["iterations"] == 7 and config["seconds"] == 6.5
    assert same(found, train(None, 1e9, iterations=7)) and same(found, train(None, 1.0, iterations=7, budget=None))


def test_real_seconds_end_it_too(tmp_path: Path) -> None:
    train(tmp_path / "a", 0.3)
    timing = json.loads((tmp_path / "a" / "timing.json").read_text())
    assert 0.3 <= used(timing) <= timing["sampling"] + timing["computing"] + 1e-6 and timing["iterations"] > 3


def test_it_validates_at_equal_shares_of_the_time(clock: None, tmp_path: Path) -> None:
    train(tmp_path / "a", 23.0, val=qs.tasks.sinusoid("val", 5, 5), val_episodes=2)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["own"]) for line in lines if "val" in line] == [
        (n, float(n)) for n in (5, 10, 14, 19, 23)
    ]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_it_goes_on_with_the_time_it_has_left(
    clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, schedule: str
) -> None:
    """Cut after the third iteration: the same theta, to the last bit, as without a stop."""

    class Scheduled(qs.Reptile):
        def outer(self) -> qs.learner.Outer:
            return qs.learner.Outer("sgd", 0.5, schedule)

    learner = Scheduled(qs.nn.mlp(1, 1, hidden=(4,)), F.mse_loss, 0.01)
    whole = train(None, 8.0, learner)
    seconds, lines = iter(range(1, 99)), session.append_metrics

    def cut(folder: Path | None, line: dict) -> None:
        lines(folder, line)
        if next(seconds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(session, "append_metrics", cut)
        train(tmp_path / "a", 8.0, learner)
    assert not (tmp_path / "a" / "learner.qs").exists()
    resumed = train(tmp_path / "a", 8.0, learner, resume=True)
    assert same(resumed, whole)
    assert json.loads((tmp_path / "a" / "timing.json").read_text())["iterations"] == 8
    assert same(train(tmp_path / "a", 8.0, learner, resume=True), whole)  # its time is used up


def test_rates_fall_over_the_time(clock: None) -> None:
    rates: dict[str, list[float]] = {"linear": [], "cosine": []}
    for schedule, seen in rates.items():

        class Scheduled(qs.Reptile):
            def outer(self) -> qs.learner.Outer:
                return qs.learner.Outer("sgd", 0.5, schedule)  # noqa: B023

        def optimizer(values: list[torch.Tensor]) -> torch.optim.Optimizer:
            made = torch.optim.SGD(values, lr=0.5)
            made.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))  # noqa: B023
            return made

        train(None, 4.0, Scheduled(qs.nn.mlp(1, 1, hidden=(4,)), F.mse_loss, 0.01), optimizer=optimizer)
    assert rates["linear"] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert rates["cosine"] == pytest.approx([0.25 * (1 + math.cos(math.pi * n / 4)) for n in range(4)])


def test_what_changes_in_training_goes_by_the_time(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    learner = qs.MAMLPlusPlus(qs.nn.mlp(1, 1, hidden=(4,)), F.mse_loss, lr=0.01, steps=2)
    monkeypatch.setattr(type(learner), "at", lambda self, progress: seen.append(progress) or self)
    train(None, 4.0, learner)
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("numbers", [(0.0, 5), (-1.0, 5), (math.nan, 5), (1.0, 0)])
def test_a_budget_without_time_is_refused(numbers: tuple[float, int]) -> None:
    with pytest.raises(ConfigError, match="time above 0 and at least one validation"):
        Budget(*numbers)
