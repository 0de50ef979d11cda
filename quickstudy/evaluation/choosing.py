"""Which engine answers the test episodes: the fastest that gives the loop's predictions in float64."""

from __future__ import annotations

import torch

from quickstudy.base import seeds
from quickstudy.base.timing import timed
from quickstudy.engine import agreement, ranks
from quickstudy.engine.choice import race
from quickstudy.engine.engines import Engine, find_engine
from quickstudy.engine.watch import Watch
from quickstudy.episodes import count, first_tasks
from quickstudy.evaluation.passes import Measure, Pass, mapped

TRIAL = (2, 8)  # fewest and most episodes on which the engines are timed
SHARE = 0.02  # of all episodes that one round of the race takes, where they are costly
FREE = 0.05  # seconds that a round may take in any case
COSTLY = 0.5  # seconds of one task from which on there is no race, which would take longer than it could save


def chosen_engine(
    one: Pass, measure: Measure, engine: str = "auto", tried: str | None = None, watch: Watch | None = None
) -> str:
    """The engine for a pass, the same on all ranks. "auto" times the engines on a few of its episodes.

    `tried`: an engine that was chosen for a similar learner. "auto" takes it where it gives the loop's results.
    `watch`: will compare the engine with the loop; None: that is done here first.

    A round of the race takes a small share of all episodes. Where one task takes so long that even this would cost
    more than it saves, each task gets a thread of its own: this suits every costly task on a CPU, and gives the loop's
    results. Raises ConfigError where the engine is unknown.
    """
    with seeds.seeded(one.seed, "choose"):
        again = engine == "auto" and tried is not None and _is_right(one, measure, tried)
        choice = race.Choice(str(tried), "as before") if again else _raced(one, measure, engine, watch is None)
        return ranks.same_engine(choice).engine


def _raced(one: Pass, measure: Measure, engine: str, checked: bool) -> race.Choice:
    threads = one.device.type == "cpu" and torch.get_num_threads() > 1
    if engine == "auto" and threads and one.seconds > COSTLY and not one.drew and count(one.first) > 1:
        return race.Choice("threads", "one costly task per thread")
    few = one.arranged(first_tasks(one.first, _trial(one, measure) if engine == "auto" else TRIAL[1]), 0)

    def enter(way: Engine) -> race.Entrant:
        if checked:
            _check(one, way)
        return race.Entrant(lambda: mapped(measure, one.learner, few, way))

    return race.chosen(race.Race(enter, count(few), one.device), engine)


def _trial(one: Pass, measure: Measure) -> int:
    """On how many episodes to time the engines."""
    single = one.arranged(first_tasks(one.first, 1), 0)
    seconds = timed(lambda: mapped(measure, one.learner, single, "loop"), one.device)[1]
    return min(TRIAL[1], max(TRIAL[0], int(FREE / max(seconds, 1e-6)), int(SHARE * one.episodes)))


def _check(one: Pass, engine: str | Engine) -> None:
    """Raise RuntimeError unless an engine gives the loop's predictions on two episodes, in float64."""
    agreement.check_engine(one.learner, one.theta, one.first, engine, agreement.answers)


def _is_right(one: Pass, measure: Measure, engine: str) -> bool:
    """Whether an engine gives the loop's predictions and results on two episodes."""
    if find_engine(engine).own_operations:
        return True
    few = one.arranged(first_tasks(one.first, TRIAL[0]), 0)
    try:
        _check(one, engine)
        apart = agreement.relative_difference(*(mapped(measure, one.learner, few, name) for name in (engine, "loop")))
    except race.CANNOT:
        return False
    return apart <= race.ROUNDING
