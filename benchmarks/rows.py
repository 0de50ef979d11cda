"""What `reproduce.py` trains and tests: one row per training, with its protocol and the published number beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Test:
    """A protocol under which a row is tested."""

    ways: int | None
    shots: int
    queries: int
    steps: int | None = None  # inner steps, for learners that take them; None: as in training
    episodes: int = 1000
    ensemble: int = 1  # best checkpoints averaged
    controls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One training and its tests."""

    name: str
    learner: str
    sizes: tuple[int | None, int, int]  # ways, shots, queries in training
    iterations: int
    meta_batch: int
    tests: Sequence[Test]
    fields: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    schedule: str | None = "cosine"  # of the outer rate; None: the learner's own outer loop
    seed: int = 0
    keep: int = 1  # best checkpoints kept; more than one trains with validation
    movement: bool = False  # measure how far each layer moves
    instances: tuple[int, ...] = ()  # accuracy at these instances of a class in a stream
    clip: float | None = None  # norm that a gradient is cut to
    published: str = ""  # the paper's number, under the paper's protocol
    differs: str = ""  # what we did otherwise

    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, as plain values: a result stands as long as these are the same."""
        unset = {name for name in ("instances", "clip") if not getattr(self, name)}  # older results do not know them
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in unset | {"published", "differs"}}


# --- the foundation's tables -----------------------------------------------------------------------------------------

ONE, FIVE, MAML_TEST = Test(5, 1, 15), Test(5, 5, 15), Test(5, 1, 1, steps=3)

OMNIGLOT = [
    Row(
        "maml-5way-1shot",
        "maml",
        (5, 1, 5),
        3000,
        16,
        [MAML_TEST],
        {"lr": 0.4, "steps": 1},
        published="98.7 ± 0.4 (60,000 iterations of 32 tasks)",
        differs="3,000 iterations of 16 tasks; 5 queries per class in training",
    ),
    Row(
        "protonet-5way-1shot",
        "protonet",
        (20, 1, 5),
        3000,
        2,
        [ONE],
        published="98.8 (60-way training)",
        differs="20-way training, 6,000 episodes; queries normalised by their own batch",
    ),
    Row(
        "protonet-5way-5shot",
        "protonet",
        (20, 5, 5),
        1500,
        2,
        [FIVE],
        published="99.7 (60-way training)",
        differs="20-way training, 3,000 episodes; queries normalised by their own batch",
    ),
]
BASELINES = [
    Row("finetune", "finetune", (5, 1, 15), 3000, 2, [ONE, FIVE, MAML_TEST], {"steps": 100, "lr": 0.1}),
    Row("nearest-centroid", "nearestcentroid", (5, 1, 15), 1, 1, [ONE, FIVE, MAML_TEST]),
]
SINUSOID = [
    Row(
        f"maml-10shot-seed{seed}",
        "maml",
        (None, 10, 10),
        10000,
        25,
        [Test(None, 10, 100, steps=k, episodes=600) for k in (0, 1, 2, 3, 5, 10)],
        {"lr": 0.01, "steps": 1},
        schedule="constant",
        published="no value printed in the paper",
        differs="10,000 of 70,000 iterations",
        seed=seed,
    )
    for seed in range(3)
]

# --- the gradient family on Omniglot ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A learner of the family: its settings, and how many iterations fit the short budget at 1 and at 5 shots.

    Settings are the papers', except that inner rates (and iMAML's lam) were compared on validation characters in
    trainings of a twelfth of the budget. The iterations are 600 seconds of processor time (5 minutes on 2 cores) over
    what one costs (benchmarks/cost.py).
    """

    learner: str
    fields: dict[str, Any]
    short: tuple[int, int]  # iterations at 1 and 5 shots
    published: tuple[str, str]
    test_steps: int | None = None
    training: tuple[int | None, int] = (None, 5)  # shots (None: as at test) and queries
    meta_batch: int = 8
    own_outer: bool = False
    keep: int = 1
    controls: tuple[str, ...] = ()


FAMILY = [
    Entry(
        "maml",
        {"lr": 0.1, "steps": 1},
        (4000, 2400),
        ("98.7 ± 0.4", "99.9 ± 0.1"),
        test_steps=3,
        controls=("zero_steps", "nil"),
    ),
    Entry(
        "reptile",
        {"lr": 1e-3, "steps": 5, "batch": 10},
        (2600, 2600),
        ("95.39, transductive 97.68", "98.90, transductive 99.48"),
        test_steps=50,
        training=(10, 1),
        meta_batch=5,
        own_outer=True,
    ),
    Entry("anil", {"lr": 0.1, "steps": 5}, (5400, 3600), ("none printed", "none printed"), controls=("nil",)),
    Entry("boil", {"lr": 0.1, "steps": 1}, (4000, 2400), ("none printed", "none printed")),
    Entry("metasgd", {"lr": 0.1, "steps": 1}, (3700, 2300), ("99.53", "99.93")),
    Entry(
        "mamlplusplus",
        {"lr": 0.1, "steps": 5},
        (1200, 560),
        ("99.47 (5 checkpoints averaged)", "99.93 (5 checkpoints averaged)"),
        keep=5,
    ),
    Entry("imaml", {"lr": 0.5, "steps": 8, "lam": 0.1}, (1000, 450), ("99.50 (Hessian-free)", "99.74 (Hessian-free)")),
    Entry("metacurvature", {"lr": 0.1, "steps": 1}, (3000, 1900), ("99.97 (MC2+)", "99.89 (MC2+)")),
    Entry("cavia", {"lr": 30.0, "steps": 2, "context": 100}, (3400, 2500), ("none printed", "none printed")),
    Entry("leo", {}, (2000, 1200), ("none printed", "none printed")),
]


# Why a learner stays behind MAML at the short budget, as it was measured: accuracies at 5-way, 600 test episodes,
# transductive, trained as the row is but with other iterations.
BEHIND = {
    "reptile": "it follows the support loss alone and needs many iterations; the budget has 2.6 % of the paper's "
    "100,000. Still rising: at 1-shot 74.8 % after half of the iterations, 76.9 % after all.",
    "mamlplusplus": "an iteration costs 2.3 times MAML's at 1-shot and 2.8 times at 5-shot (5 steps, a loss each), "
    "and validation on the way picks its 5 checkpoints, so it gets fewer. With its 1,200 iterations MAML comes to "
    "89.2 % at 1-shot.",
    "imaml": "an iteration costs 4.0 to 5.8 times MAML's, and its system is not solved: with batch norm the "
    "support loss has curvatures below -lam, see its page. A larger lam was slower still.",
    "cavia": "one context of 100 numbers through one small layer learns slower than all weights do. Still rising: "
    "at 1-shot 78.9 % after half of the iterations, 86.0 % after all.",
    "leo": "at 5-shot an iteration costs 1.95 times MAML's (every support example is compared with every other), "
    "so it gets half as many. Still rising: 95.4 % after half of the iterations, 96.6 % after all.",
    "boil": "only the body adapts, in one step, and at test it takes one step where MAML takes three.",
}


def short_rows() -> list[Row]:
    """Every learner under one budget: 5 minutes of training on 2 cores, or 10 minutes of one."""
    return [_short(entry, shots, i) for i, shots in enumerate((1, 5)) for entry in FAMILY]


def _short(entry: Entry, shots: int, i: int) -> Row:
    test = Test(5, shots, 15, steps=entry.test_steps, episodes=600, controls=entry.controls)
    tests = [test] + ([dataclasses.replace(test, ensemble=entry.keep)] if entry.keep > 1 else [])
    trained = "its own outer loop" if entry.own_outer else "Adam 1e-3, cosine"
    return Row(
        f"{entry.learner}-{shots}shot",
        entry.learner,
        (5, entry.training[0] or shots, entry.training[1]),
        entry.short[i],
        entry.meta_batch,
        tests,
        dict(entry.fields),
        schedule=None if entry.own_outer else "cosine",
        keep=entry.keep,
        movement=True,
        published=entry.published[i],
        differs=f"{entry.short[i]:,} iterations of {entry.meta_batch} tasks ({trained}); 15 queries at test",
    )


# The papers' own settings where they print them, and MAML's (60,000 iterations of 32 tasks, Adam 1e-3) where not.
LONG: dict[str, dict[str, Any]] = {
    "maml": {"fields": {"lr": 0.4, "steps": 1}, "queries": (1, 5)},
    "reptile": {
        "fields": {"lr": 1e-3, "steps": 5, "batch": 10},
        "iterations": 100_000,
        "meta_batch": 5,
        "network": {"downsample": "pool"},
    },
    "anil": {"fields": {"lr": 0.4, "steps": 1}},
    "boil": {"fields": {"lr": 0.5, "steps": 1}},
    "metasgd": {"fields": {"lr": 0.1, "steps": 1}},
    "mamlplusplus": {
        "fields": {"lr": 0.1, "steps": 5},
        "iterations": 50_000,
        "meta_batch": 16,
        "network": {"downsample": "pool"},
    },
    "imaml": {"fields": {"lr": 0.1, "steps": 16, "lam": 2.0, "cg_steps": 5}, "iterations": 20_000},
    "metacurvature": {"fields": {"lr": 0.4, "steps": 1}},
    "cavia": {"fields": {"lr": 1.0, "steps": 2, "context": 100}},
    "leo": {"fields": {}},
}


def long_rows() -> list[Row]:
    """Each paper's own training, three seeds: for a GPU or a patient machine."""
    return [_long(entry, shots, i, seed) for i, shots in enumerate((1, 5)) for entry in FAMILY for seed in range(3)]


def _long(entry: Entry, shots: int, i: int, seed: int) -> Row:
    told = LONG[entry.learner]
    short = _short(entry, shots, i)
    iterations, tasks = told.get("iterations", 60_000), told.get("meta_batch", 32)
    queries = told.get("queries", (15, 15))[i] if entry.training[0] is None else entry.training[1]
    return dataclasses.replace(
        short,
        name=f"{short.name}-seed{seed}",
        sizes=(5, short.sizes[1], queries),
        iterations=iterations,
        meta_batch=tasks,
        fields=dict(told["fields"]),
        network=dict(told.get("network", {})),
        schedule=None if entry.own_outer or entry.learner == "mamlplusplus" else "constant",
        seed=seed,
        differs="15 queries at test",
    )


# --- the regression learners on sinusoids ----------------------------------------------------------------------------

STEPS = (0, 1, 2, 3, 5, 10)


def sinusoid_rows() -> list[Row]:
    """Every learner of the family that can answer with numbers, at 5, 10 and 20 shots, tested at 0 to 10 steps."""
    return [_sinusoid(name, shots) for shots in (5, 10, 20) for name in SINUSOID_FIELDS]


# Iterations: as many as 30 seconds of processor time allow at 10 shots (25 tasks, vmap, one thread).
SINUSOID_FIELDS: dict[str, tuple[int, dict[str, Any]]] = {
    "maml": (5000, {"lr": 0.01, "steps": 1}),
    "reptile": (2000, {"lr": 0.01, "steps": 10, "batch": 0, "rule": "sgd"}),
    "anil": (5500, {"lr": 0.01, "steps": 1}),
    "boil": (5000, {"lr": 0.01, "steps": 1}),
    "metasgd": (4500, {"lr": 0.01, "steps": 1}),
    "mamlplusplus": (2000, {"lr": 0.001, "steps": 5, "derivative_order": 0.0}),
    "imaml": (800, {"lr": 0.005, "steps": 10, "lam": 10.0, "cg_steps": 10}),
    "metacurvature": (3500, {"lr": 0.01, "steps": 1}),
    "cavia": (5000, {"lr": 1.0, "steps": 1, "context": 4, "conditioning": "shift"}),
}


def _sinusoid(name: str, shots: int) -> Row:
    iterations, fields = SINUSOID_FIELDS[name]
    return Row(
        f"{name}-{shots}shot",
        name,
        (None, shots, 10),
        iterations,
        25,
        [Test(None, shots, 100, steps=k, episodes=600) for k in STEPS],
        dict(fields),
        schedule=None,
        published="no value printed" if name != "cavia" else "see its page",
        differs=f"{iterations:,} of 70,000 iterations",
    )


# --- the metric family on Omniglot -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A learner that takes as many classes at test as it is given: trained on 20 ways, tested on 5 and on 20.

    It has one training for each number of shots; or one at 5 shots for all tests, where `short` has one number (and
    always where it pretrains on all classes). Iterations are 15 minutes of processor time over what one costs.
    """

    learner: str
    short: tuple[int, ...]  # iterations at 1 and 5 shots, or at 5 shots alone
    published: dict[int, str] = field(default_factory=dict)  # by shots: 5-way / 20-way
    fields: dict[str, Any] = field(default_factory=dict)


METRIC = [
    Compared("protonet", (4000, 2400), {1: "98.8 / 96.0", 5: "99.7 / 98.9"}),
    Compared("matchingnet", (4000, 2400), {1: "98.1 / 93.8", 5: "98.9 / 98.5"}),
    Compared("r2d2", (4000, 2400)),
    Compared("relationnet", (1800, 1200), {1: "99.6 / 97.6", 5: "99.8 / 99.1"}),
    Compared("attentiveprotonet", (4000, 2400)),
    Compared("metaoptnet", (1500,)),
    Compared("baselinepp", (6000,)),
    Compared("simpleshot", (6000,)),
    Compared("cnaps", (1300,)),
    Compared("cnp", (1800,)),
    Compared("anp", (1800,)),
]


def metric_rows() -> list[Row]:
    return [_metric(one, shots) for one in METRIC for shots in ((1, 5) if len(one.short) > 1 else (None,))]


# ProtoNet's own training, also for learners whose papers have none on these characters: 60 ways, 5 queries, one task
# per iteration. RelationNet's (Sung 2018): 20 ways, 10 or 5 queries.
METRIC_LONG: dict[str, dict[str, Any]] = {
    "relationnet": {"sizes": {1: (20, 1, 10), 5: (20, 5, 5)}, "iterations": 1_000_000},
    "baselinepp": {"meta_batch": 2},
    "simpleshot": {"meta_batch": 2},
}


def metric_long_rows() -> list[Row]:
    """The papers' trainings, three seeds: for a GPU or a patient machine."""
    return [_metric_long(row, seed) for row in metric_rows() for seed in range(3)]


def _metric_long(row: Row, seed: int) -> Row:
    told, shots = METRIC_LONG.get(row.learner, {}), row.sizes[1]
    sizes = told.get("sizes", {}).get(shots, (60, shots, 5))
    iterations, tasks = told.get("iterations", 40_000), told.get("meta_batch", 1)
    return dataclasses.replace(
        row,
        name=f"{row.name}-seed{seed}",
        sizes=sizes,
        iterations=iterations,
        meta_batch=tasks,
        tests=[dataclasses.replace(test, episodes=1000) for test in row.tests],
        seed=seed,
        differs=f"{iterations:,} iterations of {tasks} ({sizes[0]}-way, {sizes[2]} queries); cosine schedule",
    )


def _metric(one: Compared, shots: int | None) -> Row:
    """`shots` None: one training at 5 shots for the tests at 1 and at 5."""
    tested = (1, 5) if shots is None else (shots,)
    iterations = one.short[0 if shots == 1 else -1]
    told = [f"{one.published[k]}" + (f" ({k}-shot)" if shots is None else "") for k in tested if k in one.published]
    return Row(
        one.learner if shots is None else f"{one.learner}-{shots}shot",
        one.learner,
        (20, shots or 5, 5),
        iterations,
        2,
        [Test(ways, k, queries, episodes=600) for k in tested for ways, queries in ((5, 15), (20, 5))],
        dict(one.fields),
        published="; ".join(told) or "no value at hand",
        differs=f"{iterations:,} iterations of 2 tasks (20-way {shots or 5}-shot, 5 queries)",
    )


# --- the memory family on Omniglot -----------------------------------------------------------------------------------

STREAM = Test(5, 1, 9, episodes=600)  # ten examples of each class; queries are the next ones of a stream
SEEN = (1, 2, 5, 10)  # instances of a class


@dataclass(frozen=True)
class Reader:
    """A learner that reads examples in order. What reads one-hot labels is trained for each number of ways."""

    learner: str
    sizes: tuple[int, int, int]  # ways, shots, queries in training
    iterations: int
    meta_batch: int
    published: str
    fields: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    clip: float | None = 1.0
    about: str = ""  # what was done differently, beside the sizes


MEMORY = [
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
    Reader("snail", (5, 5, 5), 1000, 8, "99.78", {"causal_filters": 64}, {"norm": "layer"}),
    Reader("snail", (20, 1, 2), 2400, 4, "97.64", {"causal_filters": 64}, {"norm": "layer"}),
    Reader("snail", (20, 5, 2), 1500, 2, "99.36", {"causal_filters": 64}, {"norm": "layer"}),
    Reader("lstmmetalearner", (5, 1, 5), 2600, 8, "none printed", {"lr": 0.1, "steps": 5}),
    Reader("lstmmetalearner", (5, 5, 5), 1300, 8, "none printed", {"lr": 0.1, "steps": 5}),
]


def memory_rows() -> list[Row]:
    return [_reading(one) for one in MEMORY]


def _reading(one: Reader) -> Row:
    ways, shots, queries = one.sizes
    stream = one.learner in ("mann", "metarnn")
    sizes = "streams of ten of each class" if stream else f"{queries} queries"
    settings = f"{one.iterations:,} iterations of {one.meta_batch} tasks, {sizes}"
    return Row(
        one.learner if stream else f"{one.learner}-{ways}way-{shots}shot",
        one.learner,
        one.sizes,
        one.iterations,
        one.meta_batch,
        [STREAM, Test(5, 5, 5, episodes=600)] if stream else [Test(ways, shots, 15 if ways == 5 else 5, episodes=600)],
        dict(one.fields),
        dict(one.network),
        published=one.published,
        differs="; ".join(text for text in (settings, one.about) if text),
        instances=SEEN if stream else (),
        clip=one.clip,
    )


# What the papers print: iterations, tasks in each, fields; RMSProp at 1e-4 is MANN's own outer loop.
MEMORY_LONG: dict[str, dict[str, Any]] = {
    "mann": {"iterations": 100_000, "meta_batch": 16, "fields": {}, "schedule": None, "clip": None},
    "metarnn": {"iterations": 100_000, "meta_batch": 16},
    "snail": {"iterations": 80_000, "meta_batch": 32, "fields": {}},
    "lstmmetalearner": {"iterations": 50_000, "meta_batch": 16},
}


def memory_long_rows() -> list[Row]:
    """Longer trainings with the papers' sizes, three seeds: for a GPU or a patient machine."""
    return [
        dataclasses.replace(row, name=f"{row.name}-seed{seed}", seed=seed, differs="", **MEMORY_LONG[row.learner])
        for row in memory_rows()
        for seed in range(3)
    ]


# --- CIFAR-FS --------------------------------------------------------------------------------------------------------

# At 1 and 5 shots, as printed by Bertinetto 2019 and, MetaOptNet, Lee 2019.
CIFAR_PUBLISHED = {
    "maml": ("58.9 ± 1.9", "71.5 ± 1.0"),
    "protonet": ("55.5 ± 0.7", "72.0 ± 0.6"),
    "relationnet": ("55.0", "69.3"),
    "r2d2": ("65.3 ± 0.2 (96-192-384-512 filters)", "79.4 ± 0.1 (96-192-384-512 filters)"),
    "metaoptnet": ("72.0 (ResNet-12)", "84.2 (ResNet-12)"),
}


@dataclass(frozen=True)
class Photographs:
    """A learner on CIFAR-FS: its training, and how many iterations at 1 and 5 shots."""

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


# 600 seconds of processor time over what an iteration takes.
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
# The papers' sizes; Adam 1e-3 with a cosine in place of each paper's own steps, and no augmentation.
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
    """Short: 10 minutes of one core each. Long: the papers' settings and three seeds.

    The second list is what the others are held against: ProtoNet's rows of the first seed, and class means of the raw
    images, which learn nothing.
    """
    seeds, told = (range(3), CIFAR_LONG) if long else ([None], CIFAR_SHORT)
    made = [_cifar(entry, shots, seed) for shots in (1, 5) for entry in told for seed in seeds]
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
