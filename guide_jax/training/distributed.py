"""Several processes, on one machine or on many, that take each step together.

The first one decides, reads photos, measures and writes; the others wait for its
orders and take their part of every step.
"""

import itertools
import socket
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import multihost

from guide_jax.errors import InputError

Tree = Any
# Seconds: measuring a person may take the first one long; a process that ended is
# missed after the second; the others may start so much sooner than the first.
PATIENCE, HEARTBEAT, FIRST_CONTACT = 30 * 24 * 3600, 30, 300
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
        if settings.process:
            _wait_for(settings.coordinator)
        else:
            _address(settings.coordinator)
        known = {
            "coordinator_address": settings.coordinator,
            "num_processes": settings.processes,
            "process_id": settings.process,
        }
    try:
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"config.parallel.coordinator is {settings.coordinator!r}: the processes"
            f" can't join ({reason})"
        ) from error


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(
            f"config.parallel.coordinator is {coordinator!r}; HOST:PORT of the first"
            " process is needed, or 'auto'"
        )
    return host, int(port)


def _wait_for(coordinator: str) -> None:
    """Waits until the first process listens, for JAX ends the program if it doesn't."""
    address, deadline = _address(coordinator), time.monotonic() + FIRST_CONTACT
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"config.parallel.coordinator is {coordinator!r}: nobody answers"
                    f" there ({error}); is the process 0 running?"
                ) from error
            time.sleep(0.2)


def together() -> bool:
    """Says whether other processes take part."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Says whether this process is the one that decides and writes."""
    return jax.process_index() == 0


def agree(tree: Tree) -> Tree:
    """Waits for all processes, then returns the first one's arrays.

    Args:
        tree: arrays, of the same shapes in all processes.
    """
    if not together():
        return tree
    _meet()
    return multihost_utils.broadcast_one_to_all(tree)


def check_same(digest: str) -> None:
    """Raises InputError, in all processes, unless they have the same digest.

    Args:
        digest: hexadecimal, of what has to be the same.
    """
    if together():
        _meet()
        mine = np.frombuffer(bytes.fromhex(digest), np.uint8)
        if np.ptp(multihost_utils.process_allgather(mine), axis=0).any():
            raise InputError(
                "the processes have other settings or other networks; run the same"
                " command on the same weights everywhere, but for"
                " config.parallel.process"
            )


def _meet() -> None:
    # Not by a collective, which has a limit of its own.
    name, everyone = f"guide_jax {next(_numbers)}", set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=PATIENCE, processes=everyone)
