"""The rows of the first tables: MAML and ProtoNet on Omniglot against baselines without meta-learning, and MAML on
sinusoids.
"""

from __future__ import annotations

from benchmarks.reproduce.rows.row import Row, Test

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
