"""What can go wrong in a way that a person should read in one line."""


class InputError(ValueError):
    """A user's mistake: the text says what is wrong, with which file, and what to do.

    `main.py` prints it without a traceback and ends with exit code 2.
    """


class UnlearningError(RuntimeError):
    """A run that cannot go on; `main.py` prints it and ends with exit code 1."""
