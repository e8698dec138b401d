"""Locks a run's folder, so that two programs never write to it at the same time."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from absl import logging

from guide_jax.errors import InputError

LOCK = ".lock"
# What a file system without locks answers.
_WITHOUT_LOCKS = errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates a folder if needed, and locks it while the block runs.

    The system releases the lock when the process ends, however it ends. A folder that
    is created here and stays empty is removed again.

    Raises:
        InputError: another program holds the lock, or the folder cannot be written to.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _take(path)
    except OSError as error:
        raise InputError(f"cannot write results to {folder} ({error})") from error
    try:
        yield
    finally:
        # The run's own error, if there is one, says more than one about the lock.
        with contextlib.suppress(OSError):
            if _is_at(file, path):  # before it is released, see `_take`
                path.unlink()
        file.close()
        with contextlib.suppress(OSError):
            for each in created:
                each.rmdir()


def _take(path: Path) -> IO[str]:
    """Returns the locked file; raises InputError if another program holds the lock."""
    while True:
        file = path.open("a+", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip() or "another program"
            raise InputError(
                f"{path.parent} is in use by {holder}; wait until it ends, or choose"
                " another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                file.close()
                raise
            logging.warning(
                "%s: no locks are possible there (%s); do not run two programs in it",
                path.parent,
                error.strerror,
            )
        # The last holder may have removed the file after it was opened here.
        if _is_at(file, path):
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            except OSError:
                _discard(file)
                raise
            return file
        file.close()


def _discard(file: IO[str]) -> None:
    """Closes a file that cannot be written to, whose buffer is not empty."""
    with contextlib.suppress(OSError):
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    """Returns whether a path still is the opened file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
