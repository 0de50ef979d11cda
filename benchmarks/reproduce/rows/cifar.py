"""The rows for few-shot classification of photographs on CIFAR-FS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.reproduce.rows.row import Row, Test

# Accuracies at 1 and 5 shots, from Bertinetto 2019; those of MetaOptNet from Lee 2019.
CIFAR_PUBLISHED = {
    "maml": ("58.9 ± 1.9", "71.5 ± 1.0"),
    "protonet": ("55.5 ± 0.7", "72.0 ± 0.6"),
    "relationnet": ("55.0", "69.3"),
    "r2d2": ("65.3 ± 0.2 (96-192-384-512 filters)", "79.4 ± 0.1 (96-192-384-512 filters)"),
    "metaoptnet": ("72.0 (ResNet-12)", "84.2 (ResNet-12)"),
}


@dataclass(frozen=True)
class Photographs:
    """A learner on CIFAR-FS: its training, with the numbers of iterations at 1 and 5 shots."""

    learner: str
    ways: int  # in training
    queries: int
    meta_batch: int
    iterations: tuple[int, int]
    differs: str
    shots: int | None = None  # in training; None: as at test
    fields: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    test_steps: int | None = None


# Iterations are 600 seconds of processor time divided by the time of one iteration.
CIFAR_SHORT = [
    Photographs("protonet", 20, 5, 2, (1400, 700), "20-way training; queries normalised by their own batch"),
    Photographs("r2d2", 20, 5, 2, (1400, 700), "Conv4-64; 20-way training"),
    Photographs(
        "maml",
        5,
        5,
        4,
        (2100, 1200),
        "1 inner step at rate 0.1, 3 at test",
        fields={"lr": 0.1, "steps": 1},
        network={"downsample": "pool"},
        test_steps=3,
    ),
]
# Sizes are the papers'. All use Adam 1e-3 with a cosine instead of each paper's own schedule, and no augmentation.
CIFAR_LONG = [
    Photographs("protonet", 20, 15, 1, (60_000, 60_000), "cosine; queries normalised by their own batch"),
    Photographs("relationnet", 5, 15, 1, (100_000, 100_000), "cosine"),
    Photographs(
        "r2d2",
        20,
        7,
        1,
        (60_000, 60_000),
        "5 shots in training, where the paper draws 1 to 10; features of the last block alone; cosine; no dropout",
        shots=5,
        network={"filters": (96, 192, 384, 512)},
    ),
    Photographs(
        "metaoptnet",
        5,
        6,
        8,
        (60_000, 60_000),
        "Adam and a cosine in place of SGD; no augmentation; no label smoothing; DropBlock of 4 x 4 and 2 x 2",
        shots=5,
        network={"network": "resnet12", "dropblock": 0.1},
    ),
    Photographs(
        "maml",
        5,
        15,
        4,
        (60_000, 60_000),
        "cosine",
        fields={"lr": 0.01, "steps": 5},
        network={"downsample": "pool", "filters": 32},
        test_steps=10,
    ),
]


def cifar_rows(long: bool) -> tuple[list[Row], list[Row]]:
    """The rows, and the rows that they are compared with.

    Short: 10 minutes of one core each. Long: the papers' settings and three seeds. The second list holds ProtoNet's
    rows of the first seed, and class means of the raw images, which learn nothing.
    """
    seeds, entries = (range(3), CIFAR_LONG) if long else ([None], CIFAR_SHORT)
    made = [_cifar(entry, shots, seed) for shots in (1, 5) for entry in entries for seed in seeds]
    first = [row for row in made if row.learner == "protonet" and row.seed == 0]
    nothing = Row("nearest-centroid", "nearestcentroid", (5, 1, 15), 1, 1, [_cifar_test(shots) for shots in (1, 5)])
    return [row for row in made if row not in first], [*first, nothing]


def _cifar(entry: Photographs, shots: int, seed: int | None) -> Row:
    i = (1, 5).index(shots)
    return Row(
        f"{entry.learner}-{shots}shot" + ("" if seed is None else f"-seed{seed}"),
        entry.learner,
        (entry.ways, entry.shots or shots, entry.queries),
        entry.iterations[i],
        entry.meta_batch,
        [_cifar_test(shots, entry.test_steps)],
        dict(entry.fields),
        dict(entry.network),
        seed=seed or 0,
        published=CIFAR_PUBLISHED[entry.learner][i],
        differs=f"{entry.iterations[i]:,} iterations of {entry.meta_batch} tasks; {entry.differs}",
    )


def _cifar_test(shots: int, steps: int | None = None) -> Test:
    return Test(5, shots, 15, steps=steps, episodes=600)
