"""Turns the user's own code, named MODULE:FACTORY, into a learner and an episode to check it on."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.base import seeds
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Batch, Episode, Learner, setting, takes
from quickstudy.learners.gradient.maml import MAML
from quickstudy.nn.model import call

EXPECTED = "a learner, a pair (learner, qs.Episode(...)), or a torch.nn.Module"


class Sizes(NamedTuple):
    """Sizes of the episode to draw and settings of the inner loop, used where the factory does not fix them."""

    shape: tuple[int, ...] = ()  # of one input
    ways: int | None = None  # None: regression
    shots: int = 3
    queries: int = 3
    lr: float = 0.1
    steps: int = 2
    seed: int = 0  # of the episode, and of what the factory draws


def build(name: str, sizes: Sizes) -> tuple[Learner, Episode]:
    """Call the factory `name` (MODULE:FACTORY); returns a learner and an episode.

    A plain network is wrapped in MAML. An episode is drawn where the factory returns none. Raises ConfigError where the
    factory cannot be imported or called, or where its result is not a learner or a network.
    """
    with seeds.seeded(sizes.seed, "factory"):
        return _complete(name, make(name), sizes)


def _complete(name: str, made: Any, sizes: Sizes) -> tuple[Learner, Episode]:
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Learner) and isinstance(made[1], Episode):
        return made
    if isinstance(made, nn.Module):
        loss = F.mse_loss if sizes.ways is None else F.cross_entropy
        made = MAML(made, loss=loss, lr=sizes.lr, steps=sizes.steps)
    if not isinstance(made, Learner):
        raise ConfigError(f"{name} must return {EXPECTED}; got {_describe(made)}.")
    return made, draw_episode(made, sizes)


def make(name: str) -> Any:
    """The result of the factory `name` (MODULE:FACTORY), or the named object where it already is a learner or network.

    Raises ConfigError where it cannot be imported or called without arguments.
    """
    where, colon, attribute = name.rpartition(":")
    if not (where and colon and attribute):
        raise ConfigError(f"say MODULE:FACTORY, as in my_model.py:make or package.models:Net; got {name!r}.")
    with _importable(where):
        module = _import(where)
        try:
            named = getattr(module, attribute)  # a module may make its names on demand, so vars() is not enough
        except AttributeError:
            raise ConfigError(f"{where!r} has no {attribute!r}.{suggest(attribute, vars(module))}") from None
        return named if isinstance(named, (Learner, nn.Module, tuple)) else _call(name, named)


def _call(name: str, factory: Any) -> Any:
    if not callable(factory):
        raise ConfigError(f"{name} must be a function or class that gives {EXPECTED}; got {_describe(factory)}.")
    _check_needs_nothing(name, factory)
    return run_user_code(factory, f"{name} raised")


def _check_needs_nothing(name: str, factory: Callable) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some built-in callables have no signature
        return
    try:
        signature.bind()
    except TypeError as error:
        raise ConfigError(
            f"{name} is called without arguments, but takes {signature}: {error}. Write a function that needs none, "
            "such as: def make(): return Net(16, 5)"
        ) from error


@contextmanager
def _importable(where: str) -> Iterator[None]:
    """Within this context, modules can be imported from the current directory and from the folder of the file."""
    before = list(sys.path)
    sys.path[:0] = [str(Path(where).resolve().parent) if where.endswith(".py") else "", str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _import(where: str) -> ModuleType:
    if where.endswith(".py"):
        return _import_file(Path(where))
    try:
        return run_user_code(
            lambda: importlib.import_module(where), f"importing {where!r} failed:", keep=ModuleNotFoundError
        )
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):  # one that the module itself imports
            raise ConfigError(f"importing {where!r} failed: {error}. Install it first.") from error
        raise ConfigError(
            f"there is no module {error.name!r} to import, looked for in {Path.cwd()} and Python's path. A file works "
            "too: path/to/file.py:FACTORY"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}.")
    spec = importlib.util.spec_from_file_location(f"quickstudy_check_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    # Dataclasses look up their module in sys.modules.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    run_user_code(lambda: spec.loader.exec_module(module), f"importing {str(path)!r} failed:")  # type: ignore[union-attr]
    return module


def run_user_code(action: Callable[[], Any], what: str, keep: type[Exception] | tuple = ()) -> Any:
    """The result of the user's code `action`. Raises ConfigError with one line, `what` and the cause, where it fails.

    Exceptions of the types `keep` pass unchanged.
    """
    try:
        return action()
    except keep:
        raise
    except (Exception, SystemExit) as error:
        last = next(iter(str(error).strip().splitlines()[-1:]), "")
        raise ConfigError(f"{what} {type(error).__name__}{f': {last}' if last else ''}") from error


def _describe(value: Any) -> str:
    kinds = ", ".join(type(part).__name__ for part in value) if type(value) is tuple else ""
    return f"a tuple ({kinds})" if kinds else type(value).__name__


# --- an episode ------------------------------------------------------------------------------------------------------


def draw_episode(learner: Learner, sizes: Sizes) -> Episode:
    """A random episode: inputs [n, *shape], and as answers class numbers below `ways` or values shaped as the outputs.

    n is ways x shots (or queries) for classes, else shots (or queries). Raises ConfigError where the shape is missing,
    a size is below 1, or the model does not fit.
    """
    if not sizes.shape or min(sizes.shape) < 1:
        raise ConfigError("say the shape of one input, as in --shape 1 28 28, or return (learner, episode).")
    ways = _ways(learner, sizes)
    if min(sizes.shots, sizes.queries, ways or 1) < 1:
        raise ConfigError("ways, shots and queries must be 1 or more.")
    return Episode(*(_draw_batch(learner, sizes.shape, ways, each) for each in (sizes.shots, sizes.queries)))


def _ways(learner: Learner, sizes: Sizes) -> int | None:
    """The given ways, else the learner's own, else one class per output where the loss is cross-entropy."""
    if sizes.ways is not None or takes(learner, "ways"):
        return setting(learner, "ways") if sizes.ways is None else sizes.ways
    return _outputs(learner, sizes.shape, 2).shape[-1] if setting(learner, "loss") is F.cross_entropy else None


def _draw_batch(learner: Learner, shape: tuple[int, ...], ways: int | None, each: int) -> Batch:
    n = each * (ways or 1)
    y = torch.randn_like(_outputs(learner, shape, n)) if ways is None else torch.arange(n) % ways
    return Batch(torch.randn(n, *shape), y)


def _outputs(learner: Learner, shape: tuple[int, ...], n: int) -> Tensor:
    """The outputs of the learner's network for n random inputs."""
    model = setting(learner, "model")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"say --ways, or return (learner, episode): {type(learner).__name__} has no model to ask.")
    x = torch.randn(n, *shape).to(next(model.parameters(), torch.empty(0)).dtype)
    with torch.no_grad():
        outputs = run_user_code(lambda: call(model, {}, x), f"the model, given x {list(x.shape)}, raised")
    if not (isinstance(outputs, Tensor) and outputs.dim() and len(outputs) == n):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(f"the model must give one tensor, [n, outputs] for n inputs; got {got} for n = {n}.")
    return outputs
