"""Errors that the user sees as one line, without a traceback."""

import errno
import os

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


def in_one_line(error: BaseException) -> str:
    """Returns an exception's message in one line, at most 300 characters of it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that memory is used up, here or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
