"""The tables that can be reproduced, by name of the data and family of learners."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.reproduce import rows
from benchmarks.reproduce.rows import Row

# For each table the rows, and the baselines that they are compared with; True gives the long budget, where one exists.
TABLES: dict[tuple[str, str], Callable[[bool], tuple[Sequence[Row], Sequence[Row]]]] = {
    ("omniglot", "foundation"): lambda long: (rows.OMNIGLOT, rows.BASELINES),
    ("omniglot", "gradient"): lambda long: (rows.long_rows() if long else rows.short_rows(), []),
    ("omniglot", "metric"): lambda long: (rows.metric_long_rows() if long else rows.metric_rows(), []),
    ("omniglot", "memory"): lambda long: (rows.memory_long_rows() if long else rows.memory_rows(), []),
    ("sinusoid", "foundation"): lambda long: (rows.SINUSOID, []),
    ("sinusoid", "gradient"): lambda long: (rows.sinusoid_rows(), []),
    ("cifar_fs", "metric"): rows.cifar_rows,
}
