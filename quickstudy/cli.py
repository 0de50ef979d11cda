"""The command line: train, plan, evaluate, adapt, predict, compare, report, check, list."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
import re
import sys
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro
from rich.console import Console
from rich.table import Column, Table
from tyro.conf import OmitArgPrefixes, arg

from quickstudy import __version__, factory, files, inputs, memory, ranks, recipes, runs, scope, seeds
from quickstudy.advice import advise
from quickstudy.checking import check_meta_gradient
from quickstudy.comparing import compare_learners
from quickstudy.controls import CONTROLS
from quickstudy.engine import ENGINES, TOGETHER
from quickstudy.errors import ConfigError, DataError, QuickstudyError, first_line, suggest
from quickstudy.evaluation import in_words
from quickstudy.learner import Learner
from quickstudy.learners import LEARNERS
from quickstudy.memory import in_words as in_bytes
from quickstudy.nn.conv4 import DOWNSAMPLING
from quickstudy.nn.norm import POLICIES
from quickstudy.options import (
    AdaptOptions,
    CheckOptions,
    CompareOptions,
    EvaluateOptions,
    PlanOptions,
    PredictOptions,
    ReportOptions,
    TaskOptions,
    TrainOptions,
)
from quickstudy.planning import plan as plan_training
from quickstudy.progress import settings_bar
from quickstudy.trained import Predictor, Trained, load
from quickstudy.training import optimizer_of, schedule_of
from quickstudy.training import train as train_learner

Options = TypeVar("Options", bound=TrainOptions)

OVERVIEW = f"""Quickstudy {__version__}: train once on many small tasks, then learn a new task from a few examples.

  quickstudy train TASKS LEARNER        meta-train; TASKS is glyphs, cifar_fs, ..., a folder of class folders, a table
                                        (--task, --target), a table of ratings (--user, --item,
                                        --rating) or a table of texts (--text, --label)
  quickstudy plan TASKS LEARNER         memory and time of that training, and what fits (--memory 2GB)
  quickstudy evaluate RUN               score on unseen tasks, with interval and controls
  quickstudy adapt RUN SUPPORT --out F  learn one new task: a folder with a subfolder per class, or a table
  quickstudy predict F INPUT...         answer for new images, rows or texts (--json for programs)
  quickstudy compare TASKS LEARNER...   the same training time for each, the same test tasks: which one to choose
  quickstudy report RUN...              one HTML page to look at and to show
  quickstudy check MODULE:FACTORY       is the meta-gradient of your own model or learner right?
  quickstudy list                       the learners, tasks and controls there are

quickstudy COMMAND --help tells the options. A first try that works anywhere:

  quickstudy train glyphs protonet --iterations 300 --out runs/first"""


# --- train -----------------------------------------------------------------------------------------------------------


def train(argv: list[str]) -> None:
    given = _train_options(argv, "train", TrainOptions)
    with ranks.joined(_device(given[2].device)) as device:
        _train(*given, device)


def _train(
    tasks_name: str, learner_name: str, options: TrainOptions, fields: dict[str, Any], device: torch.device
) -> None:
    cls = LEARNERS[learner_name]
    request = _request(tasks_name, options)
    out = Path(options.out or f"runs/{Path(tasks_name).name.split('.')[0]}-{learner_name}")
    tasks, learner = _built(request, cls, options, fields)
    given = {"lr": options.outer_lr, "schedule": options.schedule}
    outer = learner.outer()._replace(**{name: value for name, value in given.items() if value is not None})
    trained = train_learner(
        learner,
        tasks,
        iterations=options.iterations,
        meta_batch=options.meta_batch,
        seed=options.seed,
        out=out,
        val=_validation_tasks(request, getattr(tasks, "preprocess", None)),
        val_every=options.val_every,
        val_episodes=options.val_episodes,
        patience=options.patience,
        keep=options.keep,
        engine=options.engine,
        chunk=options.chunk,
        precision=options.precision,
        channels_last=options.channels_last,
        optimizer=optimizer_of(outer),
        scheduler=schedule_of(outer.schedule, options.iterations),
        clip=options.clip,
        resume=options.resume,
        device=device,
        tensorboard=options.tensorboard,
        about={"request": request._asdict()},
    )
    parameters = sum(value.numel() for value in trained.theta.values())
    print(f"trained {cls.__name__} ({parameters:,} parameters) on {tasks_name}: {out}")
    print(f"next: quickstudy evaluate {out}")


def _built(
    request: recipes.Request, cls: type[Learner], options: TrainOptions, fields: dict[str, Any]
) -> tuple[Any, Learner]:
    """The training tasks, and a learner for them with new weights."""
    torch.manual_seed(seeds.derive(options.seed, "weights"))
    tasks = recipes.open_tasks(request, "train")
    for note in getattr(tasks, "notes", ()):
        print(f"note: {note}", file=sys.stderr)
    return tasks, recipes.build_learner(cls, tasks, fields, _network_options(options))


def _validation_tasks(request: recipes.Request, preprocess: Any) -> Any:
    """The validation split; None where there are too few classes or tasks for it.

    Prints a message where the validation or the test split cannot be opened.
    """
    opened = {}
    for split, lacking in (("val", "training without validation"), ("test", "'evaluate' will need other sizes")):
        try:
            opened[split] = recipes.open_tasks(request, split, preprocess)
        except DataError as error:
            print(f"{lacking}: {error}", file=sys.stderr)
    return opened.get("val")


def _train_options(
    argv: list[str], command: str, kind_of_options: type[Options]
) -> tuple[str, str, Options, dict[str, Any]]:
    """The names of the tasks and of the learner, the command's options, and the learner's fields."""
    words = [a for a in argv[:2] if not a.startswith("-")]
    if len(words) < 2:
        # With --help this prints the help and exits.
        _parse(kind_of_options, [a for a in argv if a in ("-h", "--help")], f"{command} TASKS LEARNER")
        raise ConfigError(
            f"say first what to train on what, then the options: quickstudy {command} TASKS LEARNER [OPTIONS], as in: "
            f"quickstudy {command} glyphs protonet --ways 5"
        )
    name, cls = recipes.find_learner(words[1])
    kind = recipes.kind_of(words[0], any(word.split("=")[0] in ("--text", "--label") for word in argv))
    fields = _field_options(cls, recipes.FIELDS.get((kind, name), {}))
    sizes = recipes.DEFAULTS.get(words[0], recipes.DEFAULTS[kind])
    parts = [
        ("training", kind_of_options, field(default_factory=lambda: kind_of_options(**sizes))),
        (name, fields, field(default_factory=fields)),
    ]
    both = dataclasses.make_dataclass("Train", parts if dataclasses.fields(fields) else parts[:1])
    purpose = "keep the run in a folder" if command == "train" else "say what that needs, without doing it"
    both.__doc__ = f"Meta-train {cls.__name__} on {words[0]} and {purpose}."
    parsed = _parse(both, argv[2:], f"{command} {words[0]} {words[1]}")
    return words[0], name, parsed.training, dataclasses.asdict(getattr(parsed, name, fields()))


def _field_options(cls: type[Learner], defaults: dict[str, Any]) -> type:
    """A dataclass with the learner's plain fields as options; the comment behind a field is its help text."""
    hints, source = typing.get_type_hints(cls), inspect.getsource(cls)
    made = []
    for f in recipes.plain_fields(cls):
        comment = re.search(rf"^    {f.name}:.*?#\s*(.+)$", source, re.MULTILINE)
        kind = Annotated[hints[f.name], arg(help=comment.group(1) if comment else "")]
        made.append((f.name, kind, field(default=defaults.get(f.name, f.default))))
    return dataclasses.make_dataclass(f"{cls.__name__}Fields", made)


def _request(tasks: str, options: TaskOptions) -> recipes.Request:
    """The request for these tasks. Paths become absolute, so that the run can be evaluated from any folder."""
    given = {name: getattr(options, name) for name in recipes.Request._fields if hasattr(options, name)}
    named = tasks in recipes.NAMED or not Path(tasks).exists()
    given |= {name: str(Path(given[name]).resolve()) for name in ("data", "items") if given[name]}
    return recipes.Request(tasks if named else str(Path(tasks).resolve()), **given)


def _network_options(options: TaskOptions) -> dict[str, Any]:
    chosen = {
        name: getattr(options, name) for name in ("network", "filters", "norm", "downsample", "dropblock", "hidden")
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}. Use cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available here. Use --device cpu.")
    return device


# --- plan ------------------------------------------------------------------------------------------------------------


def plan(argv: list[str]) -> None:
    tasks_name, learner_name, options, fields = _train_options(argv, "plan", PlanOptions)
    tasks, learner = _built(_request(tasks_name, options), LEARNERS[learner_name], options, fields)
    with settings_bar() as bar:
        found = plan_training(
            learner,
            tasks,
            progress=bar,
            device=_device(options.device),
            **{
                name: getattr(options, name)
                for name in ("meta_batch", "memory", "engine", "chunk", "precision", "channels_last", "seed")
            },
        )
    from quickstudy.report.words import duration  # imported late: matplotlib takes a second and memory

    heads = ("engine", "adjoint", "chunk", "peak memory", "iteration", f"{options.iterations:,} of them")
    table = Table(*(Column(head, no_wrap=True) for head in heads))
    for one in found:
        size = "?" if one.memory is None else in_bytes(one.memory)
        cells = (one.adjoint or "", str(one.chunk or ("all" if one.engine in TOGETHER else "")), size)
        table.add_row(one.engine, *cells, *map(duration, (one.seconds, options.iterations * one.seconds)))
    Console().print(table)
    print(f"fastest: quickstudy train {tasks_name} {learner_name} ... {found[0].options()}")


# --- compare ---------------------------------------------------------------------------------------------------------


def compare(argv: list[str]) -> None:
    names = list(itertools.takewhile(lambda a: not a.startswith("-"), argv))
    if len(names) < 2:
        _parse(CompareOptions, [a for a in argv if a in ("-h", "--help")], "compare TASKS LEARNER LEARNER...")
        raise ConfigError(
            "say first which tasks, then the learners, then the options: quickstudy compare TASKS LEARNER LEARNER... "
            "[OPTIONS], as in: quickstudy compare glyphs protonet maml --minutes 1"
        )
    tasks_name, learners = names[0], dict(map(recipes.find_learner, names[1:]))
    kind = recipes.kind_of(tasks_name, any(word.split("=")[0] in ("--text", "--label") for word in argv))
    sizes = {k: v for k, v in recipes.DEFAULTS.get(tasks_name, recipes.DEFAULTS[kind]).items() if k != "iterations"}
    default = field(default_factory=lambda: CompareOptions(**sizes))
    both = dataclasses.make_dataclass("Compare", [("comparing", CompareOptions, default)])
    both.__doc__ = CompareOptions.__doc__
    options = _parse(both, argv[len(names) :], f"compare {' '.join(names)}").comparing
    out = Path(options.out or f"runs/{Path(tasks_name).name.split('.')[0]}-compared")
    request = _request(tasks_name, options)
    train = recipes.open_tasks(request, "train")
    for note in getattr(train, "notes", ()):
        print(f"note: {note}", file=sys.stderr)
    val, test = (recipes.open_tasks(request, split, getattr(train, "preprocess", None)) for split in ("val", "test"))
    builders = recipes.builders(learners, kind, train, _network_options(options))
    trainings = len(builders) * len(options.seeds)
    print(
        f"{trainings} trainings of {options.minutes:g} minutes, each with tests of some minutes more", file=sys.stderr
    )
    found = compare_learners(
        builders,
        train,
        test,
        val=val,
        baselines=recipes.baselines(train, test),
        out=out,
        about={
            "command": f"quickstudy compare {' '.join(a for a in argv if a != '--resume')}",
            "request": request._asdict(),
        },
        **{name: getattr(options, name) for name in ("minutes", "meta_batch", "seeds", "episodes", "resume")},
        device=_device(options.device),
    )
    from quickstudy.report import write_comparison  # imported late: matplotlib takes a second

    print(found)
    print(*advise(found), sep="\n")
    print(f"report: {write_comparison(found, out, png=options.png, csv=options.csv).resolve().as_uri()}")


# --- evaluate, adapt, predict, report, list --------------------------------------------------------------------------


def evaluate(argv: list[str]) -> None:
    options = _parse(EvaluateOptions, argv, "evaluate")
    if options.episodes < 2:
        raise ConfigError(f"an interval needs at least 2 test episodes, got {options.episodes}.")
    with ranks.joined():
        _evaluate(options)


def _evaluate(options: EvaluateOptions) -> None:
    trained = runs.load_run(options.run)
    given = {name: getattr(options, name) for name in ("ways", "shots", "queries", "data")}
    request = _request_of(options.run)._replace(**{k: v for k, v in given.items() if v is not None})
    tasks = recipes.open_tasks(request, options.split, trained.preprocess)
    scores = runs.evaluate_run(
        options.run,
        trained,
        tasks,
        episodes=options.episodes,
        seed=options.seed,
        steps=options.steps,
        ensemble=options.ensemble,
        names=None if options.controls is None else list(options.controls),
        engine=options.engine,
    )
    if not ranks.first():
        return
    for score in scores:
        print(score)
    for name, score in scores[0].controls.items():
        print(f"  control {name}: {in_words(score.mean, score.interval, score.protocol.metric)}")
    if scores[0].controls:
        from quickstudy.report.page import verdict  # imported late: matplotlib takes a second

        print(verdict(scores[0]))
    common = {"episodes": options.episodes, "seed": options.seed, "engine": options.engine}
    if found := runs.evaluate_instances(options.run, trained, tasks, options.instances, **common):
        print(found)
    print(f"next: quickstudy report {options.run}")


def _request_of(run: str) -> recipes.Request:
    """The request for the tasks that the run was trained on, without augmentation."""
    path = Path(run) / "config.json"
    config = files.read_json(path) if path.is_file() else {}
    if "request" not in config:
        raise ConfigError(f"{run!r} is not a run of 'quickstudy train': which tasks it was trained on is not known.")
    return recipes.Request(**config["request"])._replace(augment=False)


def adapt(argv: list[str]) -> None:
    options = _parse(AdaptOptions, argv, "adapt")
    trained = runs.load_run(options.run)
    x, y = inputs.support_of(trained.preprocess, Path(options.support), trained.tasks.get("ways") is not None)
    if options.reject:
        trained = _scoped(options.run, trained, y)
    predictor = trained.adapt(x, y)
    predictor.save(options.out)
    learned = f"classes {', '.join(map(str, predictor.classes))}" if predictor.classes else "one regression task"
    print(f"learned {learned}: {options.out}")
    print(f"next: quickstudy predict {options.out} INPUT...")


def _scoped(run: str, trained: Trained, y: Any) -> Trained:
    """The learner with a distance beyond which an input belongs to none of the classes.

    The distance is found on validation tasks with the ways and shots of the support set.
    """
    tasks = recipes.open_tasks(_request_of(run), "val", trained.preprocess)
    if getattr(tasks, "ways", None) is None:
        raise ConfigError("--reject is for classes; this run answers with values.")
    sizes = Counter(y)
    tasks = scope.sized(tasks, len(sizes), min(sizes.values()))
    trained = scope.scoped(trained, tasks)
    kind = f"{tasks.ways}-way {tasks.shots}-shot validation tasks"
    print(f"none of the classes: beyond a distance of {trained.scope:.3g}, within which are 95 % of queries of {kind}")
    return trained


def predict(argv: list[str]) -> None:
    options = _parse(PredictOptions, argv, "predict")
    predictor = load(options.predictor)
    if not isinstance(predictor, Predictor):
        raise ConfigError(
            f"{options.predictor!r} is not adapted to a task yet. First: quickstudy adapt RUN SUPPORT --out F"
        )
    if not options.inputs:
        raise ConfigError("predict needs something to answer for: quickstudy predict FILE INPUT...")
    read = [inputs.inputs_of(predictor.preprocess, Path(name)) for name in options.inputs]
    answers = [answer for x, names in read for answer in _answers(predictor, x, names, options.reject)]
    if options.csv:
        inputs.write_answers(Path(options.csv), read, answers)
        print(f"answers: {options.csv}")
        return
    if options.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    table = Table(Column("input", overflow="fold"), "label", "probability")
    for answer in answers:
        sure = "" if answer["probability"] is None else f"{answer['probability']:.3f}"
        label = "none of these" if answer["label"] is None else answer["label"]
        table.add_row(answer["input"], f"{label:.5g}" if isinstance(label, float) else str(label), sure)
    Console().print(table)
    if options.reject:
        print(f"{sum(answer['label'] is None for answer in answers)} of {len(answers)} are none of the classes")


def _answers(predictor: Predictor, x: Any, names: list[str], reject: bool) -> list[dict[str, Any]]:
    labels = predictor.predict(x, reject=reject)
    if predictor.classes is None:
        values = [value if len(value) > 1 else value[0] for value in torch.as_tensor(labels).tolist()]
        return [{"input": n, "label": v, "probability": None} for n, v in zip(names, values, strict=True)]
    rows = zip(names, labels, predictor.predict_proba(x).amax(1).tolist(), strict=True)
    return [{"input": n, "label": k, "probability": None if k is None else round(p, 6)} for n, k, p in rows]


def report(argv: list[str]) -> None:
    options = _parse(ReportOptions, argv, "report")
    if not options.runs:
        raise ConfigError("report needs at least one run folder: quickstudy report runs/NAME")
    from quickstudy.report import folder_of, write_report  # imported late: matplotlib takes a second

    out = Path(options.out) if options.out else None
    path = write_report([Path(run) for run in options.runs], out, png=options.png, csv=options.csv)
    print(f"report: {path.resolve().as_uri()}")
    if options.png or options.csv:
        print(f"its plots and tables: {folder_of(path)}")


def check(argv: list[str]) -> int:
    options = _parse(CheckOptions, argv, "check")
    names = ("ways", "shots", "queries", "lr", "steps", "seed")
    sizes = factory.Sizes(_shape(options.shape), **{name: getattr(options, name) for name in names})
    learner, episode = factory.build(options.factory, sizes)
    chosen = {"directions": options.directions, "tolerance": options.tolerance, "seed": options.seed}
    found = check_meta_gradient(learner, episode, **chosen)
    table = Table("parameter", "shape", "meta-gradient", "difference", "verdict")
    for entry in found.entries:
        shape, off = "x".join(map(str, entry.shape)) or "number", entry.difference
        table.add_row(entry.name, shape, f"{entry.norm:.3g}", "" if math.isnan(off) else f"{off:.0e}", entry.verdict)
    Console().print(table)
    print(found)
    return 0 if found.ok else 1


def _shape(words: Sequence[str]) -> tuple[int, ...]:
    """The shape of one input, given as ('1', '28', '28') or ('1,28,28',)."""
    try:
        return tuple(int(part) for word in words for part in word.split(",") if part)
    except ValueError as error:
        raise ConfigError(f"--shape takes whole numbers, as in 1 28 28; got {' '.join(words)!r}.") from error


def list_all(argv: list[str]) -> None:
    if argv and argv[0] in ("-h", "--help"):
        print("quickstudy list: the learners, tasks, controls, networks and engines there are. It takes no options.")
        return
    if argv:
        raise ConfigError(f"'quickstudy list' takes no argument, got {' '.join(argv)!r}.")
    table = Table("learner", "class", "what it does")
    for name, cls in LEARNERS.items():
        table.add_row(name, cls.__name__, (cls.__doc__ or "").strip().splitlines()[0])
    console = Console()
    console.print(table)
    console.print(
        f"tasks: {', '.join(recipes.NAMED)}, a folder of class folders, a table, a table of ratings, one of texts"
    )
    console.print(f"controls: {', '.join(CONTROLS)}")
    console.print(f"network: {', '.join(recipes.IMAGE_NETWORKS)}")
    console.print(f"norm: {', '.join(POLICIES)}   downsample: {', '.join(DOWNSAMPLING)}   engine: {', '.join(ENGINES)}")


# A command may return its exit code; None means 0.
COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "plan": plan,
    "compare": compare,
    "evaluate": evaluate,
    "adapt": adapt,
    "predict": predict,
    "report": report,
    "check": check,
    "list": list_all,
}
LESS_MEMORY = "Take --engine loop, fewer --queries or a smaller network; 'quickstudy plan' tells what a training needs."
SHARED = ("train", "evaluate")  # commands that several processes can run together


def _parse(options: Any, argv: list[str], command: str) -> Any:
    return tyro.cli(options, args=argv, prog=f"quickstudy {command}", config=(OmitArgPrefixes,))


def run(argv: Sequence[str]) -> int:
    """Run a command line, given without the program's name; returns the exit code.

    The code is 0 for success, 1 for a failed check, 2 for bad input or too little memory (one message, no traceback),
    and 130 for an interrupt.
    """
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help", "help"):
        print(OVERVIEW)
        return 0
    if command == "--version":
        print(f"quickstudy {__version__}")
        return 0
    try:
        if command not in COMMANDS:
            raise ConfigError(
                f"unknown command {command!r}; there are {', '.join(COMMANDS)}.{suggest(command, COMMANDS)}"
            )
        if command not in SHARED:
            ranks.alone(f"'quickstudy {command}'")
        return COMMANDS[command](rest) or 0
    except QuickstudyError as error:
        where = f" (rank {ranks.rank()})" if ranks.rank() else ""
        print(f"quickstudy{where}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        print(f"quickstudy: memory ran out: {first_line(error)}. {LESS_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if ranks.first():
            print("\nstopped. A training run continues with the same command and --resume.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has closed our output, as in `quickstudy predict ... | head`
        return 0


def main() -> None:
    """Entry point of the `quickstudy` command."""
    sys.exit(run(sys.argv[1:]))
