"""Each setting of the outer loop does what it says, measured on theta: clipping, the schedule, seeds, precision."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import clusters

import quickstudy as qs
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.training import session
from quickstudy.training.checkpoint import read_metrics
from quickstudy.training.outer import optimizer_of, schedule_of

QUIET = {"engine": "loop", "progress": False}


def maml(**fields) -> qs.MAML:
    torch.manual_seed(0)
    return qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), **{"loss": F.mse_loss, "lr": 0.01, "steps": 1, **fields})


def sines(split: str = "train"):
    return qs.tasks.sinusoid(split, 5, 5)


class OneTask:
    """Always the same tasks, so that the meta-gradient depends on theta alone."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
        return sines().sample(n, torch.Generator().manual_seed(1))


def descent(rate: float):
    return lambda values: torch.optim.SGD(values, lr=rate)


def moved(trained: qs.Trained, start: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(trained.theta[name] - start[name]).flatten() for name in start])


def test_clipping_shortens_a_long_gradient_and_leaves_a_short_one():
    learner = maml()
    start = learner.init()
    common = {"iterations": 1, "meta_batch": 4, "optimizer": descent(1.0), **QUIET}
    free = moved(qs.train(learner, OneTask(), **common), start)
    length = float(free.norm())
    assert length > 0.1
    clipped = moved(qs.train(learner, OneTask(), clip=length / 10, **common), start)
    assert float(clipped.norm()) == pytest.approx(length / 10, rel=1e-3)
    torch.testing.assert_close(clipped, free / 10, rtol=1e-3, atol=1e-6)
    assert torch.equal(moved(qs.train(learner, OneTask(), clip=10 * length, **common), start), free)


def test_the_schedule_scales_every_update():
    """Descent at rates 1/2, 1/4, 1/8: three trainings of one iteration with those rates, one after the other."""
    learner, theta = maml(), maml().init()
    for rate in (0.04, 0.02, 0.01):
        _, slope = qs.meta_gradient(learner, theta, OneTask().sample(4))
        theta = {name: value - rate * slope[name] for name, value in theta.items()}
    trained = qs.train(
        learner,
        OneTask(),
        iterations=3,
        meta_batch=4,
        optimizer=descent(0.04),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        **QUIET,
    )
    torch.testing.assert_close(trained.theta, theta, rtol=1e-5, atol=1e-7)


def test_reptiles_own_outer_loop_is_descent_at_a_rate_that_falls_linearly_to_zero():
    """theta <- theta + e (phi - theta) with e = 1, 2/3, 1/3."""
    torch.manual_seed(0)
    learner = qs.Reptile(qs.nn.mlp(1, 1, hidden=(8,)), loss=F.mse_loss, lr=0.05, steps=2, batch=0, rule="sgd")
    theta, one = learner.init(), OneTask().sample(1)
    support = qs.Batch(*(t[0] for t in one.support))
    for rate in (1.0, 2 / 3, 1 / 3):
        phi = learner.adapt(theta, support)
        theta = {name: value + rate * (phi[name] - value) for name, value in theta.items()}
    trained = qs.train(learner, OneTask(), iterations=3, meta_batch=1, **QUIET)
    torch.testing.assert_close(trained.theta, {n: v.detach() for n, v in theta.items()}, rtol=1e-5, atol=1e-7)


def test_a_misspelt_optimizer_or_schedule_is_refused_with_the_nearest_name():
    assert schedule_of("constant", 10) is None
    with pytest.raises(ConfigError, match=r"one of constant, cosine, linear; got 'cosin'. Did you mean 'cosine'"):
        schedule_of("cosin", 10)
    with pytest.raises(ConfigError, match=r"one of adam, sgd, rmsprop; got 'adm'. Did you mean 'adam'"):
        optimizer_of(qs.Outer("adm"))


SCHEDULES = {
    "of the iteration": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k)),
    "of the last rate": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_cut_run_goes_on_with_the_rate_and_the_moments_that_it_had(tmp_path, schedule):
    """An optimizer with momentum under a schedule: what is not restored shows in theta."""
    common = {
        "meta_batch": 4,
        "optimizer": lambda values: torch.optim.SGD(values, lr=0.02, momentum=0.9),
        "scheduler": schedule,
        **QUIET,
    }
    whole = qs.train(maml(), sines(), iterations=6, **common)
    qs.train(maml(), sines(), iterations=3, out=tmp_path / "run", **common)
    again = qs.train(maml(), sines(), iterations=6, out=tmp_path / "run", resume=True, **common)
    assert all(torch.equal(whole.theta[name], again.theta[name]) for name in whole.theta)


def test_a_source_is_asked_with_generators_of_the_seed_and_the_iteration():
    drawn: dict[int, list[float]] = {}

    class Listening:
        def __init__(self, seed: int) -> None:
            self.seen = drawn.setdefault(seed, [])

        def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
            assert generator is not None
            self.seen.append(float(torch.rand((), generator=generator.clone_state())))
            return sines().sample(n, generator)

    for seed in (0, 1):
        qs.train(maml(), Listening(seed), iterations=3, meta_batch=2, seed=seed, **QUIET)
    again = Listening(2)
    qs.train(maml(), again, iterations=3, meta_batch=2, seed=0, **QUIET)
    assert again.seen == drawn[0]
    # The first iteration's tasks are looked at once more before the training.
    assert len(set(drawn[0])) == len(set(drawn[1])) == 3
    assert not set(drawn[0]) & set(drawn[1])


def test_dropout_draws_anew_in_each_iteration_and_with_each_seed():
    """At a rate of 0 theta never moves and the tasks are the same, so only the draws change the loss."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1))
    learner = qs.MAML(model, loss=F.mse_loss, lr=0.01)

    def losses(seed: int) -> list[float]:
        theta = learner.init()
        steps = qs.training.meta_steps(
            learner, theta, OneTask(), descent(0.0)(list(theta.values())), iterations=4, meta_batch=2, seed=seed
        )
        return [step.loss for step in steps]

    first, other = losses(0), losses(1)
    assert len(set(first)) == 4
    assert not set(first) & set(other)
    assert losses(0) == first


def test_validation_episodes_and_their_interval_are_as_asked(tmp_path):
    """The line of the last iteration is the score of theta on that many episodes of the validation seed."""
    options = {"val": sines("val"), "val_every": 2, "val_episodes": 7}
    trained = qs.train(maml(), sines(), iterations=4, meta_batch=2, seed=3, out=tmp_path / "run", **options, **QUIET)
    lines = [line for line in read_metrics(tmp_path / "run") if "val" in line]
    assert [line["iteration"] for line in lines] == [2, 4]
    best = min(lines, key=lambda line: line["val"])
    score = qs.evaluate(trained, sines("val"), episodes=7, seed=3 + 1_000_003)
    assert best["val"] == pytest.approx(score.mean, rel=1e-5)
    assert best["val_interval"] == pytest.approx(score.interval, rel=1e-5)


def test_settings_reach_the_protocol_and_the_timing(tmp_path):
    qs.train(maml(), sines(), iterations=3, meta_batch=2, precision="bf16", out=tmp_path / "run", **QUIET)
    training = json.loads((tmp_path / "run" / "protocol.json").read_text())["training"]
    assert (training["iterations"], training["meta_batch"], training["precision"]) == (3, 2, "bf16")
    assert training["optimizer"]["name"] == "Adam" and training["optimizer"]["lr"] == 1e-3
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["processor"] > 0 and timing["computing"] > 0 and timing["sampling"] > 0
    assert timing["engine"] == "loop"


def test_bf16_reaches_the_meta_loss():
    """Autocast rounds the matrix products to 8 bits: theta moves elsewhere, by about a hundredth of its way."""
    learner = maml()
    start = learner.init()
    common = {"iterations": 1, "meta_batch": 4, "optimizer": descent(0.1), **QUIET}
    exact, rounded = (
        moved(qs.train(learner, OneTask(), precision=precision, **common), start) for precision in ("float32", "bf16")
    )
    apart = float((rounded - exact).norm() / exact.norm())
    assert 1e-4 < apart < 0.1


# --- what runs together, and how it lies in memory -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Counting(Learner):
    """A learner that counts how often its meta-loss is called and keeps the layout of what it is given."""

    inner: Learner
    seen: list[bool] = field(default_factory=list)  # for each call: whether the images' channels lie last

    def init(self) -> Theta:
        return self.inner.init()

    def adapt(self, theta: Theta, support: Batch) -> Any:
        return self.inner.adapt(theta, support)

    def predict(self, theta: Theta, phi: Any, x: torch.Tensor) -> torch.Tensor:
        return self.inner.predict(theta, phi, x)

    def meta_loss(self, theta: Theta, episode: Episode) -> torch.Tensor:
        self.seen.append(
            episode.query.x.dim() == 4 and episode.query.x.is_contiguous(memory_format=torch.channels_last)
        )
        return self.inner.meta_loss(theta, episode)


@pytest.mark.parametrize(("chunk", "calls"), [(None, 1), (5, 1), (2, 3), (1, 5)])
def test_a_chunk_is_the_most_tasks_that_one_call_of_the_meta_loss_serves(chunk, calls):
    """Five tasks under vmap: one call for all, or one for each chunk. The mean gradient stays the same."""
    learner, episodes = Counting(maml()), sines().sample(5, torch.Generator().manual_seed(0))
    theta = learner.init()
    _, wanted = qs.meta_gradient(learner.inner, theta, episodes)
    _, found = qs.meta_gradient(learner, theta, episodes, engine="vmap", chunk=chunk)
    assert len(learner.seen) == calls
    torch.testing.assert_close(found, wanted)


def test_training_takes_its_tasks_in_chunks():
    """Two iterations more are two times as many calls more as there are chunks."""

    def calls(iterations: int, chunk: int | None) -> int:
        learner = Counting(maml())
        qs.train(
            learner, sines(), iterations=iterations, meta_batch=6, engine="vmap", chunk=chunk, progress=False, seed=0
        )
        return len(learner.seen)

    assert calls(3, 2) - calls(1, 2) == 2 * 3
    assert calls(3, 6) - calls(1, 6) == 2 * 1


def test_channels_last_is_how_images_and_kernels_lie():
    def learner() -> Counting:
        torch.manual_seed(0)
        return Counting(qs.ProtoNet(qs.nn.conv4(channels=3, filters=4, size=16, norm="none"), ways=3))

    tasks, common = clusters((3, 16, 16)), {"iterations": 2, "meta_batch": 2, "optimizer": descent(0.1), **QUIET}
    plain, changed = learner(), learner()
    first = qs.train(plain, tasks, **common)
    second = qs.train(changed, tasks, channels_last=True, **common)
    assert not any(plain.seen)
    assert all(changed.seen[-4:])  # before those, both layouts are compared
    kernels = [value for value in second.theta.values() if value.dim() == 4]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    torch.testing.assert_close(dict(second.theta), dict(first.theta), rtol=1e-4, atol=1e-5)


def test_of_accuracies_the_highest_validation_is_kept(tmp_path):
    """Climbing the loss of a classifier: its first validation is its best, and that theta is returned."""
    tasks = clusters(spread=0.2)
    torch.manual_seed(0)
    trained = qs.train(
        qs.ProtoNet(qs.nn.mlp(4, None, hidden=(8,)), ways=3),
        tasks,
        iterations=6,
        meta_batch=4,
        val=tasks,
        val_every=1,
        val_episodes=10,
        optimizer=lambda values: torch.optim.SGD(values, lr=0.3, maximize=True),
        out=tmp_path / "run",
        **QUIET,
    )
    values = [line["val"] for line in read_metrics(tmp_path / "run")]
    assert max(values) > values[-1]
    assert qs.evaluate(trained, tasks, episodes=10, seed=1_000_003).mean == pytest.approx(max(values))


def test_resuming_writes_no_iteration_twice(tmp_path):
    """Lines that were written after the last checkpoint belong to iterations that run again."""
    common = {"meta_batch": 2, "out": tmp_path / "run", **QUIET}
    qs.train(maml(), sines(), iterations=20, **common)
    path = tmp_path / "run" / "metrics.jsonl"
    kept = path.read_text()
    path.write_text(kept + json.dumps({"iteration": 40, "loss": 1e9, "seconds": 1.0}) + "\n")
    qs.train(maml(), sines(), iterations=60, resume=True, **common)
    lines = read_metrics(tmp_path / "run")
    assert path.read_text().startswith(kept)
    assert [line["iteration"] for line in lines] == [20, 40, 60]
    assert max(line["loss"] for line in lines) < 1e9


def test_losses_before_a_cut_count_in_the_line_after_it(tmp_path, monkeypatch):
    """A line holds the mean loss since the line before it, also where a checkpoint came between them."""
    common = {"meta_batch": 2, **QUIET}
    qs.train(maml(), sines(), iterations=40, out=tmp_path / "whole", **common)

    class Cut(Exception):
        pass

    class Cutting:
        """Fails when the tasks of iteration 31 are drawn."""

        drawn = 0

        def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
            self.drawn += 1
            if self.drawn > 31:
                raise Cut
            return sines().sample(n, generator)

        def describe(self):
            return sines().describe()

    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Cut):
        qs.train(maml(), Cutting(), iterations=40, out=tmp_path / "cut", **common)
    qs.train(maml(), sines(), iterations=40, out=tmp_path / "cut", resume=True, **common)
    whole, cut = (
        [(line["iteration"], line["loss"]) for line in read_metrics(tmp_path / run)] for run in ("whole", "cut")
    )
    assert cut == whole and [iteration for iteration, _ in whole] == [20, 40]
