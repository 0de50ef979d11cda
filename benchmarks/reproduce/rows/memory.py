"""The rows of the learners that read examples in order, on Omniglot."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from benchmarks.reproduce.rows.row import Row, Test

STREAM = Test(5, 1, 9, episodes=600)  # ten examples of each class; queries continue the stream
SEEN = (1, 2, 5, 10)  # accuracy is measured at these instances of a class


@dataclass(frozen=True)
class Reader:
    """A learner that reads examples in order. Learners that read one-hot labels are trained for each number of ways."""

    learner: str
    sizes: tuple[int, int, int]  # ways, shots, queries in training
    iterations: int
    meta_batch: int
    published: str
    fields: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    clip: float | None = 1.0
    features: str = ""  # the row whose encoder makes the features
    name: str = ""  # name of the row, where learner and sizes do not determine it
    about: str = ""  # differences from the paper besides the sizes


FEATURES = "protonet-features"
# Streams longer than 5-way 1-shot use features: from pixels, 720 iterations of 5-way 5-shot (12 minutes) gave chance.
SNAIL_ON_FEATURES = [
    ((5, 5, 5), 5000, 8, "99.78"),
    ((20, 1, 2), 8000, 4, "97.64"),
    ((20, 5, 2), 2500, 2, "99.36"),
]
MEMORY = [
    Reader(
        "protonet",
        (20, 1, 5),
        3000,
        2,
        "98.8 (batch norm)",
        network={"norm": "layer"},
        clip=None,
        name=FEATURES,
        about="layer norm; no memory: its encoder makes the features of rows below",
    ),
    Reader(
        "mann",
        (5, 1, 9),
        12000,
        16,
        "2nd instance 82.8, 5th 94.9",
        {"sharpness": 10.0, "slots": 64},
        {"hidden": ()},
        features=FEATURES,
        name="mann-features",
        about="on features of ProtoNet in place of pixels; 64 rows; Adam 1e-3, paper RMSProp 1e-4; sharpness 10",
    ),
    Reader(
        "mann",
        (5, 1, 9),
        12000,
        16,
        "2nd instance 82.8, 5th 94.9",
        {"sharpness": 10.0},
        {"network": "pixels"},
        about="Adam 1e-3 where the paper has RMSProp 1e-4; sharpness 10",
    ),
    Reader("metarnn", (5, 1, 9), 15000, 16, "2nd instance 49.5, 5th 63.6 (LSTM)", {}, {"network": "pixels"}),
    Reader("snail", (5, 1, 5), 2000, 8, "99.07", {"causal_filters": 64}, {"norm": "layer"}),
    *(
        Reader(
            "snail",
            sizes,
            iterations,
            tasks,
            published,
            {"causal_filters": 64},
            {"hidden": ()},
            features=FEATURES,
            name=f"snail-features-{sizes[0]}way-{sizes[1]}shot",
            about="on features of ProtoNet in place of pixels",
        )
        for sizes, iterations, tasks, published in SNAIL_ON_FEATURES
    ),
    Reader("lstmmetalearner", (5, 1, 5), 2600, 8, "none printed", {"lr": 0.1, "steps": 5}),
    Reader("lstmmetalearner", (5, 5, 5), 1300, 8, "none printed", {"lr": 0.1, "steps": 5}),
]


def memory_rows() -> list[Row]:
    return [_reading(one) for one in MEMORY]


def _reading(one: Reader) -> Row:
    ways, shots, queries = one.sizes
    stream = one.learner in ("mann", "metarnn")
    sizes = "streams of ten of each class" if stream else f"{queries} queries"
    tested = 5 if one.name == FEATURES else ways  # ProtoNet can be tested on any number of classes
    settings = f"{one.iterations:,} iterations of {one.meta_batch} tasks, {sizes}"
    return Row(
        one.name or (one.learner if stream else f"{one.learner}-{ways}way-{shots}shot"),
        one.learner,
        one.sizes,
        one.iterations,
        one.meta_batch,
        [STREAM, Test(5, 5, 5, episodes=600)]
        if stream
        else [Test(tested, shots, 15 if tested == 5 else 5, episodes=600)],
        dict(one.fields),
        dict(one.network),
        published=one.published,
        differs="; ".join(text for text in (settings, one.about) if text),
        instances=SEEN if stream else (),
        clip=one.clip,
        features=one.features,
    )


# The papers' published settings: iterations, tasks per iteration, fields. MANN's own outer loop is RMSProp at 1e-4.
MEMORY_LONG: dict[str, dict[str, Any]] = {
    "protonet": {"iterations": 40_000},
    "mann": {"iterations": 100_000, "meta_batch": 16, "fields": {}, "schedule": None, "clip": None},
    "metarnn": {"iterations": 100_000, "meta_batch": 16},
    "snail": {"iterations": 80_000, "meta_batch": 32, "fields": {}},
    "lstmmetalearner": {"iterations": 50_000, "meta_batch": 16},
}


def memory_long_rows() -> list[Row]:
    """Longer trainings with the papers' sizes and three seeds. These take long, so use a GPU or allow days."""
    return [
        dataclasses.replace(
            row,
            name=f"{row.name}-seed{seed}",
            seed=seed,
            features=row.features and f"{row.features}-seed{seed}",
            differs="",
            **MEMORY_LONG[row.learner],
        )
        for row in memory_rows()
        for seed in range(3)
    ]
