"""`quickstudy evaluate` and `quickstudy report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from quickstudy.base import files
from quickstudy.cli import unused
from quickstudy.cli.options import EvaluateOptions, ReportOptions, parse
from quickstudy.engine import ranks
from quickstudy.errors import ConfigError
from quickstudy.evaluation.metric import METRICS
from quickstudy.experiments import evaluate_run
from quickstudy.experiments.request import Request, open_tasks


def evaluate(argv: list[str]) -> None:
    options = parse(EvaluateOptions, argv, "evaluate")
    if options.episodes < 2:
        raise ConfigError(f"an interval needs at least 2 test episodes, got {options.episodes}.")
    with ranks.joined():
        _evaluate(options)


def _evaluate(options: EvaluateOptions) -> None:
    trained = evaluate_run.load_run(options.run)
    sizes = {name: vars(options)[name] for name in ("ways", "shots", "queries", "data")}
    changes = {name: value for name, value in sizes.items() if value is not None}
    request = dataclasses.replace(request_of_run(options.run), **changes)
    unused.check_tasks(request, changes)
    tasks = open_tasks(request, options.split, trained.preprocess)
    scores = evaluate_run.evaluate_run(
        options.run,
        trained,
        tasks,
        episodes=options.episodes,
        seed=options.seed,
        steps=options.steps,
        ensemble=options.ensemble,
        names=None if options.controls is None else list(options.controls),
        metric=options.metric or _metric_of_run(options.run),
        engine=options.engine,
    )
    common = {"episodes": options.episodes, "seed": options.seed, "engine": options.engine}
    instances = evaluate_run.evaluate_instances(options.run, trained, tasks, options.instances, **common)
    if not ranks.first():  # the ranks share the work; the first one prints
        return
    for score in scores:
        print(score)
    for name, score in scores[0].controls.items():
        n = len(score.values)
        part = f" (first {n} episodes)" if n < options.episodes else ""
        print(f"  control {name}: {score.in_words()}{part}")
    for name, why in scores[0].left_out.items():
        print(f"  control {name}: not run, {why}")
    if scores[0].controls:
        from quickstudy.report.one_run import verdict  # imported late: matplotlib takes a second

        print(verdict(scores[0]))
    if instances:
        print(instances)
    print(f"next: quickstudy report {options.run}")


def _metric_of_run(run: str) -> str | None:
    """The name of the metric that the training was asked for, if it is one of ours; None: what fits the loss."""
    metric = files.read_json(Path(run) / "config.json").get("metric")
    return metric if isinstance(metric, str) and metric in METRICS else None


def request_of_run(run: str) -> Request:
    """The request for the tasks that the run was trained on, without augmentation."""
    path = Path(run) / "config.json"
    config = files.read_json(path) if path.is_file() else {}
    if "request" not in config:
        raise ConfigError(f"{run!r} is not a run of 'quickstudy train': which tasks it was trained on is not known.")
    return dataclasses.replace(Request(**config["request"]), augment=False)


def report(argv: list[str]) -> None:
    options = parse(ReportOptions, argv, "report")
    if not options.runs:
        raise ConfigError("report needs at least one run folder: quickstudy report runs/NAME")
    from quickstudy.report.exports import folder_of
    from quickstudy.report.writing import write_report  # imported late: matplotlib takes a second

    out = Path(options.out) if options.out else None
    path = write_report([Path(run) for run in options.runs], out, png=options.png, csv=options.csv)
    print(f"report: {path.resolve().as_uri()}")
    if options.png or options.csv:
        print(f"its plots and tables: {folder_of(path)}")
