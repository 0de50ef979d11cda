"""How the cost of a meta-gradient grows with the number of tasks, the number of inner steps and the network's width.

One of the three varies at a time, around one sinusoid case. These cases race like all others, but without compile and
without measuring memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.speed import peers
from benchmarks.speed.cases import Case, sinusoid


class Growth(NamedTuple):
    base: dict[str, int]
    axes: dict[str, tuple[int, ...]]

    def points(self) -> Iterator[tuple[str, int, Case]]:
        for axis, values in self.axes.items():
            for value in values:
                yield axis, value, sinusoid(**(self.base | {axis: value}), thorough=False)


GROWTH = Growth(
    {"tasks": 25, "steps": 5, "width": 40},
    {"tasks": (1, 5, 25, 100, 250), "steps": (1, 2, 5, 10, 20), "width": (10, 40, 160, 640)},
)
SMALLEST_GROWTH = Growth({"tasks": 2, "steps": 1, "width": 10}, {"tasks": (2, 4), "steps": (1, 2), "width": (10,)})


def further(growth: Growth, cases: tuple[Case, ...]) -> list[Case]:
    """The cases of the curves that are not among `cases`, without duplicates."""
    known = {case.name for case in cases}
    return list({case.name: case for _, _, case in growth.points() if case.name not in known}.values())


def curves(growth: Growth, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each point that was measured, with the times of Quickstudy, the fastest peer and the floor."""
    return [
        {"axis": axis, "value": value, "case": case.name} | point(results[case.name])
        for axis, value, case in growth.points()
        if case.name in results
    ]


def point(result: dict[str, Any]) -> dict[str, Any]:
    """The times of Quickstudy without compile, the fastest peer and the floor, in ms."""
    named = {entry["name"]: entry for entry in result["contestants"]}
    ours, peer = named["quickstudy without compile"], fastest_peer(result)
    found = {"way": ours["way"], "quickstudy_ms": ours["median_ms"], "floor_ms": named["floor"]["median_ms"]}
    return found | {"peer": peer and peer["name"], "peer_ms": peer and peer["median_ms"]}


def fastest_peer(result: dict[str, Any], looping: bool = False) -> dict[str, Any] | None:
    """The fastest peer; None where no peer can compute the case. `looping`: only peers that loop over tasks."""
    names = [name for name in peers.PEERS if not (looping and name in peers.MAPPED)]
    racing = [entry for entry in result["contestants"] if entry["name"] in names and entry["median_ms"]]
    return min(racing, key=lambda entry: entry["median_ms"], default=None)
