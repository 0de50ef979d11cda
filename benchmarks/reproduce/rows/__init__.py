"""The rows of `benchmarks.reproduce`: one per training, with its test protocol and the published number."""

from benchmarks.reproduce.rows.cifar import cifar_rows
from benchmarks.reproduce.rows.foundation import BASELINES, OMNIGLOT, SINUSOID
from benchmarks.reproduce.rows.gradient import BEHIND, FAMILY, Entry, long_rows, short_rows
from benchmarks.reproduce.rows.memory import memory_long_rows, memory_rows
from benchmarks.reproduce.rows.metric import METRIC_BEHIND, PUBLISHED_UNDER, metric_long_rows, metric_rows
from benchmarks.reproduce.rows.row import Row, Test
from benchmarks.reproduce.rows.sinusoid import SINUSOID_FIELDS, STEPS, sinusoid_rows

__all__ = [
    "BASELINES",
    "BEHIND",
    "FAMILY",
    "METRIC_BEHIND",
    "OMNIGLOT",
    "PUBLISHED_UNDER",
    "SINUSOID",
    "SINUSOID_FIELDS",
    "STEPS",
    "Entry",
    "Row",
    "Test",
    "cifar_rows",
    "long_rows",
    "memory_long_rows",
    "memory_rows",
    "metric_long_rows",
    "metric_rows",
    "short_rows",
    "sinusoid_rows",
]
