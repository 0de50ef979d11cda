"""`quickstudy check` and `quickstudy list`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from quickstudy.cli import factory
from quickstudy.cli.options import CheckOptions, parse
from quickstudy.engine.check.meta_gradient import check_meta_gradient
from quickstudy.engine.engines import ENGINES
from quickstudy.errors import ConfigError
from quickstudy.evaluation.controls import CONTROLS
from quickstudy.experiments import recipes
from quickstudy.experiments.request import NAMED
from quickstudy.learners import LEARNERS
from quickstudy.nn.conv4 import DOWNSAMPLING
from quickstudy.nn.norm import POLICIES


def check(argv: list[str]) -> int:
    options = parse(CheckOptions, argv, "check")
    sizes = factory.Sizes(
        _shape(options.shape), options.ways, options.shots, options.queries, options.lr, options.steps, options.seed
    )
    learner, episode = factory.build(options.factory, sizes)
    chosen = {"directions": options.directions, "tolerance": options.tolerance, "seed": options.seed}
    checked = check_meta_gradient(learner, episode, **chosen)
    table = Table("parameter", "shape", "meta-gradient", "difference", "verdict")
    for entry in checked.entries:
        shape, off = "x".join(map(str, entry.shape)) or "number", entry.difference
        table.add_row(entry.name, shape, f"{entry.norm:.3g}", "" if math.isnan(off) else f"{off:.0e}", entry.verdict)
    Console().print(table)
    print(checked)
    return 0 if checked.ok else 1


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
    console.print(f"tasks: {', '.join(NAMED)}, a folder of class folders, a table, a table of ratings, one of texts")
    console.print(f"controls: {', '.join(CONTROLS)}")
    console.print(f"network: {', '.join(recipes.IMAGE_NETWORKS)}")
    console.print(f"norm: {', '.join(POLICIES)}   downsample: {', '.join(DOWNSAMPLING)}   engine: {', '.join(ENGINES)}")
