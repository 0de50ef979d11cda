"""Measures the peak memory of a contestant: a few meta-gradients in a fresh process of its own.

    python -m benchmarks.speed.memory CASE LIBRARY WAY [--device cuda]        prints JSON; benchmarks.speed starts it

Before the first meta-gradient, the process has imported what the way needs and built the problem. The peak until then
is the baseline of "above import". On a GPU, memory is what torch allocated there.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import ROOT
from benchmarks.speed import cases, peers, work

GRADIENTS = 3
LIMIT = 150.0  # seconds for a process: a way that compiles longer does not race


@dataclass(frozen=True)
class Memory:
    """Peak memory of a process in MB (2**20 bytes), and how long its gradients took."""

    peak_mb: float
    above_mb: float  # the peak minus the peak before the first gradient
    warm_up_s: float  # time of the first gradient, including compilation where the way compiles
    seconds: float  # time of the fastest later gradient


@functools.cache
def alone(case: str, contestant: str, way: str, device: str = "cpu") -> Memory:
    """Measure in a process of its own; repeated calls reuse the result.

    Raises RuntimeError where the process fails (with the last line of its errors) or takes longer than LIMIT.
    """
    command = [sys.executable, "-m", "benchmarks.speed.memory", case, contestant, way, "--device", device]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not ready after {LIMIT:g} s") from error
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return Memory(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure(case: str, contestant: str, way: str, device: str) -> Memory:
    problem = cases.find(case).problem(torch.float32, device)
    compute = peers.ways(contestant, problem)[way](problem)
    if way != "compile":  # one tiny gradient triggers the imports that happen on first use
        peers.ways(contestant, problem)[way](cases.SMALLEST[0].problem(torch.float32, device))()
    before = peak_mb(device)
    warm_up = work.seconds(compute)
    taken = min(work.seconds(compute) for _ in range(GRADIENTS - 1))
    peak = peak_mb(device)
    return Memory(peak, peak - before, warm_up, taken)


def peak_mb(device: str) -> float:
    """The peak of this process so far in MB: resident memory, or on a GPU what torch allocated."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    try:  # on Linux a process inherits ru_maxrss from the one that started it; VmHWM is its own peak
        return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 2**10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# --- many inner steps against few ------------------------------------------------------------------------------------

STEPPING = tuple(("quickstudy adjoints", adjoint) for adjoint in ("unroll", "remat", "mixed"))
STEPPING += tuple(("quickstudy adjoints, replayed", adjoint) for adjoint in ("unroll", "remat"))
STEPPING += (("higher", "patched once"), ("torchopt", "MetaSGD"), ("learn2learn", "clones"))


def inner_steps(few: cases.Case, many: cases.Case, ways: Sequence[tuple[str, str]], device: str) -> dict[str, Any]:
    """The memory at few and at many inner steps of one task, for each adjoint of Quickstudy and for the peers."""
    reference = peers.quickstudy(many.problem(torch.float64, device), "loop")()
    found = [key for key in ways if not peers.missing(key[0])]
    rows = [_row(few, many, reference, contestant, way, device) for contestant, way in found]
    return {"description": many.description, "steps": [few.steps, many.steps], "rows": rows}


def _row(
    few: cases.Case, many: cases.Case, reference: peers.Result, contestant: str, way: str, device: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": contestant, "way": way}
    try:
        double = many.problem(torch.float64, device)
        row["error"] = relative_error(peers.ways(contestant, double)[way](double)(), reference)
        row["few"], row["many"] = (asdict(alone(case.name, contestant, way, device)) for case in (few, many))
    except Exception as error:  # any error of a way is its result, and the other ways continue
        row["problem"] = problem_of(error)
    return row


def relative_error(result: peers.Result, reference: peers.Result) -> float:
    """The larger of two relative errors: that of the loss and that of the whole gradient."""
    flat = ((loss, torch.cat([g.flatten() for g in gradient])) for loss, gradient in (result, reference))
    return max(float((one - true).norm() / true.norm()) for one, true in zip(*flat, strict=True))


def problem_of(error: Exception) -> str:
    """The first line of the error message, without the folders of this machine."""
    text = str(error).strip() or type(error).__name__
    return first_line(text if isinstance(error, RuntimeError) else f"{type(error).__name__}: {text}")


def first_line(text: str) -> str:
    """The first line, at most 300 characters of it, without the folders of this machine."""
    return re.sub(r"\S*/", "", text.splitlines()[0])[:300]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("case", "contestant", "way"):
        parser.add_argument(name)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of the peers
        print(json.dumps(asdict(measure(args.case, args.contestant, args.way, args.device))))


if __name__ == "__main__":
    main()
