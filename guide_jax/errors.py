"""Errors that the user sees as one line, without a traceback."""


class InputError(ValueError):
    """A user's mistake. The message says what is wrong, where, and what to do.

    `main.py` prints it without a traceback and exits with code 2.
    """


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
