"""How far a new engine will have worn ten flights from now, from its own sensors so far.

    python examples/turbofan.py --data FOLDER       about half a minute on one core

FOLDER holds cmapss_turbofan/cmapss.npz, simulated turbofans that wear until they fail (NASA C-MAPSS; Saxena 2008). The
usual question is the remaining life. A running engine has no label of it before it fails, so there is nothing to adapt
to. What it does have is the past of its sensors: the question is their wear index ten flights ahead, the first
principal component of the sensors that vary. An engine is a task, a row is every tenth flight, and every answer in the
support set was there before the flights that are asked for.

Trained on 80 engines of fleet FD001, chosen on 20 others. Tested on those of the same fleet's test file, and on fleet
FD003, where some fail in another way; engines that flew too little to show and ask are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import comparison
import numpy as np
import torch
import tyro
from prices import Last
from sklearn.linear_model import Ridge

import quickstudy as qs
from quickstudy.tasks.groups import GroupTasks

AHEAD = 10  # flights
SIMPLE, OTHERS = "as now", "pooled ridge and level"
VALIDATION = 80  # engines from this number on


class Sensors(NamedTuple):
    """What training engines tell of sensors: those that vary, their scale, and the axis of the wear index."""

    varying: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    axis: np.ndarray  # the index has variance 1


def learned(flights: np.ndarray) -> Sensors:
    varying = flights.std(0) > 1e-3 * np.abs(flights.mean(0))
    known = flights[:, varying]
    mean, std = known.mean(0), known.std(0)
    axis = np.linalg.svd((known - mean) / std, full_matrices=False)[2][0]
    return Sensors(varying, mean, std, axis / ((known - mean) / std @ axis).std())


def rows(flights: np.ndarray, sensors: Sensors) -> tuple[np.ndarray, np.ndarray]:
    """Of every tenth flight of an engine: the index now and ten flights ago, and the sensors; the index ten ahead."""
    z = (flights[:, sensors.varying] - sensors.mean) / sensors.std
    z = z[: len(z) // AHEAD * AHEAD].reshape(-1, AHEAD, z.shape[1]).mean(1)  # means of ten flights: less noise
    index = (z @ sensors.axis)[:, None]
    return np.hstack([index[1:-1], index[:-2], z[1:-1]]), index[2:]


def engines(flights: np.ndarray, sensors: Sensors, name: str, split: str) -> GroupTasks:
    """A task for each engine: flights [n, 26] are unit, cycle, three settings and 21 sensors."""
    found = {int(unit): rows(flights[flights[:, 0] == unit, 5:], sensors) for unit in np.unique(flights[:, 0])}
    found = {unit: pair for unit, pair in found.items() if len(pair[0]) > 1}
    x, y = (torch.from_numpy(np.concatenate(parts).astype(np.float32)) for parts in zip(*found.values(), strict=True))
    starts = torch.tensor([0, *(len(pair[0]) for pair in found.values())]).cumsum(0)
    told = {"ordered": True, "name": name, "split": split}
    return GroupTasks(x, y, starts, [f"engine {unit}" for unit in found], shots=6, queries=4, **told)


def main(data: Path, iterations: int = 300, episodes: int = 500, seed: int = 0) -> None:
    """Learn on engines of one fleet, ask for others of it and for those of another.

    Args:
        data: folder of the data sets.
        iterations: of meta-training, four engines each.
        episodes: test episodes of each fleet.
        seed: of the training.
    """
    file = np.load(data / "cmapss_turbofan" / "cmapss.npz")
    failed = file["train_FD001"]
    held_out = failed[:, 0] > VALIDATION
    sensors = learned(failed[~held_out, 5:])
    train = engines(failed[~held_out], sensors, "FD001", "train")
    val = engines(failed[held_out], sensors, "FD001", "val")
    ridges = [Ridge(alpha) for alpha in (0.1, 10.0, 100.0)]
    several = {
        SIMPLE: [qs.per_task(Last(), train)],
        "ridge per engine": [qs.per_task(model, train) for model in ridges],
        "pooled ridge": [qs.pooled(model, train) for model in ridges],
        OTHERS: [qs.pooled(model, train, offset=True) for model in ridges],
    } | comparison.meta_trained(train, val, iterations, seed, rates=(0.01, 0.05))
    for fleet in ("FD001", "FD003"):
        test = engines(file[f"test_{fleet}"], sensors, fleet, "test")
        print(f"\n{fleet}: {len(test.names)} engines, trained on {len(train.names)} of FD001, {episodes} episodes\n")
        print(comparison.table(comparison.measured(several, val, test, episodes), [SIMPLE, OTHERS]))


if __name__ == "__main__":
    tyro.cli(main)
