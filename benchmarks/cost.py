"""What a learner of the gradient family costs beside MAML: time of an iteration, memory held for derivatives.

    python -m benchmarks.cost                 three minutes on 2 quiet cores; nothing else should run

Settings are those of the reproduction table (benchmarks/rows.py): Conv4-64, 5-way, 1 and 5 shots, on generated
characters of Omniglot's size. Memory is what autograd keeps for the backward pass at its peak, counted tensor by tensor
in one task, so it is the same on every machine. Writes results/cost.json, cost.md and docs/images/memory.png.
"""

from __future__ import annotations

import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import quickstudy as qs
from benchmarks import rows
from benchmarks.reproduce import RESULTS, ROOT, commit
from quickstudy import engine, files, recipes
from quickstudy.machine import machine

STEPS = (1, 2, 4, 8, 16, 32)
REPEATS = 15


class Held:
    """Bytes that autograd keeps alive, now and at the most. Tensors that share memory count once."""

    def __init__(self) -> None:
        self.owners: dict[int, int] = {}
        self.bytes = self.peak = 0

    def pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        self.owners[key] = self.owners.get(key, 0) + 1
        if self.owners[key] == 1:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        weakref.finalize(kept, self._free, key, size)
        return kept

    def _free(self, key: int, size: int) -> None:
        self.owners[key] -= 1
        if self.owners[key] == 0:
            self.bytes -= size


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def counting() -> Iterator[Held]:
    held = Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
        yield held


def memory(learner: qs.Learner, theta: dict[str, Tensor], episodes: qs.Episode) -> int:
    """Peak bytes held for derivatives in the meta-gradient of one task."""
    with counting() as held:
        qs.meta_gradient(learner, theta, engine.first_tasks(episodes, 1), "loop")
    return held.peak


def seconds(run: Callable[[], Any]) -> float:
    """Median of a few runs, after one that warms up."""
    run()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def learner_of(entry: rows.Entry, source: Any) -> qs.Learner:
    return recipes.build_learner(recipes.find_learner(entry.learner)[1], source, dict(entry.fields), {})


def measure(entry: rows.Entry, shots: int) -> dict[str, Any]:
    """One iteration of the row of this learner at this many shots."""
    trained, queries = entry.training
    source = qs.tasks.glyphs("train", ways=5, shots=trained or shots, queries=queries)
    learner = learner_of(entry, source)
    theta, episodes = learner.init(), source.sample(entry.meta_batch, torch.Generator().manual_seed(0))
    parts = [learner.at(0.25), learner.at(0.75)]  # MAML++ is first order in its first half
    each = [seconds(lambda one=one: qs.meta_gradient(one, theta, episodes, "threads")) for one in parts]
    return {
        "learner": entry.learner,
        "shots": shots,
        "tasks": entry.meta_batch,
        "seconds": statistics.mean(each),
        "memory": memory(learner, theta, episodes),
        "parameters": sum(value.numel() for value in theta.values()),
    }


def over_steps() -> dict[str, list[int]]:
    """Memory at STEPS inner steps: unrolled, first order, implicit (5-way 5-shot)."""
    source = qs.tasks.glyphs("train", ways=5, shots=5, queries=5)
    episodes, network = source.sample(1, torch.Generator().manual_seed(0)), qs.nn.conv4(channels=1, classes=5)
    kinds: dict[str, Callable[[int], qs.Learner]] = {
        "MAML": lambda steps: qs.MAML(network, lr=0.01, steps=steps),
        "MAML, first order": lambda steps: qs.MAML(network, lr=0.01, steps=steps, first_order=True),
        "iMAML": lambda steps: qs.IMAML(network, lr=0.01, steps=steps),
    }
    return {
        name: [memory(learner := build(k), learner.init(), episodes) for k in STEPS] for name, build in kinds.items()
    }


def draw(found: dict[str, list[int]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, values), marker in zip(found.items(), "osD", strict=True):
        axes.plot(STEPS, [v / 2**20 for v in values], marker=marker, label=name)
    axes.set(xscale="log", yscale="log", xlabel="inner steps", ylabel="memory held for derivatives (MiB, one task)")
    axes.set_xticks(STEPS, [str(k) for k in STEPS])
    axes.set_yticks(ticks := (2, 5, 10, 20, 50, 100, 200), [str(k) for k in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "memory.png", dpi=110)


def table(result: dict[str, Any]) -> str:
    lines = ["# cost", "", "Command: `python -m benchmarks.cost` · Conv4-64, 5-way, settings of the reproduction table"]
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value is not None)
    lines += [
        f"(commit {result['commit']})",
        "",
        f"Machine: {about}",
        "",
        "Time of an iteration per task on all cores, memory held for derivatives in one task; in brackets against MAML "
        "at the same shots. Reptile always trains at 10 shots.",
        "",
        "| learner | shots | ms per task | memory (MiB) | values in theta |",
        "|---|---|---|---|---|",
    ]
    base = {row["shots"]: row for row in result["rows"] if row["learner"] == "maml"}
    for row in result["rows"]:
        maml = base[row["shots"]]
        each, its = (r["seconds"] / r["tasks"] for r in (row, maml))
        kept, has = row["memory"] / 2**20, maml["memory"] / 2**20
        cells = (f"{1e3 * each:.1f} ({each / its:.2f}x)", f"{kept:.1f} ({kept / has:.2f}x)", f"{row['parameters']:,}")
        lines.append(f"| {row['learner']} | {row['shots']} | " + " | ".join(cells) + " |")
    lines += ["", f"Memory (MiB) at {', '.join(map(str, STEPS))} inner steps, 5-way 5-shot, one task:", ""]
    lines += ["| | " + " | ".join(map(str, STEPS)) + " |", "|---|" + "---|" * len(STEPS)]
    for name, values in result["over_steps"].items():
        lines.append(f"| {name} | " + " | ".join(f"{v / 2**20:.1f}" for v in values) + " |")
    lines += ["", "![memory over inner steps](../../docs/images/memory.png)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")  # systems that an untrained network leaves unsolved do not matter here
    found = [measure(entry, shots) for shots in (1, 5) for entry in rows.FAMILY]
    result = {"machine": machine(), "commit": commit(), "rows": found, "over_steps": over_steps()}
    draw(result["over_steps"])
    files.write_json(RESULTS / "cost.json", result)
    (RESULTS / "cost.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
