"""Measures the cost of each learner: the time of an iteration, and the memory held for derivatives.

    python -m benchmarks.cost                    the gradient family against MAML; also writes docs/images/memory.png
    python -m benchmarks.cost --family others    all other learners, against ProtoNet on tasks of the same sizes

Each takes some minutes on 2 quiet cores; nothing else should run. The settings are those of the reproduction tables
(benchmarks/reproduce/rows/), on generated characters of Omniglot's size. Memory is the peak of what autograd keeps for
the backward pass of one task, counted tensor by tensor, so it is the same on every machine. Writes results/cost.json
and .md, or cost-others.json and .md.
"""

from __future__ import annotations

import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import quickstudy as qs
from benchmarks.provenance import IMAGES, RESULTS, commit
from benchmarks.reproduce import rows
from quickstudy.base import files
from quickstudy.base.machine import in_words as machine_in_words
from quickstudy.base.machine import machine
from quickstudy.engine import mapping
from quickstudy.experiments import recipes

STEPS = (1, 2, 4, 8, 16, 32)
REPEATS = 15


class Held:
    """Counts the bytes that autograd keeps alive: now, and at the peak. Tensors that share memory count once."""

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
    """Peak bytes that autograd holds in the meta-gradient of one task."""
    with counting() as held:
        qs.meta_gradient(learner, theta, mapping.first_tasks(episodes, 1), "loop")
    return held.peak


def seconds(run: Callable[[], Any]) -> float:
    """Median seconds of REPEATS runs, after one warm-up run."""
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
    """Measure one iteration of this learner's row at this many shots."""
    trained, queries = entry.training
    source = qs.tasks.glyphs("train", ways=5, shots=trained or shots, queries=queries)
    learner = learner_of(entry, source)
    theta, episodes = learner.init(), source.sample(entry.meta_batch, torch.Generator().manual_seed(0))
    parts = [learner.at(0.25), learner.at(0.75)]  # MAML++ uses first-order gradients in the first half of training
    each = [seconds(lambda one=one: qs.meta_gradient(one, theta, episodes, "threads")) for one in parts]
    return {
        "learner": entry.learner,
        "shots": shots,
        "tasks": entry.meta_batch,
        "seconds": statistics.mean(each),
        "memory": memory(learner, theta, episodes),
        "parameters": sum(value.numel() for value in theta.values()),
    }


def beside_protonet(row: rows.Row) -> dict[str, Any]:
    """Measure one iteration of the row and one test task, and the same for ProtoNet on tasks of these sizes."""
    own, bar = of_learner(row, row.learner, row.fields, row.network), of_learner(row, "protonet", {}, {})
    return {"row": row.name, "sizes": row.sizes, "tasks": row.meta_batch, **own, "beside": bar}


def of_learner(row: rows.Row, name: str, fields: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    source, cls = qs.tasks.glyphs("train", *row.sizes), recipes.find_learner(name)[1]
    learner = recipes.build_learner(cls, source, dict(fields), dict(network))
    theta, kind = learner.init(), "vmap" if learner.ordered else "threads"
    training = source if cls.episodic else source.pooled()
    episodes = training.sample(row.meta_batch, torch.Generator().manual_seed(0))
    support, query = mapping.unstack(source.sample(1, torch.Generator().manual_seed(1)))[0]

    def answer() -> Tensor:
        with torch.no_grad():
            return learner.predict(theta, learner.adapt(theta, support), query.x)

    return {
        "seconds": seconds(lambda: qs.meta_gradient(learner, theta, episodes, kind)),
        "memory": memory(learner, theta, episodes),
        "answer": seconds(answer),
        "parameters": sum(value.numel() for value in theta.values()),
    }


def over_steps() -> dict[str, list[int]]:
    """Memory in bytes at each of STEPS inner steps for MAML, first-order MAML and iMAML (5-way 5-shot)."""
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
    figure.savefig(IMAGES / "memory.png", dpi=110)


def heading(name: str, command: str, result: dict[str, Any]) -> list[str]:
    about = machine_in_words(result["machine"])
    settings = "Conv4-64, settings of the reproduction tables"
    return [
        f"# {name}",
        "",
        f"Command: `{command}` · {settings} (commit {result['commit']})",
        "",
        f"Machine: {about}",
        "",
    ]


def table(result: dict[str, Any]) -> str:
    lines = heading("cost", "python -m benchmarks.cost", result)
    lines += [
        "5-way. Time of an iteration per task on all cores, memory held for derivatives in one task; in brackets "
        "against MAML at the same shots. Reptile always trains at 10 shots.",
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


def table_of_others(result: dict[str, Any]) -> str:
    lines = heading("cost-others", "python -m benchmarks.cost --family others", result)
    lines += [
        "Time of an iteration per task on all cores, memory held for derivatives in one task, and the time in which "
        "one such task is learned and its queries are answered; in brackets against ProtoNet at the same sizes. Rows "
        "on features are measured with a Conv4 of their own; features that are made once leave the rest of it.",
        "",
        "| row | ways, shots, queries | ms per task | memory (MiB) | ms to adapt and answer | values in theta |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        bar = row["beside"]
        cells = [f"{1e3 * row['seconds'] / row['tasks']:.1f} ({row['seconds'] / bar['seconds']:.2f}x)"]
        cells += [f"{row['memory'] / 2**20:.1f} ({row['memory'] / bar['memory']:.2f}x)"]
        cells += [f"{1e3 * row['answer']:.1f} ({row['answer'] / bar['answer']:.2f}x)", f"{row['parameters']:,}"]
        lines.append(f"| {row['row']} | {', '.join(map(str, row['sizes']))} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(family: Literal["gradient", "others"] = "gradient") -> None:
    """Measure and write the table of a family.

    Args:
        family: gradient, or others (metric, closed form, memory, hypernetworks, pretraining).
    """
    warnings.simplefilter("ignore")  # an untrained network may leave linear systems unsolved; costs stay the same
    about = {"machine": machine(), "commit": commit()}
    if family == "others":
        result = about | {"rows": [beside_protonet(row) for row in rows.metric_rows() + rows.memory_rows()]}
        name, page = "cost-others", table_of_others(result)
    else:
        found = [measure(entry, shots) for shots in (1, 5) for entry in rows.FAMILY]
        result = about | {"rows": found, "over_steps": over_steps()}
        draw(result["over_steps"])
        name, page = "cost", table(result)
    files.write_json(RESULTS / f"{name}.json", result)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    tyro.cli(main)
