"""Several processes, on one machine or on many, that take each step together.

The first one decides, reads photos, measures and writes; the others wait for its
orders and take their part of every step.
"""

import itertools
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import multihost

from guide_jax.errors import InputError

Tree = Any
PATIENCE = 30 * 24 * 3600  # seconds; measuring a person may take the first one long
_numbers = itertools.count()  # a barrier's name serves once


def start(settings: ConfigDict) -> None:
    """Joins the processes that `config.parallel` names, before JAX does anything.

    Args:
        settings: coordinator ("" for a process of its own, "auto" where SLURM, a TPU
            pod or the like says who is who), processes, process.

    Raises:
        InputError: the settings can't be, or the others can't be reached.
    """
    if not settings.coordinator:
        return
    known = {}
    if settings.coordinator != "auto":
        if not 0 <= settings.process < settings.processes:
            raise InputError(
                f"config.parallel.process is {settings.process}; it counts from 0 and"
                f" must be below config.parallel.processes ({settings.processes})"
            )
        known = {
            "coordinator_address": settings.coordinator,
            "num_processes": settings.processes,
            "process_id": settings.process,
        }
    try:
        jax.distributed.initialize(**known)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"config.parallel.coordinator is {settings.coordinator!r}: the processes"
            f" can't join ({reason})"
        ) from error


def is_first() -> bool:
    """Says whether this process is the one that decides and writes."""
    return jax.process_index() == 0


def agree(tree: Tree) -> Tree:
    """Waits for all processes, then returns the first one's arrays.

    Args:
        tree: arrays, of the same shapes in all processes.
    """
    count = jax.process_count()
    if count == 1:
        return tree
    # Not by a collective, which has a limit of its own.
    name = f"guide_jax {next(_numbers)}"
    multihost.sync_global_processes(name, timeout=PATIENCE, processes=set(range(count)))
    return multihost_utils.broadcast_one_to_all(tree)
