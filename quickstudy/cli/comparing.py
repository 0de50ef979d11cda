"""`quickstudy compare`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import field
from pathlib import Path

from quickstudy.cli.options import CompareOptions, parse
from quickstudy.cli.training import device_named, network_options, request_from
from quickstudy.errors import ConfigError
from quickstudy.experiments import recipes
from quickstudy.experiments.advice import advise
from quickstudy.experiments.compare_learners import compare_learners
from quickstudy.experiments.request import kind_of, open_tasks

# --- compare ---------------------------------------------------------------------------------------------------------


def compare(argv: list[str]) -> None:
    names = list(itertools.takewhile(lambda a: not a.startswith("-"), argv))
    if len(names) < 2:
        parse(CompareOptions, [a for a in argv if a in ("-h", "--help")], "compare TASKS LEARNER LEARNER...")
        raise ConfigError(
            "say first which tasks, then the learners, then the options: quickstudy compare TASKS LEARNER LEARNER... "
            "[OPTIONS], as in: quickstudy compare glyphs protonet maml --minutes 1"
        )
    tasks_name, learners = names[0], dict(map(recipes.find_learner, names[1:]))
    kind = kind_of(tasks_name, any(word.split("=")[0] in ("--text", "--label") for word in argv))
    sizes = {k: v for k, v in recipes.DEFAULTS.get(tasks_name, recipes.DEFAULTS[kind]).items() if k != "iterations"}
    default = field(default_factory=lambda: CompareOptions(**sizes))
    both = dataclasses.make_dataclass("Compare", [("comparing", CompareOptions, default)])
    both.__doc__ = CompareOptions.__doc__
    options = parse(both, argv[len(names) :], f"compare {' '.join(names)}").comparing
    out = Path(options.out or f"runs/{Path(tasks_name).name.split('.')[0]}-compared")
    request = request_from(tasks_name, options)
    train = open_tasks(request, "train")
    for note in getattr(train, "notes", ()):
        print(f"note: {note}", file=sys.stderr)
    val, test = (open_tasks(request, split, getattr(train, "preprocess", None)) for split in ("val", "test"))
    builders = recipes.builders(learners, kind, train, network_options(options))
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
        device=device_named(options.device),
    )
    from quickstudy.report.writing import write_comparison  # imported late: matplotlib takes a second

    print(found)
    print(*advise(found), sep="\n")
    print(f"report: {write_comparison(found, out, png=options.png, csv=options.csv).resolve().as_uri()}")
