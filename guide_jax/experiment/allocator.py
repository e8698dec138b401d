"""Settings of the C library's memory allocator for this process."""

import ctypes
import os
from importlib.util import find_spec
from typing import Any

import jax

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """On CPU-only runs, stops glibc from returning freed memory to the system.

    By default, glibc returns blocks as large as a step's temporaries to the system, and
    the kernel zeroes them again in the next step, which costs a fifth of the time on
    two cores. The price of keeping them is that the process holds its peak memory until
    it ends, and that compiling takes a few seconds longer because threads wait for the
    single arena.

    Call this before JAX starts its threads. If environment variables already configure
    malloc, nothing is changed.

    Returns:
        Whether freed memory is now kept.
    """
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if not _only_cpu() or any(name.startswith(prefixes) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    # One arena, because only the first can grow without limit.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
    return all(mallopt(*setting) for setting in settings.items())


def _only_cpu() -> bool:
    config: Any = jax.config
    platforms = config.jax_platforms
    if platforms:
        return platforms == "cpu"
    return not (find_spec("jax_plugins") or find_spec("libtpu"))
