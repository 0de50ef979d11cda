"""Trains and tests on real data under published settings, together with baselines on the same episodes.

    python benchmarks/reproduce.py omniglot --data FOLDER                       about 45 minutes on 2 cores
    python benchmarks/reproduce.py omniglot --data FOLDER --family gradient     about 2 hours; --budget long: days
    python benchmarks/reproduce.py cifar_fs --data FOLDER --family metric       about 70 minutes; --budget long: days
    python benchmarks/reproduce.py sinusoid                                     about 2 minutes
    python benchmarks/reproduce.py sinusoid --family gradient                   about half an hour

Each row (benchmarks/rows/) trains once in runs/reproduce and is tested under its own protocol. Rows are tested on the
same episodes, so their differences are paired. After every row the results are written to benchmarks/results: a JSON
file with everything, and a Markdown table made from it. A row with an existing result is skipped, and an interrupted
row continues.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # so that this file can also be run as a script
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import tyro  # noqa: E402

import quickstudy as qs  # noqa: E402
from benchmarks import rows  # noqa: E402
from benchmarks.markdown import table  # noqa: E402
from benchmarks.rows import Row, Test  # noqa: E402
from quickstudy.base import files, seeds  # noqa: E402
from quickstudy.base.machine import machine  # noqa: E402
from quickstudy.evaluation.score import Score, compare  # noqa: E402
from quickstudy.experiments import recipes  # noqa: E402
from quickstudy.experiments.request import Request, open_tasks  # noqa: E402
from quickstudy.training.outer import optimizer_of, schedule_of  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
BARS = {"gradient": "maml", "metric": "protonet"}  # family: the learner that its others are compared with


# For each table the rows, and the baselines that they are compared with; True gives the long budget, where one exists.
TABLES: dict[tuple[str, str], Callable[[bool], tuple[Sequence[Row], Sequence[Row]]]] = {
    ("omniglot", "foundation"): lambda long: (rows.OMNIGLOT, rows.BASELINES),
    ("omniglot", "gradient"): lambda long: (rows.long_rows() if long else rows.short_rows(), []),
    ("omniglot", "metric"): lambda long: (rows.metric_long_rows() if long else rows.metric_rows(), []),
    ("omniglot", "memory"): lambda long: (rows.memory_long_rows() if long else rows.memory_rows(), []),
    ("sinusoid", "foundation"): lambda long: (rows.SINUSOID, []),
    ("sinusoid", "gradient"): lambda long: (rows.sinusoid_rows(), []),
    ("cifar_fs", "metric"): rows.cifar_rows,
}


def run_row(row: Row, tasks: str, data: str | None, folder: Path, device: str) -> dict[str, Any]:
    """Train a row, or continue its training; returns the trained learner with its timing, commit and size."""
    torch.manual_seed(seeds.derive(row.seed, "weights"))
    source = source_of(row, tasks, row.sizes, "train", data, folder)
    cls = recipes.find_learner(row.learner)[1]
    learner = recipes.build_learner(cls, source, dict(row.fields), dict(row.network))
    outer = learner.outer() if row.schedule is None else qs.Outer(schedule=row.schedule)
    outer = outer if row.lr is None else outer._replace(lr=row.lr)
    trained = qs.train(
        learner,
        source,
        iterations=row.iterations,
        meta_batch=row.meta_batch,
        seed=row.seed,
        out=folder / row.name,
        engine=engine_of(learner, tasks, device),
        device=device,
        optimizer=optimizer_of(outer),
        scheduler=schedule_of(outer.schedule, row.iterations),
        resume=True,
        clip=row.clip,
        **({"keep": row.keep, "val": source_of(row, tasks, row.sizes, "val", data, folder)} if row.keep > 1 else {}),
    )
    trained_by = folder / row.name / "commit.json"
    if not trained_by.exists():
        files.write_json(trained_by, {"commit": COMMIT})
    return {
        "trained": trained,
        "timing": files.read_json(folder / row.name / "timing.json"),
        "commit": files.read_json(trained_by)["commit"],
        "parameters": sum(v.numel() for v in trained.theta.values()),
    }


def source_of(
    row: Row, tasks: str, sizes: tuple[int | None, int, int], split: str, data: str | None, folder: Path
) -> Any:
    """The tasks of a row. Inputs are another row's features where `row.features` names that row."""
    source = open_tasks(Request(tasks, *sizes, data=data), split)
    if not row.features:
        return source
    if not (folder / row.features / "learner.qs").exists():
        sys.exit(f"{row.name} learns from the features of {row.features}: train that row first")
    trained = qs.load(folder / row.features)
    encoder = trained.learner.encoder
    encoder.load_state_dict(trained.theta)  # this copy of the encoder belongs to this row alone
    # LayerNorm centres the features, because after a ReLU they are similar for all images, and a memory that is read by
    # cosine similarity learns late to distinguish them.
    width = recipes.shape_of(encoder, source)[-1]
    return qs.tasks.features(source, torch.nn.Sequential(encoder, torch.nn.LayerNorm(width, elementwise_affine=False)))


def engine_of(learner: qs.Learner, tasks: str, device: str) -> str:
    """The same engine for all rows of a kind in a table, independent of the machine."""
    if tasks == "sinusoid" or learner.ordered:  # their many small sequential steps are faster for many tasks at once
        return "vmap"
    return "threads" if device == "cpu" else "auto"


def test_row(trained: qs.Trained, test: Test, source: Any) -> list[Score]:
    """The score under a test protocol; for a transductive protocol the non-transductive score as well."""
    settings: dict[str, Any] = {"episodes": test.episodes, "seed": 1, "ensemble": test.ensemble}
    settings["steps"] = test.steps if hasattr(trained.learner, "steps") and test.steps is not None else None
    scores = [qs.evaluate(trained, source, controls=test.controls, **settings)]
    if scores[0].protocol.transductive:
        scores.append(qs.evaluate(trained, source, transductive=False, **settings))
    return scores


def test_all(
    trained: qs.Trained, tests: Sequence[Test], source: Callable[[Test], Any]
) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """The scores of every test, and a line for each test without a score, because an output was not finite."""
    scores, diverged = [], []
    for test in tests:
        try:
            scores.append([score.to_dict() for score in test_row(trained, test, source(test))])
        except qs.errors.NonFiniteError as error:
            diverged.append(f"{test.shots}-shot, {test.steps} inner steps: {str(error).splitlines()[0]}")
    return scores, diverged


def measure(
    rows: Sequence[Row],
    tasks: str,
    data: str | None,
    folder: Path,
    known: Sequence[dict[str, Any]] = (),
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Train and test every row; an existing result, in the run folder or in `known`, is reused."""
    standing = {(row["name"], json.dumps(row.get("settings"))): row for row in known}
    for row in rows:
        settings = plain_settings(row)
        path = folder / row.name / "results.json"
        done = standing.get((row.name, json.dumps(settings)))
        if done is None and path.exists():
            kept = files.read_json(path)
            done = kept if kept.get("settings", settings) == settings else None
        if done is None:
            done = {"name": row.name, "settings": settings, **train_and_test(row, tasks, data, folder, device)}
            files.write_json(path, done)
        if "course" not in done:
            done |= {"course": course(folder / row.name / "metrics.jsonl")}
        print(f"{row.name}: {done['scores'][0][0]['text'] if done['scores'] else done['diverged'][0]}", flush=True)
        yield done | {"published": row.published, "differs": row.differs}


def plain_settings(row: Row) -> dict[str, Any]:
    """A row's settings in the form in which a result file stores them."""
    return json.loads(json.dumps(row.settings()))


def train_and_test(row: Row, tasks: str, data: str | None, folder: Path, device: str) -> dict[str, Any]:
    """The scores of a row and facts about its training; a diverged training is reported instead of raising."""
    try:
        made = run_row(row, tasks, data, folder, device)
    except qs.errors.NonFiniteError as error:
        return {"scores": [], "diverged": [f"training: {error}"], "timing": None, "parameters": None, "commit": COMMIT}

    def source(test: Test) -> Any:
        return source_of(row, tasks, (test.ways, test.shots, test.queries), "test", data, folder)

    scores, diverged = test_all(made["trained"], row.tests, source)
    facts = {name: made[name] for name in ("timing", "parameters", "commit")}
    if row.instances:
        episodes, streams = row.tests[0].episodes, source(row.tests[0])
        found = qs.instance_accuracy(made["trained"], streams, instances=row.instances, episodes=episodes, seed=1)
        facts["instances"] = found.to_dict()
    if row.movement:
        facts["movement"] = movement(made["trained"], source(row.tests[0]), row.tests[0].steps)
    return {"scores": scores, "diverged": diverged, **facts}


def course(path: Path) -> list[dict[str, float]]:
    """Mean loss and accuracy on training tasks over the last fifth of each quarter of the training.

    They show whether training was still improving.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [line for line in map(json.loads, text.splitlines()) if "accuracy" in line]
    found = []
    for quarter in (1, 2, 3, 4):
        end = quarter * len(lines) // 4
        last = lines[max(0, end - len(lines) // 20 - 1) : end]
        if last:
            means = {key: sum(line[key] for line in last) / len(last) for key in ("loss", "accuracy")}
            found.append({"iteration": last[-1]["iteration"]} | means)
    return found


def movement(trained: qs.Trained, source: Any, steps: int | None) -> dict[str, Any] | None:
    """How far each layer moves under the row's first test; None for learners whose layers do not adapt."""
    try:
        return qs.layer_movement(trained, source, episodes=100, seed=1, steps=steps).to_dict()
    except qs.errors.ConfigError:
        return None


def paired(
    rows: list[dict[str, Any]], baselines: list[dict[str, Any]], like_for_like: bool = False
) -> list[dict[str, Any]]:
    """Each row's scores minus each baseline's on the same episodes.

    `like_for_like`: only where both scores are transductive or neither is.
    """
    found = []
    for row in rows:
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            for baseline in baselines:
                others = [Score.from_dict(plain) for test in baseline["scores"] for plain in test]
                alike = [o for o in others if same_episodes(score, o)]
                if like_for_like:
                    alike = [o for o in alike if o.protocol.transductive == score.protocol.transductive]
                for other in alike:
                    difference = compare(score, other, allow=("transductive",))
                    about = {"row": row["name"], "baseline": baseline["name"], "protocol": score.protocol.describe()}
                    against = other.protocol.describe()
                    found.append(about | {"against": against, "text": str(difference), "decided": difference.decided})
    return found


def same_episodes(a: Score, b: Score) -> bool:
    keys = ("tasks", "split", "ways", "shots", "queries", "episodes", "seed")
    return all(getattr(a.protocol, key) == getattr(b.protocol, key) for key in keys)


def commit() -> str:
    """The current commit, with "+dirty" where code has uncommitted changes; results and docs do not count as code."""
    found = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return f"{found}+dirty" if found and changed else found or "unknown"


def _git(*words: str) -> str:
    """The output of a git command; empty where git is missing."""
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def main(
    what: str,
    /,
    data: str | None = None,
    family: Literal["foundation", "gradient", "metric", "memory"] = "foundation",
    budget: Literal["short", "long"] = "short",
    only: str = "*",
    folder: Path = Path("runs/reproduce"),
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Reproduce a table. A row with an existing result is skipped; an interrupted row continues from its checkpoint.

    Args:
        what: omniglot, sinusoid or cifar_fs.
        data: folder of the data set.
        family: which learners.
        budget: short (the same few minutes for every learner) or long (the papers' own settings and three seeds).
        only: rows whose names match this pattern, such as 'maml-*'.
        folder: folder of the runs.
        device: device for training and tests; cuda for long rows.
    """
    if (what, family) not in TABLES:
        sys.exit(f"there are {', '.join(map(' --family '.join, TABLES))}; got {what} --family {family}")
    name = what if family == "foundation" else f"{what}-{family}" + ("-long" if budget == "long" else "")
    rows, baselines = TABLES[what, family](budget == "long")
    old = files.read_json(RESULTS / f"{name}.json")["rows"] if (RESULTS / f"{name}.json").exists() else []
    given = f"{' --data DATA' if data else ''}{f' --family {family}' if family != 'foundation' else ''}"
    result = {
        "name": name,
        "command": f"python benchmarks/reproduce.py {what}{given}{' --budget long' if budget == 'long' else ''}",
        "machine": machine(),
    }
    chosen = [row for row in [*rows, *baselines] if fnmatch.fnmatch(row.name, only)]
    # Existing results stay in the table when only other rows are requested.
    now = {r.name: plain_settings(r) for r in [*rows, *baselines] if r not in chosen}
    others = [row for row in old if row["name"] in now and row.get("settings", {}) in ({}, now[row["name"]])]
    order = [row.name for row in [*rows, *baselines]]
    done = list(others)
    for row in measure(chosen, what, data, folder / name, old, device):
        done = sorted([*done, row], key=lambda r: order.index(r["name"]))
        write(result | {"rows": done, "paired": differences(done, baselines, family)})
    print(f"written: benchmarks/results/{name}.json and .md")


def differences(done: list[dict[str, Any]], baselines: Sequence[Row], family: str) -> list[dict[str, Any]]:
    """Paired differences to the baselines; in a family without baselines, to the learner named in BARS."""
    names = {row.name for row in baselines}
    if family == "foundation" or names:
        others, held_against = ([r for r in done if (r["name"] in names) == inside] for inside in (False, True))
        return paired(others, held_against, like_for_like=family != "foundation")
    bar = [row for row in done if row["settings"]["learner"] == BARS.get(family)]
    return paired([row for row in done if row not in bar], bar, like_for_like=True)


def write(result: dict[str, Any]) -> None:
    """Write the result file, the page made from it, and the figure of MAML's layers."""
    files.write_json(RESULTS / f"{result['name']}.json", result)
    (RESULTS / f"{result['name']}.md").write_text(table(result), encoding="utf-8")
    for row in result["rows"]:
        if row["name"] == "maml-1shot" and row.get("movement"):
            qs.Movement.from_dict(row["movement"]).plot(ROOT / "docs" / "images" / "layers.png")


COMMIT = commit()  # read at the start, because the code that runs is the code of that moment

if __name__ == "__main__":
    tyro.cli(main)
