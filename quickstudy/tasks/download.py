"""Public data sets: finds their folder, and downloads files from official servers with an md5 check."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import wrap_file

from quickstudy.errors import DataError

TIMEOUT = 30  # seconds without an answer from the server


def data_folder(root: str | Path | None, what: str) -> Path:
    """The data folder as an absolute path: `root`, by default QUICKSTUDY_DATA, else "data".

    Raises DataError where it is a file; `what` names the data in that error.
    """
    folder = Path(root if root is not None else os.environ.get("QUICKSTUDY_DATA") or "data").expanduser().absolute()
    if folder.is_file():
        raise DataError(f"root is the folder that holds {what}, but {folder} is a file. Give {folder.parent}.")
    return folder


def fetch(url: str, md5: str, path: Path) -> None:
    """Download `url` to the file `path`, which appears only when it is complete. Raises DataError where that fails."""
    try:
        _fetch(url, md5, path)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{path.name} could not be fetched: {error}") from error


def _fetch(url: str, md5: str, path: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        contextlib.closing(urllib.request.urlopen(url, timeout=TIMEOUT)) as answer,
        replacing(path) as file,
        wrap_file(answer, answer.length or 0, description=path.name, console=console(), transient=True) as body,
    ):
        while block := body.read(1 << 16):
            digest.update(block)
            file.write(block)
        if (arrived := digest.hexdigest()) != md5:
            raise DataError(f"{url} came with md5 {arrived} instead of {md5}: damaged on the way, or not the original")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing. It gets the name `path` only if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def console() -> Console:
    return Console(stderr=True)  # standard output belongs to results
