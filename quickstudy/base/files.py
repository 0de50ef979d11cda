"""Reads and writes files: tensors and a JSON header in one safetensors file, checked by a hash, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from quickstudy.errors import FileFormatError, RunError

VERSION = 1  # the file format's version, increased when an older Quickstudy cannot read new files


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write `content` to `path`, or leave the file as it was: temporary file, flush, rename.

    Raises RunError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # temporary files are private, but results are not
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        kept = "The file that was there is untouched. " if path.is_file() else ""
        raise RunError(
            f"cannot write {str(path)!r}: {error.strerror or error}. {kept}Free some space or choose another folder."
        ) from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write plain values to a JSON file, as `write_atomically` does. Raises RunError where it cannot be written."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file. Raises FileFormatError where the file is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error}.") from error


def write_tensors(path: str | os.PathLike, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors, and a JSON header with a hash over both, to one safetensors file.

    `kind`: "trained", "predictor" or "checkpoint". Raises RunError where the file cannot be written.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    full = {"kind": kind, "version": VERSION, **header}
    # Only one entry: safetensors writes several in no fixed order, but equal runs should give equal files.
    metadata = {"quickstudy": json.dumps(full | {"sha256": _digest(full, plain)})}
    write_atomically(path, to_bytes(plain, metadata))


def read_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file that `write_tensors` wrote.

    Raises FileFormatError where the file is missing, damaged, of another kind or from a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"there is no file {str(path)!r}. Check the path.")
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies get torch's memory alignment, on which the last bit of a matrix product may depend.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"{str(path)!r} is not a Quickstudy file, or it is truncated or damaged ({error}). Copy or save it again."
        ) from error
    return tensors, _checked_header(path, kind, metadata, tensors)


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with its header's length in eight bytes, which can be any bytes, and a brace.
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"):
        raise FileFormatError(
            f"{str(path)!r} is a pickle (as torch.save writes), not a Quickstudy file. Quickstudy never unpickles, "
            "because a pickle can run any code. Save it with trained.save() or predictor.save()."
        )


def _checked_header(
    path: Path, kind: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    if "quickstudy" not in metadata:
        raise FileFormatError(f"{str(path)!r} is a safetensors file, but Quickstudy did not write it.")
    try:
        header = json.loads(metadata["quickstudy"])
    except ValueError as error:
        raise FileFormatError(f"the header of {str(path)!r} is damaged. Copy or save the file again.") from error
    if header.get("version", 0) > VERSION:
        raise FileFormatError(
            f"{str(path)!r} was written by a newer Quickstudy (file version {header['version']}, this one reads up to "
            f"{VERSION}). Upgrade with: pip install --upgrade quickstudy"
        )
    if header.pop("sha256", None) != _digest(header, tensors):
        raise FileFormatError(f"{str(path)!r} is damaged: its content does not match its checksum. Copy it again.")
    if header.get("kind") != kind:
        raise FileFormatError(f"{str(path)!r} holds a {header.get('kind')}, but a {kind} was expected.")
    return header


def kind_of(path: str | os.PathLike) -> str:
    """What the file holds, read from its header only: 'trained', 'predictor', 'checkpoint', or 'unknown'."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {}).get("quickstudy", "{}")).get("kind"))
    except (SafetensorError, OSError, ValueError):
        return "unknown"


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of named tensors: equal names and values give equal hashes."""
    return _digest({}, {name: value.cpu() for name, value in tensors.items()})


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# --- nested values ---------------------------------------------------------------------------------------------------


def pack(tree: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """A nested value as JSON values; its tensors are added to `tensors` under names that start with `prefix`."""
    if isinstance(tree, Tensor):
        name = f"{prefix}.{len(tensors)}"
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"dict": [[key, pack(value, tensors, prefix)] for key, value in tree.items()]}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {"named": type(tree).__name__, "items": [pack(value, tensors, prefix) for value in tree]}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [pack(value, tensors, prefix) for value in tree]}
    return {"value": tree}


def unpack(plain: Any, tensors: Mapping[str, Tensor], module: str = "") -> Any:
    """The value that `pack` converted. Named tuples are looked up in `module`, the learner's own module.

    Raises FileFormatError where the module has no such named tuple.
    """

    def again(item: Any) -> Any:
        return unpack(item, tensors, module)

    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "dict" in plain:
        return {key: again(value) for key, value in plain["dict"]}
    if "named" in plain:
        return _named_tuple(module, plain["named"])(*map(again, plain["items"]))
    if "list" in plain:
        return list(map(again, plain["list"]))
    return tuple(map(again, plain["tuple"])) if "tuple" in plain else plain["value"]


def _named_tuple(module: str, name: str) -> Callable[..., Any]:
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise FileFormatError(f"the file needs {name!r}, which this version of the learner does not have.")
    return found
