"""Saves and loads trees of arrays as Orbax folders, one thread at a time."""

import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from orbax.checkpoint import v1 as ocp

from guide_jax.storage.atomic import replace

# Orbax numbers the operations of a process, so two threads that save at once would
# write to each other's folders.
_orbax = threading.Lock()


def save(path: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Writes a tree of arrays, replacing any existing one, from this process alone.

    Args:
        path: absolute path of the folder.
        tree: a tree of NumPy or JAX arrays.
        about: JSON-able metadata, which `read_about` returns.
    """
    options = orbax.options.MultiprocessingOptions(**_this_process())
    handler = orbax.CompositeCheckpointHandler(
        state=orbax.PyTreeCheckpointHandler(multiprocessing_options=options),
        composite_options=orbax.CompositeOptions(multiprocessing_options=options),
    )
    tree = orbax.args.Composite(state=orbax.args.PyTreeSave(tree))
    # The v1 function writes the same format, but always waits for all processes.
    checkpointer = orbax.Checkpointer(handler, multiprocessing_options=options)
    with _orbax, checkpointer, _in_utf8(path.parent) as folder:
        made = folder / path.name.encode(errors="replace").decode()
        checkpointer.save(made, tree, force=True, custom_metadata=dict(about))
    if made.name != path.name:
        replace(path.with_name(made.name), path)


def load(path: Path, like: Any = None) -> Any:
    """Returns the tree in a folder, as NumPy arrays.

    A damaged folder makes Orbax raise any exception.

    Args:
        path: absolute path of the folder.
        like: a tree of arrays with the expected structure, shapes and dtypes; None to
            use the stored ones.
    """
    with _alone(), _in_utf8(path) as path:
        return ocp.load(path, None if like is None else jax.tree.map(_empty_like, like))


def read_about(path: Path) -> Any:
    """Returns a folder's metadata; Orbax raises any exception if it is damaged."""
    with _alone(), _in_utf8(path) as path:
        return ocp.metadata(path).custom_metadata


@contextmanager
def _in_utf8(folder: Path) -> Iterator[Path]:
    """Yields a folder's path, or a link to it if its name is not UTF-8.

    Linux allows any bytes, but Orbax stores arrays with TensorStore, which does not.
    """
    if str(folder) == str(folder).encode(errors="replace").decode():
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place, "link")
        link.symlink_to(folder)
        yield link


@contextmanager
def _alone() -> Iterator[None]:
    """Lets one thread at a time read, without waiting for other processes."""
    context = ocp.Context()
    for name, value in _this_process().items():
        setattr(context.multiprocessing, name, value)
    with _orbax, context:
        yield


def _this_process() -> dict[str, Any]:
    process = jax.process_index()
    return {"primary_host": process, "active_processes": {process}}


def _empty_like(array: jax.Array) -> np.ndarray:
    return np.empty(array.shape, array.dtype)
