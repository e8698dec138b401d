"""Locks a run's folder, so that two runs never write to it at the same time.

The processes of one run share its folder: each locks a file of its own, whose name
tells run and process, and refuses the folder if a lock of another run is held there.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from absl import logging

from guide_jax.errors import InputError

LOCK = ".lock"
# What a file system without locks answers.
_WITHOUT_LOCKS = errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK
# In seconds: another process may hold a lock for a moment, to see whether it is held.
_MOMENT, _PAUSE = 1.0, 0.02


class Member(NamedTuple):
    """A process of a run that several processes share.

    Attributes:
        run: identifies the run; the same in all of its processes, for a file's name.
        process: index of the process.
    """

    run: str
    process: int


@contextmanager
def locked(folder: Path, member: Member | None = None) -> Iterator[None]:
    """Creates a folder if needed, and locks it while the block runs.

    The system releases the lock when the process ends, however it ends. A folder that
    is created here and stays empty is removed again.

    Args:
        folder: the folder.
        member: the other members of its run may use the folder at the same time. None:
            nobody may.

    Raises:
        InputError: another run, or the same member, holds a lock there; the folder
            cannot be written to, or has no locks although there are several members.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    path = _path(folder, member)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _take(path, needed=member is not None)
    except OSError as error:
        raise InputError(f"cannot write results to {folder} ({error})") from error
    try:
        _refuse_others(folder, member)
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


def is_running(folder: Path, member: Member) -> bool:
    """Returns whether a member of a run has locked the run's folder."""
    return _is_held(_path(folder, member))


def _path(folder: Path, member: Member | None) -> Path:
    return folder / (f"{LOCK}_{member.run}_{member.process}" if member else LOCK)


def _refuse_others(folder: Path, member: Member | None) -> None:
    """Raises InputError if another run uses the folder; removes its stale locks.

    Each run takes its own lock before it looks for others, so that of two runs that
    start at the same time at least one sees the other.
    """
    for path in sorted(folder.glob(f"{LOCK}*")):
        same_run = member and path.name.startswith(f"{LOCK}_{member.run}_")
        if same_run or path == _path(folder, member):
            continue
        if _is_held(path):
            hint = ""
            if member and path.name != LOCK:
                hint = (
                    " in a run with other settings, people, weights or versions; the"
                    " processes of a run differ in config.parallel.process only"
                )
            raise InputError(_in_use(folder, _holder(path), hint))
        _remove(path)


def _take(path: Path, needed: bool) -> IO[str]:
    """Returns the locked file; raises InputError if another process holds the lock.

    Args:
        path: the file.
        needed: whether a file system without locks is refused.
    """
    deadline = time.monotonic() + _MOMENT
    while True:
        file = path.open("a+", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() < deadline:
                time.sleep(_PAUSE)
                continue
            raise InputError(_in_use(path.parent, _holder(path))) from None
        except OSError as error:
            without = f"{path.parent}: no locks are possible there ({error.strerror})"
            if error.errno not in _WITHOUT_LOCKS:
                file.close()
                raise
            if needed:
                file.close()
                raise InputError(
                    f"{without}, but processes that share people need them; choose a"
                    " --workdir on another file system"
                ) from error
            logging.warning("%s; do not run two programs in it", without)
        # The last holder may have removed the file after it was opened here.
        if _is_at(file, path):
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                os.fsync(file.fileno())  # other hosts read it
            except OSError:
                _discard(file)
                raise
            return file
        file.close()


def _in_use(folder: Path, holder: str, hint: str = "") -> str:
    return (
        f"{folder} is in use by {holder}{hint}; wait until it ends, or choose another"
        " --workdir"
    )


def _holder(path: Path) -> str:
    """Returns what the holder of a lock has written about itself."""
    try:
        return path.read_text(errors="replace").strip() or "another program"
    except OSError:  # it has just ended
        return "another program"


def _is_held(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody has locked it, or there are no locks
        return False
    return False


def _remove(path: Path) -> None:
    """Removes the lock of a program that was killed, unless it is taken meanwhile."""
    with contextlib.suppress(OSError), path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):
            path.unlink()


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
