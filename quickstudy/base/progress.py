"""Progress bars on the terminal: rate, loss, accuracy, time left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Update = Callable[[Any, dict[str, Any], float], None]


@contextmanager
def training_bar(iterations: int | None, done: float, engine: str, shown: bool) -> Iterator[Update]:
    """A progress bar over the outer loop; call it with each step, its metrics line (empty for most steps) and the
    share of the training that is done.

    `iterations` None: their number is not known before. `done`: the share done before, by a resumed run. `shown` False:
    nothing is printed.
    """
    if not shown:
        yield lambda step, line, share: None
        return
    console = Console(stderr=True)
    console.print(f"engine: {engine}", highlight=False, style="dim")
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task("", total=1.0, completed=done, text="", rate="", count="")  # type: ignore[arg-type]
        most, steps, began = f"/{iterations}" if iterations else "", itertools.count(1), time.monotonic()

        def update(step: Any, line: dict[str, Any], share: float) -> None:
            rate = next(steps) / max(time.monotonic() - began, 1e-9)
            progress.update(task, completed=share, count=f"{step.iteration}{most}")
            if line:
                progress.update(task, text=_in_words(line), rate=f"{rate:.1f}/s")

        yield update


def _in_words(line: dict[str, Any]) -> str:
    words = [f"loss {line['loss']:.3f}"]
    if "accuracy" in line:
        words.append(f"accuracy {100 * line['accuracy']:.0f} %")
    if "error" in line:
        words.append(f"error {line['error']:.3f}")
    if "score" in line:
        words.append(f"score {line['score']:.3g}")
    if "val" in line:
        words.append(f"val {100 * line['val']:.1f} %" if "accuracy" in line else f"val {line['val']:.3f}")
    return "  ".join(words)


@contextmanager
def counting_bar(what: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar over `total` things; call it with the number done since the last call."""
    if not shown:
        yield lambda n: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda n: progress.advance(task, n)


@contextmanager
def settings_bar() -> Iterator[Callable[[Any], None]]:
    """A status line that names the setting measured last; call it with each setting."""
    with Console(stderr=True).status("measuring") as status:
        yield lambda setting: status.update(f"measured {setting.options()}")
