"""Saves and loads trees of arrays as Orbax folders, one thread at a time."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from orbax.checkpoint import type_handlers
from orbax.checkpoint import v1 as ocp

# Orbax keeps what it writes in memory until a data file has this many bytes.
FILE_SIZE = 2**24

# Orbax numbers the operations of a process, so two threads that save at once would
# write to each other's folders.
_orbax = threading.Lock()


def save(path: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Writes a tree of arrays, replacing any existing one, from this process alone.

    Args:
        path: absolute path of the folder.
        tree: a tree of NumPy or JAX arrays. NumPy arrays may be views of files.
        about: JSON-able metadata, which `read_about` returns.
    """
    options = orbax.options.MultiprocessingOptions(**_this_process())
    handler = orbax.CompositeCheckpointHandler(
        state=orbax.PyTreeCheckpointHandler(
            multiprocessing_options=options, type_handler_registry=_types()
        ),
        composite_options=orbax.CompositeOptions(multiprocessing_options=options),
    )
    tree = orbax.args.PyTreeSave(tree, ocdbt_target_data_file_size=FILE_SIZE)
    tree = orbax.args.Composite(state=tree)
    # The v1 function writes the same format, but always waits for all processes.
    checkpointer = orbax.Checkpointer(handler, multiprocessing_options=options)
    with _orbax, checkpointer:
        checkpointer.save(path, tree, force=True, custom_metadata=dict(about))


def _types() -> Any:
    """Returns Orbax's handlers; NumPy arrays aren't copied before they are written."""
    numpy = type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    return type_handlers.create_type_handler_registry(
        (np.ndarray, numpy), (jax.Array, type_handlers.ArrayHandler())
    )


def load(path: Path, like: Any = None) -> Any:
    """Returns the tree in a folder, as NumPy arrays.

    A damaged folder makes Orbax raise any exception.

    Args:
        path: absolute path of the folder.
        like: a tree of arrays with the expected structure, shapes and dtypes; None to
            use the stored ones.
    """
    with _alone():
        return ocp.load(path, None if like is None else jax.tree.map(_empty_like, like))


def read_about(path: Path) -> Any:
    """Returns a folder's metadata; Orbax raises any exception if it is damaged."""
    with _alone():
        return ocp.metadata(path).custom_metadata


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
