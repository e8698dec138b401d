"""Errors that the user sees as one line, without a traceback."""

import errno

import jax


class InputError(ValueError):
    """A user's mistake. The message says what is wrong, where, and what to do.

    `main.py` prints it without a traceback and exits with code 2.
    """


def is_about_a_file(error: Exception) -> bool:
    """Returns whether a reader's exception says that the file is missing or damaged.

    Otherwise memory, a device or the system failed, and the file may be sound.
    """
    if isinstance(error, OSError):  # most readers set no errno for damaged files
        known = None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL
        return error.errno in known
    return not isinstance(error, MemoryError | jax.errors.JaxRuntimeError)


class DoubtError(InputError):
    """A photo's reconstruction, or another photo, seems to show somebody else.

    `main.py` prints the message and exits with code 3.
    """


class UnlearningError(RuntimeError):
    """The run cannot continue; `main.py` prints the message and exits with code 1."""


class VerdictError(UnlearningError):
    """Attacks got a person back more easily than `config.attack.require` allows.

    All results are stored. `main.py` prints the message and exits with code 3.
    """
