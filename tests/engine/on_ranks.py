"""What test_ranks.py runs under torchrun, and most of it in one process too, to hold against: named cases.

python on_ranks.py FOLDER    every case on every rank; what rank r found goes to FOLDER/r.json
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from problems import clusters
from torch import nn

import quickstudy as qs
from quickstudy.base import files
from quickstudy.cli import main
from quickstudy.engine import ranks
from quickstudy.episodes import Episodes, mapped
from quickstudy.tasks.tabular.groups import GroupTasks
from quickstudy.training import session
from quickstudy.training.checkpoint import read_metrics

TRAIN = ["train", "sinusoid", "maml", "--iterations", "25", "--meta-batch", "3", "--engine", "vmap", "--hidden", "8"]
TRAIN += ["--shots", "5", "--queries", "5", "--val-every", "10", "--val-episodes", "30"]
DIES = 13
SCORED = 60  # test episodes: three blocks, the last one smaller


def plain(theta: dict[str, torch.Tensor]) -> list[float]:
    return [value for tensor in theta.values() for value in tensor.flatten().tolist()]


def maml(seed: int = 0, **fields: Any) -> qs.MAML:
    torch.manual_seed(seed)
    return qs.MAML(qs.nn.mlp(1, 1, hidden=(6,)), **{"loss": qs.mse_loss, "lr": 0.01, "steps": 2, **fields})


def protonet() -> qs.ProtoNet:
    torch.manual_seed(0)
    return qs.ProtoNet(qs.nn.mlp(4, 5, hidden=(6,)), ways=3)


def sines(split: str = "train") -> Any:
    return qs.tasks.sinusoid(split, 5, 5)


def groups() -> GroupTasks:
    """Groups of 3 to 8 rows: tasks of unequal sizes, which come in a list."""
    drawn, sizes = torch.Generator().manual_seed(0), torch.arange(3, 9)
    rows = torch.randn(int(sizes.sum()), 2, generator=drawn)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return GroupTasks(rows[:, :1], rows[:, 1:], starts, [f"group {i}" for i in range(6)], shots=4, queries=3)


def train(learner: qs.Learner, tasks: Any, **options: Any) -> qs.Trained:
    return qs.train(
        learner, tasks, **{"iterations": 5, "meta_batch": 4, "engine": "vmap", "progress": False, **options}
    )


# --- cases: folder -> plain values -----------------------------------------------------------------------------------


def uneven(folder: Path) -> Any:
    """An odd number of tasks; and validation, which the ranks share too."""
    trained = train(maml(), sines(), val=sines("val"), val_every=2, val_episodes=SCORED, clip=0.5, out=folder)
    lines = read_metrics(folder) if ranks.first() else []
    return {"theta": plain(trained.theta), "lines": [{k: x[k] for k in ("iteration", "loss", "val")} for x in lines]}


def without_tasks(folder: Path) -> Any:
    """One task: all ranks but the first have none."""
    return plain(train(maml(), sines(), meta_batch=1).theta)


def classes(folder: Path) -> Any:
    """A source that makes a rank's share alone."""
    return plain(train(protonet(), clusters()).theta)


def of_unequal_sizes(folder: Path) -> Any:
    return plain(train(maml(), groups(), meta_batch=5).theta)


def scores(folder: Path) -> Any:
    trained = qs.Trained(protonet(), protonet().init())
    score = qs.evaluate(trained, clusters(), episodes=SCORED, controls=["nearest_centroid"], engine="vmap")
    seen: list[int] = []
    qs.evaluate(trained, clusters(), episodes=SCORED, engine="vmap", progress=seen.append)
    return {"values": score.to_dict(), "seen": sum(seen) if ranks.first() else SCORED}


def on_the_command_line(folder: Path) -> Any:
    """All ranks train and evaluate; the first one writes."""
    codes = [main.run([*TRAIN, "--out", str(folder)])]
    codes += [main.run(["evaluate", str(folder), "--episodes", "30", "--engine", "vmap", "--controls", "zero_steps"])]
    found = files.read_json(folder / "scores.json") if ranks.first() else {}
    return {"codes": codes, "scores": found.get("scores")}


@dataclass(frozen=True, eq=False)
class Drawing(qs.Learner):
    """Notes the random number that each meta-loss draws."""

    drawn: list[float] = field(default_factory=list)

    def init(self) -> dict[str, torch.Tensor]:
        return {"a": torch.zeros(1)}

    def adapt(self, theta: Any, support: qs.Batch) -> torch.Tensor:
        return theta["a"]

    def predict(self, theta: Any, phi: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return phi + 0 * x

    def meta_loss(self, theta: Any, episode: qs.Episode) -> torch.Tensor:
        self.drawn.append(float(torch.rand(())))
        return theta["a"].sum()


def random_numbers(folder: Path) -> Any:
    learner = Drawing([])
    train(learner, sines(), meta_batch=2, iterations=2, engine="loop")
    return learner.drawn


@dataclass(frozen=True)
class Spoiled:
    """Sine waves; from an iteration on, `spoil` is done to the whole batch."""

    spoil: Callable[[Episodes], Episodes]
    calls: list[int] = field(default_factory=list)
    after: int = 3

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episodes:
        self.calls.append(n)
        drawn = sines().sample(n, generator)
        return self.spoil(drawn) if len(self.calls) > self.after else drawn


def _overflow_in_the_last_task(episodes: Episodes) -> Episodes:
    return mapped(lambda t: torch.cat([t[:-1], t[-1:] * 1e200]), episodes)


def not_finite(folder: Path) -> Any:
    return message_of(lambda: train(maml(), Spoiled(_overflow_in_the_last_task), engine="loop"))


def patience(folder: Path) -> Any:
    """Climbing the loss: validation never gets better, and all stop early."""
    asked: list[int] = []
    tasks = Spoiled(lambda episodes: episodes, asked)
    options = {"val": sines("val"), "val_every": 1, "val_episodes": SCORED, "patience": 2, "iterations": 40}
    climbing = lambda values: torch.optim.SGD(values, lr=0.01, maximize=True)  # noqa: E731
    trained = train(maml(), tasks, optimizer=climbing, **options)
    return {"theta": plain(trained.theta), "early": len(asked) < 30}


def _interrupt(episodes: Episodes) -> Episodes:
    if ranks.rank() == ranks.size() - 1:
        signal.raise_signal(signal.SIGINT)
    return episodes


def interrupted(folder: Path) -> Any:
    """Ctrl-C at one rank stops all after the same iteration; then the run goes on."""
    try:
        train(maml(), Spoiled(_interrupt), out=folder, iterations=9)
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    known = files.read_tensors(folder / "checkpoint.safetensors", "checkpoint")[1]["iteration"]
    ranks.barrier()
    trained = train(maml(), Spoiled(lambda episodes: episodes), out=folder, iterations=9, resume=True)
    return {"stopped": stopped, "early": known < 9, "theta": plain(trained.theta)}


def whole(folder: Path) -> Any:
    return plain(train(maml(), sines(), iterations=9).theta)


def other_weights(folder: Path) -> Any:
    told = message_of(lambda: train(maml(seed=ranks.rank()), sines(), out=folder))
    return [told, folder.exists()]


def in_parallel_by_torch(folder: Path) -> Any:
    """`as_module` under DistributedDataParallel: each rank a share of the tasks, the gradient of all."""
    module = qs.as_module(maml())
    parallel = nn.parallel.DistributedDataParallel(module) if ranks.size() > 1 else module
    tasks = 6 // ranks.size()  # DistributedDataParallel averages over ranks: each needs as many tasks
    batch = sines().sample(6, torch.Generator().manual_seed(0))
    own = mapped(lambda t: t[ranks.rank() * tasks :][:tasks], batch)
    for _ in range(2):  # a second backward pass: the first one's buckets are used again
        module.zero_grad()
        parallel(own, batched=True).backward()
    return [value for p in module.parameters() for value in p.grad.flatten().tolist()]  # type: ignore[union-attr]


def one_fails(folder: Path) -> Any:
    """The last rank cannot draw its tasks; the others do not wait for it."""

    def fail(episodes: Episodes) -> Episodes:
        if ranks.rank() == ranks.size() - 1:
            raise qs.errors.DataError("a broken image")
        return episodes

    return message_of(lambda: train(maml(), Spoiled(fail), engine="loop"))


def message_of(run: Callable[[], Any]) -> str:
    try:
        run()
    except qs.errors.QuickstudyError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


CASES: dict[str, Callable[[Path], Any]] = {
    case.__name__: case
    for case in (
        uneven,
        without_tasks,
        classes,
        of_unequal_sizes,
        scores,
        on_the_command_line,
        random_numbers,
        not_finite,
        patience,
        interrupted,
        whole,
        other_weights,
        in_parallel_by_torch,
        one_fails,  # the last one: the ranks have lost each other
    )
}


def killed(folder: Path) -> Any:
    """The training of `on_the_command_line`. At the first start rank 1 dies at iteration DIES, and nobody returns."""
    session.CHECKPOINT_SECONDS = 0.0
    if not ranks.restarted():
        account = session._account

        def die(state: Any, step: Any, counted: Any) -> None:
            if step.iteration == DIES and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            account(state, step, counted)

        session._account = die
        sys.exit(main.run([*TRAIN, "--out", str(folder)]))
    known = files.read_tensors(folder / "checkpoint.safetensors", "checkpoint")[1]["iteration"]
    ranks.barrier()
    return {"resumed": known, "code": main.run([*TRAIN, "--out", str(folder)])}


def work(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    with ranks.joined():
        found = {"killed": killed(folder / "killed")}
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
        found |= {name: case(folder / name) for name, case in CASES.items()}
        files.write_json(folder / f"{ranks.rank()}.json", found)
        os._exit(0)  # not every rank is there to leave the group


if __name__ == "__main__":
    work(Path(sys.argv[1]))
