"""`quickstudy train` and `quickstudy plan`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.table import Column, Table
from tyro.conf import arg

from quickstudy.base import seeds
from quickstudy.base.progress import settings_bar
from quickstudy.base.words import duration, size
from quickstudy.cli import unused
from quickstudy.cli.notes import print_notes
from quickstudy.cli.options import PlanOptions, TaskOptions, TrainOptions, parse
from quickstudy.engine import ranks
from quickstudy.engine.choice.forecast import Setting
from quickstudy.engine.choice.forecast import plan as plan_training
from quickstudy.engine.engines import TOGETHER
from quickstudy.errors import ConfigError, DataError
from quickstudy.experiments import recipes
from quickstudy.experiments.request import NAMED, Request, kind_of, open_tasks
from quickstudy.learner import Learner
from quickstudy.learners import LEARNERS
from quickstudy.tasks.source import source_of
from quickstudy.training.outer import optimizer_of, schedule_of
from quickstudy.training.session import train as train_learner
from quickstudy.training.settings import settings_among

Options = TypeVar("Options", bound=TrainOptions)


# --- train -----------------------------------------------------------------------------------------------------------


def train(argv: list[str]) -> None:
    asked = _asked(argv, "train", TrainOptions)
    with ranks.joined(device_named(asked.options.device)) as device:
        _train(asked, device)


def _train(asked: Asked, device: torch.device) -> None:
    options = asked.options
    request = asked.request
    out = Path(options.out or f"runs/{folder_name(options.tasks)}-{asked.learner}")
    tasks, learner = _built(asked)
    chosen = {"lr": options.outer_lr, "schedule": options.schedule}
    outer = learner.outer()._replace(**{name: value for name, value in chosen.items() if value is not None})
    trained = train_learner(
        learner,
        tasks,
        **settings_among(vars(options)),
        out=out,
        val=_validation_tasks(request, source_of(tasks).preprocess),
        optimizer=optimizer_of(outer),
        scheduler=schedule_of(outer.schedule, options.iterations),
        resume=options.resume,
        device=device,
        about={"request": dataclasses.asdict(request)},
    )
    parameters = sum(value.numel() for value in trained.theta.values())
    print(f"trained {type(learner).__name__} ({parameters:,} parameters) on {options.tasks}: {out}")
    print(f"next: quickstudy evaluate {out}")


def _built(asked: Asked) -> tuple[Any, Learner]:
    """The training tasks, and a learner for them with new weights."""
    torch.manual_seed(seeds.derive(asked.options.seed, "weights"))
    tasks = open_noted(asked.request)
    return tasks, recipes.build_learner(LEARNERS[asked.learner], tasks, asked.fields, asked.options.network_options())


def open_noted(request: Request) -> Any:
    """The training tasks; prints what a reader should know of the data."""
    tasks = open_tasks(request, "train")
    print_notes(source_of(tasks).notes)
    return tasks


def _validation_tasks(request: Request, preprocess: Any) -> Any:
    """The validation split; None where there are too few classes or tasks for it.

    Prints a message where the validation or the test split cannot be opened.
    """
    opened = {}
    for split, lacking in (("val", "training without validation"), ("test", "'evaluate' will need other sizes")):
        try:
            opened[split] = open_tasks(request, split, preprocess)
        except DataError as error:
            print(f"{lacking}: {error}", file=sys.stderr)
    return opened.get("val")


# --- the words of the command line -----------------------------------------------------------------------------------


class Asked(NamedTuple, Generic[Options]):
    """What a command line asks for."""

    learner: str  # its name in LEARNERS
    options: Options
    fields: dict[str, Any]  # of the learner
    request: Request  # for the tasks


def _asked(argv: list[str], command: str, kind_of_options: type[Options]) -> Asked[Options]:
    """What the words of `quickstudy train` or `quickstudy plan` ask for."""
    tasks, wanted = _first_words(argv, command, kind_of_options)
    name, cls = recipes.find_learner(wanted)
    kind = kind_named(tasks, argv)
    fields = _field_options(cls, recipes.FIELDS.get((kind, name), {}))
    sizes = recipes.DEFAULTS.get(tasks, recipes.DEFAULTS[kind])
    parts = [
        ("training", kind_of_options, field(default_factory=lambda: kind_of_options(tasks=tasks, **sizes))),
        ("learner", Annotated[fields, arg(name=name)], field(default_factory=fields)),
    ]
    both = dataclasses.make_dataclass("Train", parts if dataclasses.fields(fields) else parts[:1])
    purpose = "keep the run in a folder" if command == "train" else "say what that needs, without doing it"
    both.__doc__ = f"Meta-train {cls.__name__} on {tasks} and {purpose}."
    parsed = vars(parse(both, argv[2:], f"{command} {tasks} {wanted}"))
    options, named = parsed["training"], unused.given(argv)
    request = request_of(options)
    unused.check_tasks(request, named)
    unused.check_network(request, {name: cls}, options.network, named)
    return Asked(name, options, vars(parsed.get("learner", fields())), request)


def _first_words(argv: list[str], command: str, kind_of_options: type[Options]) -> tuple[str, str]:
    """The tasks and the learner. Raises ConfigError where they do not come first; --help prints the help and exits."""
    names = [word for word in argv[:2] if not word.startswith("-")]
    if len(names) == 2:
        return names[0], names[1]
    parse(kind_of_options, [word for word in argv if word in ("-h", "--help")], f"{command} TASKS LEARNER")
    raise ConfigError(
        f"say first what to train on what, then the options: quickstudy {command} TASKS LEARNER [OPTIONS], as in: "
        f"quickstudy {command} glyphs protonet --ways 5"
    )


def kind_named(tasks: str, argv: list[str]) -> str:
    """The kind of these tasks, which is text where the words name a column of texts."""
    return kind_of(tasks, any(word.split("=")[0] in ("--text", "--label") for word in argv))


def _field_options(cls: type[Learner], defaults: dict[str, Any]) -> type:
    """A dataclass with the learner's plain fields as options; the comment behind a field is its help text."""
    hints, source = typing.get_type_hints(cls), inspect.getsource(cls)
    made = []
    for f in recipes.plain_fields(cls):
        comment = re.search(rf"^    {f.name}:.*?#\s*(.+)$", source, re.MULTILINE)
        kind = Annotated[_on_command_line(hints[f.name]), arg(help=comment.group(1) if comment else "")]
        made.append((f.name, kind, field(default=defaults.get(f.name, f.default))))
    return dataclasses.make_dataclass(f"{cls.__name__}Fields", made)


def _on_command_line(kind: Any) -> Any:
    """The type of a field as an option: what has a name, such as an update rule, is given by its name."""
    return str if str in typing.get_args(kind) else kind


def request_of(options: TaskOptions) -> Request:
    """The request for these tasks. Paths become absolute, so that the run can be evaluated from any folder."""
    values = options.values(*(one.name for one in dataclasses.fields(Request)))
    values |= {name: str(Path(path).resolve()) for name, path in options.given("data", "items").items()}
    if options.tasks not in NAMED and Path(options.tasks).exists():
        values["tasks"] = str(Path(options.tasks).resolve())
    return Request(**values)


def folder_name(tasks: str) -> str:
    """The word for these tasks in the name of a run folder."""
    return Path(tasks).name.split(".")[0]


def device_named(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}. Use cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available here. Use --device cpu.")
    return device


# --- plan ------------------------------------------------------------------------------------------------------------


def plan(argv: list[str]) -> None:
    asked = _asked(argv, "plan", PlanOptions)
    options = asked.options
    tasks, learner = _built(asked)
    shared = options.values("meta_batch", "memory", "engine", "chunk", "precision", "channels_last", "seed")
    with settings_bar() as bar:
        settings = plan_training(learner, tasks, progress=bar, device=device_named(options.device), **shared)
    _print_settings(settings, options.iterations)
    print(f"fastest: quickstudy train {options.tasks} {asked.learner} ... {settings[0].options()}")


def _print_settings(settings: Sequence[Setting], iterations: int) -> None:
    """A table of what each setting needs, the fastest first."""
    heads = ("engine", "adjoint", "chunk", "peak memory", "iteration", f"{iterations:,} of them")
    table = Table(*(Column(head, no_wrap=True) for head in heads))
    for one in settings:
        chunk = str(one.chunk or ("all" if one.engine in TOGETHER else ""))
        needed = "?" if one.memory is None else size(one.memory)
        times = map(duration, (one.seconds, iterations * one.seconds))
        table.add_row(one.engine, one.adjoint or "", chunk, needed, *times)
    Console().print(table)


LESS_MEMORY = "Take --engine loop, fewer --queries or a smaller network; 'quickstudy plan' tells what a training needs."
