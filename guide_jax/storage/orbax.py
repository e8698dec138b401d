"""Saves and loads trees of arrays as Orbax folders, one thread at a time."""

import errno
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from absl import logging
from orbax.checkpoint import type_handlers
from orbax.checkpoint import v1 as ocp

from guide_jax.storage.atomic import remove, replace

# Orbax keeps what it writes in memory until a data file has this many bytes.
FILE_SIZE = 2**24

# Orbax numbers the operations of a process, so two threads that save at once would
# write to each other's folders.
_orbax = threading.Lock()
# Where Orbax writes a folder before it renames it.
_TEMPORARY = "orbax-checkpoint-tmp"
ENDING = 0.5  # seconds in which the other writes end after one has failed


def save(path: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Writes a tree of arrays, replacing any existing one, from this process alone.

    Args:
        path: absolute path of the folder.
        tree: a tree of NumPy or JAX arrays. NumPy arrays may be views of files.
        about: JSON-able metadata, which `read_about` returns.

    Raises:
        OSError: the folder cannot be written, for example because the disk is full. An
            existing one is unchanged.
    """
    options = orbax.options.MultiprocessingOptions(**_this_process())
    handler = orbax.CompositeCheckpointHandler(
        state=orbax.PyTreeCheckpointHandler(
            multiprocessing_options=options, type_handler_registry=_types()
        ),
        composite_options=orbax.CompositeOptions(multiprocessing_options=options),
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    tree = orbax.args.PyTreeSave(tree, ocdbt_target_data_file_size=FILE_SIZE)
    tree = orbax.args.Composite(state=tree)
    # The v1 function writes the same format, but always waits for all processes.
    checkpointer = orbax.Checkpointer(handler, multiprocessing_options=options)
    with _orbax, checkpointer, _in_utf8(path.parent) as folder:
        made = folder / path.name.encode(errors="replace").decode()
        _clean_up(made)  # left by a program that was killed
        _check_space(folder, size)
        try:
            with _quiet():
                checkpointer.save(made, tree, force=True, custom_metadata=dict(about))
        except BaseException as error:
            _clean_up(made)
            if code := _system_code(error):
                raise OSError(code, os.strerror(code), str(path)) from error
            raise
    if made.name != path.name:
        replace(path.with_name(made.name), path)


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
    with _alone(), _in_utf8(path) as path:
        return ocp.load(path, None if like is None else jax.tree.map(_empty_like, like))


def read_about(path: Path) -> Any:
    """Returns a folder's metadata; Orbax raises any exception if it is damaged."""
    with _alone(), _in_utf8(path) as path:
        return ocp.metadata(path).custom_metadata


def _check_space(folder: Path, size: int) -> None:
    """Raises OSError if a disk lacks `size` bytes, before Orbax's threads find out."""
    if folder.exists() and shutil.disk_usage(folder).free < size:
        code = errno.ENOSPC
        raise OSError(code, os.strerror(code), str(folder))


def _clean_up(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}.{_TEMPORARY}*"):
        remove(part)


def _system_code(error: BaseException) -> int | None:
    """Returns the errno behind an exception of Orbax, or None."""
    if isinstance(error, OSError):
        return error.errno
    # TensorStore raises ValueError with the code in its message.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's threads from printing tracebacks of errors that `save` raises."""
    logger, hook = logging.get_absl_logger(), sys.unraisablehook
    before, logger.disabled = logger.disabled, True
    sys.unraisablehook = lambda _: None
    try:
        yield
    except BaseException:
        time.sleep(ENDING)
        raise
    finally:
        logger.disabled, sys.unraisablehook = before, hook


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
