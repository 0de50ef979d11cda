"""`quickstudy compare`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import field
from pathlib import Path

from quickstudy.base.words import plural
from quickstudy.cli import unused
from quickstudy.cli.options import CompareOptions, parse
from quickstudy.cli.training import device_named, folder_name, kind_named, open_noted, request_of
from quickstudy.errors import ConfigError
from quickstudy.experiments import recipes
from quickstudy.experiments.advice import advise, more_trainings
from quickstudy.experiments.compare_learners import compare_learners
from quickstudy.experiments.request import open_tasks
from quickstudy.learner import Learner
from quickstudy.learners import LEARNERS
from quickstudy.tasks.source import source_of


def compare(argv: list[str]) -> None:
    learners, options = _asked(argv)
    out = Path(options.out or f"runs/{folder_name(options.tasks)}-compared")
    request, named = request_of(options), unused.given(argv)
    unused.check_tasks(request, named)
    unused.check_network(request, learners | {"finetune": LEARNERS["finetune"]}, options.network, named)
    train = open_noted(request)
    val, test = (open_tasks(request, split, source_of(train).preprocess) for split in ("val", "test"))
    builders = recipes.builders(learners, kind_named(options.tasks, argv), train, options.network_options())
    print(
        f"{plural(len(builders), 'learner')}, {plural(len(options.seeds), 'training')} of each, "
        f"{plural(options.minutes, 'minute')} for each training, and then the tests",
        file=sys.stderr,
    )
    command = f"quickstudy compare {' '.join(word for word in argv if word != '--resume')}"
    comparison = compare_learners(
        builders,
        train,
        test,
        val=val,
        baselines=recipes.baselines(train, test),
        out=out,
        about={"command": command, "request": dataclasses.asdict(request)},
        **options.values("minutes", "meta_batch", "seeds", "episodes", "metric", "resume"),
        device=device_named(options.device),
    )
    from quickstudy.report.writing import write_comparison  # imported late: matplotlib takes a second

    print(comparison)
    print(*advise(comparison), more_trainings(comparison), sep="\n")
    print(f"report: {write_comparison(comparison, out, png=options.png, csv=options.csv).resolve().as_uri()}")


def _asked(argv: list[str]) -> tuple[dict[str, type[Learner]], CompareOptions]:
    """The learners by name, and the options. Raises ConfigError where tasks and learners do not come first."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    if len(names) < 2:
        parse(CompareOptions, [word for word in argv if word in ("-h", "--help")], "compare TASKS LEARNER LEARNER...")
        raise ConfigError(
            "say first which tasks, then the learners, then the options: quickstudy compare TASKS LEARNER LEARNER... "
            "[OPTIONS], as in: quickstudy compare glyphs protonet maml --minutes 1"
        )
    tasks, learners = names[0], dict(map(recipes.find_learner, names[1:]))
    sizes = recipes.DEFAULTS.get(tasks, recipes.DEFAULTS[kind_named(tasks, argv)])
    known = {name: value for name, value in sizes.items() if name != "iterations"}
    default = field(default_factory=lambda: CompareOptions(tasks=tasks, **known))
    made = dataclasses.make_dataclass("Compare", [("comparing", CompareOptions, default)])
    made.__doc__ = CompareOptions.__doc__
    return learners, parse(made, argv[len(names) :], f"compare {' '.join(names)}").comparing
