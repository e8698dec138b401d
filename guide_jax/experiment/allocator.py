"""How this process asks for memory and gives it back."""

import ctypes
import os
from importlib.util import find_spec

import jax

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed for what is asked for next, if only a CPU computes.

    By itself it returns blocks as large as a step's temporaries to the system, and the
    kernel clears them anew in the next step: a fifth of the time on two cores. The
    price is that the process keeps the most memory that it ever needed, and a few
    seconds more of compiling, for threads wait for the one arena.

    To be called before JAX starts its threads. The user's own settings, in environment
    variables, stay.

    Returns:
        Whether it does so now.
    """
    own = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if not _only_cpu() or any(name.startswith(own) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    # Of several arenas only the first could grow without limit.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
    return all(mallopt(*setting) for setting in settings.items())


def _only_cpu() -> bool:
    platforms = jax.config.jax_platforms
    if platforms:
        return platforms == "cpu"
    return not (find_spec("jax_plugins") or find_spec("libtpu"))
