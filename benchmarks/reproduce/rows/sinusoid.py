"""The rows of the gradient family on sinusoids."""

from __future__ import annotations

from typing import Any

from benchmarks.reproduce.rows.row import Row, Test

STEPS = (0, 1, 2, 3, 5, 10)


def sinusoid_rows() -> list[Row]:
    """Every learner of the family that supports regression, at 5, 10 and 20 shots, tested at 0 to 10 inner steps."""
    return [_sinusoid(name, shots) for shots in (5, 10, 20) for name in SINUSOID_FIELDS]


# Iterations are as many as fit into 30 seconds of processor time at 10 shots (25 tasks, vmap, one thread).
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
