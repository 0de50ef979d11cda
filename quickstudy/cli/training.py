"""`quickstudy train` and `quickstudy plan`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from rich.console import Console
from rich.table import Column, Table
from tyro.conf import arg

from quickstudy.base import seeds
from quickstudy.base.memory import in_words as in_bytes
from quickstudy.base.progress import settings_bar
from quickstudy.cli.options import PlanOptions, TaskOptions, TrainOptions, parse
from quickstudy.engine import ranks
from quickstudy.engine.choice.forecast import plan as plan_training
from quickstudy.engine.mapping import TOGETHER
from quickstudy.errors import ConfigError, DataError
from quickstudy.experiments import recipes
from quickstudy.experiments.request import NAMED, Request, kind_of, open_tasks
from quickstudy.learner import Learner
from quickstudy.learners import LEARNERS
from quickstudy.training.outer import optimizer_of, schedule_of
from quickstudy.training.session import train as train_learner

Options = TypeVar("Options", bound=TrainOptions)


# --- train -----------------------------------------------------------------------------------------------------------


def train(argv: list[str]) -> None:
    given = _train_options(argv, "train", TrainOptions)
    with ranks.joined(device_named(given[2].device)) as device:
        _train(*given, device)


def _train(
    tasks_name: str, learner_name: str, options: TrainOptions, fields: dict[str, Any], device: torch.device
) -> None:
    cls = LEARNERS[learner_name]
    request = request_from(tasks_name, options)
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


def _built(request: Request, cls: type[Learner], options: TrainOptions, fields: dict[str, Any]) -> tuple[Any, Learner]:
    """The training tasks, and a learner for them with new weights."""
    torch.manual_seed(seeds.derive(options.seed, "weights"))
    tasks = open_tasks(request, "train")
    for note in getattr(tasks, "notes", ()):
        print(f"note: {note}", file=sys.stderr)
    return tasks, recipes.build_learner(cls, tasks, fields, network_options(options))


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


def _train_options(
    argv: list[str], command: str, kind_of_options: type[Options]
) -> tuple[str, str, Options, dict[str, Any]]:
    """The names of the tasks and of the learner, the command's options, and the learner's fields."""
    words = [a for a in argv[:2] if not a.startswith("-")]
    if len(words) < 2:
        # With --help this prints the help and exits.
        parse(kind_of_options, [a for a in argv if a in ("-h", "--help")], f"{command} TASKS LEARNER")
        raise ConfigError(
            f"say first what to train on what, then the options: quickstudy {command} TASKS LEARNER [OPTIONS], as in: "
            f"quickstudy {command} glyphs protonet --ways 5"
        )
    name, cls = recipes.find_learner(words[1])
    kind = kind_of(words[0], any(word.split("=")[0] in ("--text", "--label") for word in argv))
    fields = _field_options(cls, recipes.FIELDS.get((kind, name), {}))
    sizes = recipes.DEFAULTS.get(words[0], recipes.DEFAULTS[kind])
    parts = [
        ("training", kind_of_options, field(default_factory=lambda: kind_of_options(**sizes))),
        (name, fields, field(default_factory=fields)),
    ]
    both = dataclasses.make_dataclass("Train", parts if dataclasses.fields(fields) else parts[:1])
    purpose = "keep the run in a folder" if command == "train" else "say what that needs, without doing it"
    both.__doc__ = f"Meta-train {cls.__name__} on {words[0]} and {purpose}."
    parsed = parse(both, argv[2:], f"{command} {words[0]} {words[1]}")
    return words[0], name, parsed.training, dataclasses.asdict(getattr(parsed, name, fields()))


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


def request_from(tasks: str, options: TaskOptions) -> Request:
    """The request for these tasks. Paths become absolute, so that the run can be evaluated from any folder."""
    given = {name: getattr(options, name) for name in Request._fields if hasattr(options, name)}
    named = tasks in NAMED or not Path(tasks).exists()
    given |= {name: str(Path(given[name]).resolve()) for name in ("data", "items") if given[name]}
    return Request(tasks if named else str(Path(tasks).resolve()), **given)


def network_options(options: TaskOptions) -> dict[str, Any]:
    chosen = {
        name: getattr(options, name) for name in ("network", "filters", "norm", "downsample", "dropblock", "hidden")
    }
    return {name: value for name, value in chosen.items() if value is not None}


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
    tasks_name, learner_name, options, fields = _train_options(argv, "plan", PlanOptions)
    tasks, learner = _built(request_from(tasks_name, options), LEARNERS[learner_name], options, fields)
    with settings_bar() as bar:
        found = plan_training(
            learner,
            tasks,
            progress=bar,
            device=device_named(options.device),
            **{
                name: getattr(options, name)
                for name in ("meta_batch", "memory", "engine", "chunk", "precision", "channels_last", "seed")
            },
        )
    from quickstudy.base.words import duration  # imported late: matplotlib takes a second and memory

    heads = ("engine", "adjoint", "chunk", "peak memory", "iteration", f"{options.iterations:,} of them")
    table = Table(*(Column(head, no_wrap=True) for head in heads))
    for one in found:
        size = "?" if one.memory is None else in_bytes(one.memory)
        cells = (one.adjoint or "", str(one.chunk or ("all" if one.engine in TOGETHER else "")), size)
        table.add_row(one.engine, *cells, *map(duration, (one.seconds, options.iterations * one.seconds)))
    Console().print(table)
    print(f"fastest: quickstudy train {tasks_name} {learner_name} ... {found[0].options()}")


LESS_MEMORY = "Take --engine loop, fewer --queries or a smaller network; 'quickstudy plan' tells what a training needs."
