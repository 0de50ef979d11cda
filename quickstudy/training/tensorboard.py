"""Writes a run's learning curve as TensorBoard event files: `tensorboard --logdir runs` shows runs side by side.

The files hold exactly the loss, score and validation numbers of metrics.jsonl. A resumed run rewrites them from the
lines that were kept. So no step appears twice, and a run resumed with TensorBoard for the first time has its whole
curve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quickstudy.errors import ConfigError
from quickstudy.training.checkpoint import read_metrics

TAGS = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "error": "train/error",
    "score": "train/score",
    "val": "val/score",
}
FLUSH = 10  # seconds between flushes, after which TensorBoard can show the numbers


def check_tensorboard(folder: Path | None) -> None:
    """Raises ConfigError where there is no run folder or the tensorboard package is missing."""
    if folder is None:
        raise ConfigError("tensorboard=True writes into the run folder: pass out=...")
    _writer()


@contextmanager
def events(folder: Path | None, seconds: float) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A writer of event files: call it with each line of metrics.jsonl. Without a folder it does nothing.

    `seconds`: the training time so far. Times in the event files count training only, not the breaks between runs.
    """
    if folder is None:
        yield lambda line: None
        return
    began = time.time() - seconds
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with _writer()(folder, flush_secs=FLUSH) as writer:

        def write(line: dict[str, Any]) -> None:
            for name, tag in TAGS.items():
                if name in line:
                    writer.add_scalar(tag, line[name], line["iteration"], began + line["seconds"])

        for line in read_metrics(folder):
            write(line)
        yield write


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"TensorBoard's event files need its package ({error}): pip install 'quickstudy[tensorboard]', or leave "
            "tensorboard out; metrics.jsonl holds the same numbers."
        ) from error
    return SummaryWriter
