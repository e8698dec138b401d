"""What a person did wrong, in one line."""


class InputError(ValueError):
    """A user's mistake: the text says what is wrong, with which file, and what to do.

    `main.py` prints it without a traceback and ends with exit code 2.
    """
