"""Builds learn2learn 0.2.0 from its source archive, in a virtual environment of its own.

The archive holds C files from an old Cython, which need a header that Python 3.11 no longer has (longintrepr.h), and
its Cython sources need a Cython below 3. The build therefore makes a virtual environment with that Cython, downloads
the archive from the package index, generates the C files again, builds a wheel, and unpacks it without dependencies.
learn2learn's MAML and MetaSGD need only torch, but the package's `__init__` imports gym, torchvision and more, so these
two modules are imported without it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import types
from pathlib import Path

VERSION = "0.2.0"
NEEDED = ("cython<3", "setuptools<81", "wheel")
PACKAGES = ("learn2learn", "learn2learn.algorithms")  # packages whose __init__ would import needless dependencies
LIMIT = 600.0  # seconds for one step of the build


def folder() -> Path:
    """The folder of the built package: in the user's cache, by version of learn2learn and of Python."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "quickstudy", f"learn2learn-{VERSION}-{sysconfig.get_config_var('SOABI') or 'python'}")


def build() -> str:
    """Build the package unless it exists; returns a sentence about the result.

    A failed build raises nothing, because the benchmark then leaves this peer out.
    """
    if folder().exists():
        return f"learn2learn {VERSION}: built before, in the user's cache."
    try:
        folder().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder().parent) as place:  # so that the last step is a rename
            _build(Path(place))
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        output = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"learn2learn {VERSION} could not be built and is left out: {output[-1] if output else error}"
    return f"learn2learn {VERSION}: built from its source archive, its C files written again by Cython below 3."


def _build(place: Path) -> None:
    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, timeout=LIMIT)

    run(sys.executable, "-m", "venv", "env")
    binaries = place / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = (binaries / "python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", *NEEDED)
    apart = ("--no-deps", "--no-build-isolation")
    run(*pip, "download", f"learn2learn=={VERSION}", *apart, "--no-binary", ":all:")
    with tarfile.open(place / f"learn2learn-{VERSION}.tar.gz") as archive:
        archive.extractall(place, filter="data")
    source = place / f"learn2learn-{VERSION}"
    run(binaries / "cython", "-3", *sorted((source / "learn2learn" / "data").glob("*.pyx")))
    run(*pip, "wheel", source, *apart, "--wheel-dir", "wheels")
    run(*pip, "install", "--no-deps", "--target", "unpacked", *(place / "wheels").glob("*.whl"))
    (place / "unpacked").rename(folder())


def learn2learn(module: str) -> types.ModuleType:
    """A module of the package, such as "algorithms.maml". Raises ModuleNotFoundError where the package is not built."""
    if not folder().exists():
        raise ModuleNotFoundError("learn2learn was not built")
    for name in PACKAGES:
        if name not in sys.modules:
            package = sys.modules[name] = types.ModuleType(name)
            package.__path__ = [str(folder() / name.replace(".", "/"))]
    return importlib.import_module(f"learn2learn.{module}")
