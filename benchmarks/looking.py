"""What it costs to look again, in the course of a training, whether the engine agrees with the loop.

    python -m benchmarks.looking [--seconds 120]

Trains three learners by the clock, each with an engine that has to be compared with the loop, and prints the share of
the training's time that the looks took. Writes results/looking.json and looking.md. Takes about seven minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quickstudy as qs
from benchmarks.markdown import table
from benchmarks.provenance import COMMIT, RESULTS
from quickstudy.base import files
from quickstudy.base.machine import in_words as machine_in_words
from quickstudy.base.machine import machine
from quickstudy.training import Budget

COLUMNS = ("training", "engine", "iterations", "seconds", "looks took", "share")


class Words(nn.Module):
    """Means of word vectors, with padding and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(2000, 64, padding_idx=0), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(torch.tanh(self.words(x)).mean(1), 0.1, self.training))


class Texts:
    """Random texts of 12 words, of which one task in ten has padding."""

    ways = 5

    def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
        padded = torch.rand(n, 1, 1, generator=generator) < 0.1

        def batch(k: int) -> qs.Batch:
            x = torch.randint(1, 2000, (n, 5 * k, 12), generator=generator)
            return qs.Batch(x * ~(padded & (torch.arange(12) > 8)), (torch.arange(5 * k) % 5).expand(n, -1))

        return qs.Episode(batch(5), batch(15))


class Training(NamedTuple):
    name: str
    learner: Callable[[], qs.learner.Learner]
    tasks: Callable[[], Any]
    meta_batch: int
    engine: str


TRAININGS = (
    Training(
        "sinusoid, MAML, 5 steps",
        lambda: qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=5),
        lambda: qs.tasks.sinusoid("train"),
        25,
        "replay",
    ),
    Training(
        "glyphs, MAML, Conv4, 5 steps",
        lambda: qs.MAML(qs.nn.conv4(channels=1, classes=5), lr=0.1, steps=5),
        lambda: qs.tasks.glyphs("train", ways=5, shots=1, queries=15),
        8,
        "replay-threads",
    ),
    Training("words with padding and dropout, MAML, 5 steps", lambda: qs.MAML(Words(), steps=5), Texts, 16, "vmap"),
)


def measured(one: Training, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        qs.train(
            one.learner(),
            one.tasks(),
            iterations=10**9,
            meta_batch=one.meta_batch,
            engine=one.engine,
            out=out,
            progress=False,
            budget=Budget(seconds),
        )
        return json.loads((out / "timing.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.looking", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each training")
    seconds = parser.parse_args().seconds
    found = {one.name: measured(one, seconds) for one in TRAININGS}
    about = {"commit": COMMIT, "machine": machine(), "seconds": seconds}
    files.write_json(RESULTS / "looking.json", {"about": about, "found": found})
    rows = [
        [
            name,
            t["engine"],
            f"{t['iterations']:,}",
            f"{t['total'] - t['choosing']:.1f}",
            f"{t['looking']:.2f} s",
            f"{100 * t['looking'] / (t['total'] - t['choosing']):.2f} %",
        ]
        for name, t in found.items()
    ]
    text = [
        "# What looking again costs",
        "",
        f"`python -m benchmarks.looking`, commit {COMMIT}, {machine_in_words(about['machine'])}.",
        f"Each training ends after {seconds:.0f} seconds; choosing the engine is not in them.",
        "",
        *table(COLUMNS, rows),
    ]
    (RESULTS / "looking.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
