"""The engines: how a function of one task is applied to many tasks. Each is a value, found by its name at the edges.

An engine says what kind of work it does; `mapping` does it. No other code asks for an engine's name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from quickstudy.errors import ConfigError, suggest


@dataclass(frozen=True)
class Engine:
    """A way to run the tasks of a batch."""

    name: str
    together: bool = False  # one operation for all tasks of a chunk, so that memory grows with their number
    parallel: bool = False  # one task per thread, on a CPU; random draws come in an order that differs each time
    recorded: bool = False  # runs a program recorded from the learner's code; for meta-gradients only
    compiled: bool = False  # whose program is compiled to machine code, which takes seconds to minutes

    @property
    def in_turn(self) -> bool:
        """Whether the learner's own operations run for one task after the other: the reference of all others."""
        return not (self.together or self.parallel or self.recorded)

    @property
    def own_operations(self) -> bool:
        """Whether it runs the same operations as the loop, so that there is nothing to check."""
        return not (self.together or self.recorded)

    @property
    def repeats_draws(self) -> bool:
        """Whether random draws inside a task can be repeated."""
        return not (self.parallel or self.recorded)

    @property
    def uncompiled(self) -> Engine:
        """The engine that runs the same program without a compiler; itself if there is none."""
        return BY_NAME["replay"] if self.compiled else self

    @property
    def plain(self) -> Engine:
        """The engine that maps tasks the same way and records nothing; itself if it records nothing."""
        return (BY_NAME["vmap"] if self.together else BY_NAME["threads"]) if self.recorded else self


BY_NAME = {
    one.name: one
    for one in (
        Engine("vmap", together=True),
        Engine("threads", parallel=True),
        Engine("loop"),
        Engine("replay", together=True, recorded=True),
        Engine("replay-threads", parallel=True, recorded=True),
        Engine("compile", together=True, recorded=True, compiled=True),
    )
}
AUTO = "auto"  # measure which engine is the fastest, see `choice`
LOOP = BY_NAME["loop"]

PLAIN = tuple(name for name, one in BY_NAME.items() if not one.recorded)  # run the learner's own code
PROGRAMS = tuple(name for name, one in BY_NAME.items() if one.recorded)  # for meta-gradients only
ENGINES = (AUTO, *PLAIN, *PROGRAMS)
TOGETHER = tuple(name for name, one in BY_NAME.items() if one.together)


def find_engine(engine: str | Engine, able: Collection[str] = ENGINES[1:]) -> Engine:
    """The engine of this name; an Engine as it is. Raises ConfigError where its name is not one of `able`."""
    name = engine.name if isinstance(engine, Engine) else engine
    if name not in able:
        raise ConfigError(f"engine must be one of {', '.join(able)}; got {name!r}.{suggest(str(name), able)}")
    return engine if isinstance(engine, Engine) else BY_NAME[name]


def name_of(engine: str | Engine) -> str:
    """An engine's name, or "auto". Raises ConfigError where there is no such engine."""
    return AUTO if engine == AUTO else find_engine(engine, ENGINES).name
