"""Options that would have no effect are refused: who gives one believes that it changes something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from quickstudy.errors import ConfigError
from quickstudy.experiments.recipes import network_options
from quickstudy.experiments.request import NAMED, Request, applicable
from quickstudy.learner import Learner

NETWORK = ("network", "filters", "norm", "downsample", "dropblock", "hidden")


def given(argv: Sequence[str]) -> list[str]:
    """The options that are named on a command line, as fields are: --val-every is 'val_every'."""
    return [word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]


def check_tasks(request: Request, named: Iterable[str]) -> None:
    """Raise ConfigError where one of the named options is of tasks, and these tasks do not read it."""
    if request.tasks not in NAMED and not Path(request.tasks).exists():
        return  # opening them will tell
    kind, read = applicable(request)
    for name in named:
        if name in vars(request) and name not in read:
            others = ", ".join(map(_option, read))
            raise _no_effect(name, f"{request.tasks!r}, which is read as {kind}. What is read there: {others}")


def check_network(
    request: Request, learners: Mapping[str, type[Learner]], network: str | None, named: Iterable[str]
) -> None:
    """Raise ConfigError where one of the named options is of networks, and none of the learners' has it."""
    kind, _ = applicable(request)
    used = {option for cls in learners.values() for option in network_options(cls, kind, network or "conv4")}
    for name in named:
        if name in NETWORK and name not in used:
            where = f"the network of {' or '.join(learners)} for {kind}"
            raise _no_effect(name, f"{where}. Options there: {', '.join(map(_option, sorted(used))) or 'none'}")
        if name == "channels_last" and kind != "images":
            raise _no_effect(name, f"{kind}: it is for images")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _no_effect(name: str, where: str) -> ConfigError:
    return ConfigError(f"{_option(name)} has no effect on {where}. Leave it out.")
