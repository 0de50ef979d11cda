"""Predicts the wear of a new engine ten flights ahead, from its own sensors so far.

    python examples/turbofan.py --data FOLDER       about half a minute on one core

FOLDER holds cmapss_turbofan/cmapss.npz, simulated turbofans that wear until they fail (NASA C-MAPSS; Saxena 2008). The
usual target is the remaining life, but a running engine has no label for it before it fails, so a learner has nothing
to adapt to. The past of its sensors is available. The target here is therefore a wear index ten flights ahead: the
first principal component of the sensors that vary. An engine is a task, there is a row for every tenth flight, and all
answers in the support set are known before the query flights.

Training uses 80 engines of fleet FD001, and validation 20 others. The test uses the engines in the same fleet's test
file, and those of fleet FD003, where some fail in another way. Engines with too few flights for support and queries are
left out.
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
from quickstudy.tasks.tabular.groups import GroupTasks

AHEAD = 10  # flights
SIMPLE, OTHERS = "as now", "pooled ridge and level"
VALIDATION = 80  # engines after this number are for validation


class Sensors(NamedTuple):
    """Statistics of the training engines' sensors: which vary, their mean and scale, and the axis of the wear index."""

    varying: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    axis: np.ndarray  # scaled so that the index has variance 1


def learned(flights: np.ndarray) -> Sensors:
    varying = flights.std(0) > 1e-3 * np.abs(flights.mean(0))
    known = flights[:, varying]
    mean, std = known.mean(0), known.std(0)
    axis = np.linalg.svd((known - mean) / std, full_matrices=False)[2][0]
    return Sensors(varying, mean, std, axis / ((known - mean) / std @ axis).std())


def rows(flights: np.ndarray, sensors: Sensors) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and answers for every tenth flight of an engine.

    Inputs are the index now and ten flights ago, and the sensors; the answer is the index ten flights ahead.
    """
    z = (flights[:, sensors.varying] - sensors.mean) / sensors.std
    z = z[: len(z) // AHEAD * AHEAD].reshape(-1, AHEAD, z.shape[1]).mean(1)  # means over ten flights reduce noise
    index = (z @ sensors.axis)[:, None]
    return np.hstack([index[1:-1], index[:-2], z[1:-1]]), index[2:]


def engines(flights: np.ndarray, sensors: Sensors, name: str, split: str) -> GroupTasks:
    """A task for each engine. The columns of flights [n, 26] are unit, cycle, three settings and 21 sensors."""
    found = {int(unit): rows(flights[flights[:, 0] == unit, 5:], sensors) for unit in np.unique(flights[:, 0])}
    found = {unit: pair for unit, pair in found.items() if len(pair[0]) > 1}
    x, y = (torch.from_numpy(np.concatenate(parts).astype(np.float32)) for parts in zip(*found.values(), strict=True))
    starts = torch.tensor([0, *(len(pair[0]) for pair in found.values())]).cumsum(0)
    declared = {"ordered": True, "name": name, "split": split}
    return GroupTasks(x, y, starts, [f"engine {unit}" for unit in found], shots=6, queries=4, **declared)


def main(data: Path, iterations: int = 300, episodes: int = 500, seed: int = 0) -> None:
    """Train on engines of one fleet, and test on others of it and on those of another fleet.

    Args:
        data: folder of the data sets.
        iterations: iterations of meta-training, with four engines in each.
        episodes: test episodes for each fleet.
        seed: seed of the training.
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
