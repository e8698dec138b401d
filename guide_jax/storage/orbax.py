"""Trees of arrays as Orbax folders: whole or not there, by one thread at a time."""

import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from orbax.checkpoint import v1 as ocp

# Orbax numbers a process's operations; two threads at once take each other's folders.
_orbax = threading.Lock()


def save(path: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Writes a tree of arrays, in this process alone, in place of what is there.

    Args:
        path: absolute.
        tree: of NumPy or JAX arrays.
        about: what `read_about` is to return, JSON-able.
    """
    options = orbax.options.MultiprocessingOptions(**_this_process())
    handler = orbax.CompositeCheckpointHandler(
        state=orbax.PyTreeCheckpointHandler(multiprocessing_options=options),
        composite_options=orbax.CompositeOptions(multiprocessing_options=options),
    )
    tree = orbax.args.Composite(state=orbax.args.PyTreeSave(tree))
    # The v1 function of the same format waits for all processes, whatever it is told.
    checkpointer = orbax.Checkpointer(handler, multiprocessing_options=options)
    with _orbax, checkpointer:
        checkpointer.save(path, tree, force=True, custom_metadata=dict(about))


def load(path: Path, like: Any = None) -> Any:
    """Returns a folder's tree, of NumPy arrays; a damaged folder raises anything.

    Args:
        path: absolute.
        like: a tree of arrays of the structure, shapes and dtypes that are wanted; None
            for those that are there.
    """
    with _alone():
        return ocp.load(path, None if like is None else jax.tree.map(_room, like))


def read_about(path: Path) -> Any:
    """Returns what `save` was given as `about`; a damaged folder raises anything."""
    with _alone():
        return ocp.metadata(path).custom_metadata


@contextmanager
def _alone() -> Iterator[None]:
    """Orbax without the other processes and threads, for reading."""
    context = ocp.Context()
    for name, value in _this_process().items():
        setattr(context.multiprocessing, name, value)
    with _orbax, context:
        yield


def _this_process() -> dict[str, Any]:
    process = jax.process_index()
    return {"primary_host": process, "active_processes": {process}}


def _room(array: jax.Array) -> np.ndarray:
    return np.empty(array.shape, array.dtype)


def put(part: Path, path: Path) -> None:
    """Renames a whole file or folder to `path`, where an older one may stand."""
    if not path.is_dir():
        os.replace(part, path)
        return
    old = replaced(part)
    remove(old)  # of a program that was killed here
    os.replace(path, old)
    os.replace(part, path)
    remove(old)


def replaced(part: Path) -> Path:
    """Returns where `put` keeps what it is about to replace."""
    return part.with_suffix(".old")


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
