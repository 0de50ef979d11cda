"""The learning curve of a run as TensorBoard's event files: `tensorboard --logdir runs` shows runs side by side.

The files say what metrics.jsonl says, no more and no less. A run that goes on writes them anew from the lines that were
kept, so no step is there twice, and one that is continued with TensorBoard for the first time has its whole curve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quickstudy.checkpoint import read_metrics
from quickstudy.errors import ConfigError

TAGS = {"loss": "train/loss", "accuracy": "train/accuracy", "error": "train/error", "val": "val/score"}
FLUSH = 10  # seconds after which what is written can be seen


def check_tensorboard(folder: Path | None) -> None:
    """Raises ConfigError without a run folder, and without the package."""
    if folder is None:
        raise ConfigError("tensorboard=True writes into the run folder: pass out=...")
    _writer()


@contextmanager
def events(folder: Path | None, seconds: float) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Call it with each line of metrics.jsonl; without a folder it does nothing.

    `seconds` of training are done: a line's time is that of the training, without the breaks.
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
