"""Writes files and folders completely or not at all: a temporary path is renamed."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def writing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path, which becomes `path` if the block ends without an error.

    Args:
        path: a file or folder, which is replaced if it exists.
        shared: whether other programs may write `path` at the same time.
    """
    if shared:
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    else:
        part = part_of(path)
    try:
        yield part
        replace(part, path)
    except BaseException:
        remove(part)
        raise


def part_of(path: Path) -> Path:
    """Returns the temporary path of a file or folder that one program writes."""
    return path.with_name(f"{path.name}.part")


def backup_of(part: Path) -> Path:
    """Returns the path where `replace` keeps the folder that it is replacing."""
    return part.with_suffix(".old")


def replace(part: Path, path: Path) -> None:
    """Renames a complete file or folder to `path`, replacing any existing one."""
    if not path.is_dir():
        os.replace(part, path)
        return
    old = backup_of(part)
    remove(old)  # left by a program that was killed here
    os.replace(path, old)
    os.replace(part, path)
    remove(old)


def remove(path: Path) -> None:
    """Removes a file or folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Creates a folder if needed; raises OSError if it is not writable."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink(missing_ok=True)  # another program may check at the same time


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8."""
    with writing(path) as part:
        # File names may contain bytes that are not UTF-8.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file; raises ValueError if a number is not finite."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], *, shared: bool = False
) -> None:
    """Writes an `.npz` file; `shared` has the same meaning as for `writing`."""
    with writing(path, shared=shared) as part, part.open("wb") as file:
        savez: Any = np.savez  # its stub mistakes keywords for `allow_pickle`
        savez(file, **arrays)
