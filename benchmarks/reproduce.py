"""Train and test on real data under published settings, side by side with baselines on the same episodes.

    python benchmarks/reproduce.py omniglot --data FOLDER      about 45 minutes on 2 cores
    python benchmarks/reproduce.py sinusoid                    about 2 minutes

Each row trains once in runs/reproduce (resumable; a row whose result stands is skipped) and is tested under its own
protocol; baselines meet the same episodes, so differences are paired. Results go to benchmarks/results: a JSON file
with everything and a Markdown table made from it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # also when run as a file
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import tyro  # noqa: E402

import quickstudy as qs  # noqa: E402
from quickstudy import files, recipes, seeds  # noqa: E402
from quickstudy.evaluation import Score, compare, in_words  # noqa: E402
from quickstudy.machine import machine  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Test:
    """A protocol under which a row is tested."""

    ways: int | None
    shots: int
    queries: int
    steps: int | None = None
    episodes: int = 1000


@dataclass(frozen=True)
class Row:
    """One training and its tests."""

    name: str
    learner: str
    sizes: tuple[int | None, int, int]  # ways, shots, queries in training
    iterations: int
    meta_batch: int
    tests: Sequence[Test]
    fields: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    schedule: str = "cosine"
    seed: int = 0
    published: str = ""  # the paper's number, under the paper's protocol
    differs: str = ""  # what we did otherwise


ONE, FIVE, MAML_TEST = Test(5, 1, 15), Test(5, 5, 15), Test(5, 1, 1, steps=3)

OMNIGLOT = [
    Row(
        "maml-5way-1shot",
        "maml",
        (5, 1, 5),
        3000,
        16,
        [MAML_TEST],
        {"lr": 0.4, "steps": 1},
        published="98.7 ± 0.4 (60,000 iterations of 32 tasks)",
        differs="3,000 iterations of 16 tasks; 5 queries per class in training",
    ),
    Row(
        "protonet-5way-1shot",
        "protonet",
        (20, 1, 5),
        3000,
        2,
        [ONE],
        published="98.8 (60-way training)",
        differs="20-way training, 6,000 episodes; queries normalised by their own batch",
    ),
    Row(
        "protonet-5way-5shot",
        "protonet",
        (20, 5, 5),
        1500,
        2,
        [FIVE],
        published="99.7 (60-way training)",
        differs="20-way training, 3,000 episodes; queries normalised by their own batch",
    ),
]
BASELINES = [
    Row("finetune", "finetune", (5, 1, 15), 3000, 2, [ONE, FIVE, MAML_TEST], {"steps": 100, "lr": 0.1}),
    Row("nearest-centroid", "nearestcentroid", (5, 1, 15), 1, 1, [ONE, FIVE, MAML_TEST]),
]
SINUSOID = [
    Row(
        f"maml-10shot-seed{seed}",
        "maml",
        (None, 10, 10),
        10000,
        25,
        [Test(None, 10, 100, steps=k, episodes=600) for k in (0, 1, 2, 3, 5, 10)],
        {"lr": 0.01, "steps": 1},
        schedule="constant",
        published="no value printed in the paper",
        differs="10,000 of 70,000 iterations",
        seed=seed,
    )
    for seed in range(3)
]


def run_row(row: Row, tasks: str, data: str | None, folder: Path) -> dict[str, Any]:
    """Train a row, or go on with it; how long it took, and its run folder's trained learner."""
    request = recipes.Request(tasks, *row.sizes, data=data)
    torch.manual_seed(seeds.derive(row.seed, "weights"))
    source = recipes.open_tasks(request, "train")
    cls = recipes.find_learner(row.learner)[1]
    learner = recipes.build_learner(cls, source, dict(row.fields), dict(row.network))
    schedule = None
    if row.schedule == "cosine":
        schedule = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, row.iterations)  # noqa: E731
    trained = qs.train(
        learner,
        source,
        iterations=row.iterations,
        meta_batch=row.meta_batch,
        seed=row.seed,
        out=folder / row.name,
        scheduler=schedule,
        resume=True,
    )
    timing = files.read_json(folder / row.name / "timing.json")
    return {"trained": trained, "timing": timing, "parameters": sum(v.numel() for v in trained.theta.values())}


def test_row(trained: qs.Trained, tasks: str, test: Test, data: str | None) -> list[Score]:
    """The score under a test protocol, and the non-transductive one where that is another."""
    source = recipes.open_tasks(recipes.Request(tasks, test.ways, test.shots, test.queries, data), "test")
    steps = test.steps if isinstance(trained.learner, qs.MAML) else None
    scores = [qs.evaluate(trained, source, episodes=test.episodes, seed=1, steps=steps)]
    if scores[0].protocol.transductive:
        scores.append(qs.evaluate(trained, source, episodes=test.episodes, seed=1, steps=steps, transductive=False))
    return scores


def measure(rows: Sequence[Row], tasks: str, data: str | None, folder: Path) -> list[dict[str, Any]]:
    """Train and test every row; results that stand are read back."""
    done = []
    for row in rows:
        path = folder / row.name / "results.json"
        if not path.exists():
            made = run_row(row, tasks, data, folder)
            scores = [[s.to_dict() for s in test_row(made["trained"], tasks, test, data)] for test in row.tests]
            facts = {"timing": made["timing"], "parameters": made["parameters"], "commit": COMMIT}
            files.write_json(path, {"name": row.name, "scores": scores, **facts})
        done.append(files.read_json(path) | {"published": row.published, "differs": row.differs})
        print(f"{row.name}: {done[-1]['scores'][0][0]['text']}", flush=True)
    return done


def paired(rows: list[dict[str, Any]], baselines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row's scores minus each baseline's on the same episodes."""
    found = []
    for row in rows:
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            for baseline in baselines:
                others = [Score.from_dict(plain) for test in baseline["scores"] for plain in test]
                for other in (o for o in others if same_episodes(score, o)):
                    difference = compare(score, other, allow=("transductive",))
                    about = {"row": row["name"], "baseline": baseline["name"], "protocol": score.protocol.describe()}
                    against = other.protocol.describe()
                    found.append(about | {"against": against, "text": str(difference), "decided": difference.decided})
    return found


def same_episodes(a: Score, b: Score) -> bool:
    keys = ("tasks", "split", "ways", "shots", "queries", "episodes", "seed")
    return all(getattr(a.protocol, key) == getattr(b.protocol, key) for key in keys)


def commit() -> str:
    """The commit that was measured, marked when the tree had changes."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def table(result: dict[str, Any]) -> str:
    """The Markdown page of a result."""
    lines = [
        f"# {result['name']}",
        "",
        f"Command: `{result['command']}` · training seed 0 unless named, test episodes from seed 1",
        "",
    ]
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value is not None)
    lines += [
        f"Machine: {machine}",
        "",
        "| learner | protocol | result (95 % CI) | training | engine | published | differs |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        for plain in (plain for test in row["scores"] for plain in test):
            score = Score.from_dict(plain)
            shown = in_words(score.mean, score.interval, score.protocol.metric)
            p = score.protocol
            queries = f"{p.queries} {'query' if p.queries == 1 else 'queries'}"
            what = f"{p.describe()}; {queries}, {p.episodes} episodes of {p.tasks} {p.split}"
            minutes = f"{row['timing']['total'] / 60:.1f} min ({row['commit']})"
            cells = (row["name"], what, shown, minutes, row["timing"]["engine"], row["published"], row["differs"])
            lines.append("| " + " | ".join(cells) + " |")
    lines += over_seeds(result["rows"])
    if result["paired"]:
        lines += [
            "",
            "Paired differences on the same episodes:",
            "",
            "| row | protocol | baseline | difference |",
            "|---|---|---|---|",
        ]
        for d in result["paired"]:
            lines.append(f"| {d['row']} | {d['protocol']} | {d['baseline']} ({d['against']}) | {d['text']} |")
    return "\n".join(lines) + "\n"


def over_seeds(rows: list[dict[str, Any]]) -> list[str]:
    """Mean and spread between training seeds, for rows that differ in their seed alone."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            found.setdefault(f"{row['name'].split('-seed')[0]} | {score.protocol.describe()}", []).append(score.mean)
    found = {key: means for key, means in found.items() if len(means) > 1}
    if not found:
        return []
    lines = ["", "Over training seeds, on the same test tasks:", ""]
    lines += ["| learner | protocol | mean | standard deviation | seeds |", "|---|---|---|---|---|"]
    for key, means in found.items():
        lines.append(f"| {key} | {statistics.mean(means):.3f} | {statistics.stdev(means):.3f} | {len(means)} |")
    return lines


def main(what: str, /, data: str | None = None, folder: Path = Path("runs/reproduce")) -> None:
    """Reproduce a table.

    Args:
        what: omniglot or sinusoid.
        data: folder of the data set.
        folder: where the runs are kept.
    """
    if what not in ("omniglot", "sinusoid"):
        sys.exit(f"there are omniglot and sinusoid, got {what!r}")
    rows = measure(OMNIGLOT if what == "omniglot" else SINUSOID, what, data, folder / what)
    baselines = measure(BASELINES, what, data, folder / what) if what == "omniglot" else []
    given = " --data DATA" if data else ""
    result = {
        "name": what,
        "command": f"python benchmarks/reproduce.py {what}{given}",
        "machine": machine(),
        "rows": rows + baselines,
        "paired": paired(rows, baselines),
    }
    files.write_json(RESULTS / f"{what}.json", result)
    (RESULTS / f"{what}.md").write_text(table(result), encoding="utf-8")
    print(f"written: benchmarks/results/{what}.json and .md")


COMMIT = commit()  # at the start: what runs is what was read then

if __name__ == "__main__":
    tyro.cli(main)
