"""Connects several processes, on one machine or many, and shares each step among them.

Process 0 decides, reads photos, measures and writes. The rest wait for its instructions
and take part in every step. Processes that share people instead (see
`experiment/shares.py`) only learn here which of them they are.
"""

import dataclasses
import itertools
import os
import socket
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from guide_jax.config_types import Parallel
from guide_jax.errors import InputError

Tree = Any
# In seconds: how long the rest wait while process 0 measures a person, how soon the end
# of a process is noticed, and how long a process waits for process 0 to start.
BARRIER_TIMEOUT, HEARTBEAT_TIMEOUT, CONNECT_TIMEOUT = 30 * 24 * 3600, 30, 300
_barriers = itertools.count()  # a barrier's name can be used only once
# What srun tells each task, unlike the batch script around it, and GKE each TPU host:
# index, and number or names of all.
SLURM = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"
GKE = "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"


def start(settings: Parallel) -> Parallel:
    """Connects the processes of `config.parallel`; call this before using JAX.

    Processes that share people are not connected.

    Args:
        settings: valid ones (see `config_checks.check_parallel`). `coordinator` is ""
            for a single process, HOST:PORT of process 0, or "auto" where the cluster
            (SLURM, a TPU pod) assigns the processes.

    Returns:
        The settings with the numbers that the cluster assigned.

    Raises:
        InputError: process 0 cannot be reached, or the cluster assigns no numbers.
    """
    automatic = settings.coordinator == "auto"
    if settings.over == "people":
        return _assigned(settings) if automatic else settings
    if not settings.coordinator:
        return settings
    known: dict[str, Any] = {}
    if not automatic:
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
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"config.parallel.coordinator is {settings.coordinator!r}: the processes"
            f" cannot connect ({reason})"
        ) from error
    return dataclasses.replace(
        settings, process=jax.process_index(), processes=jax.process_count()
    )


def _assigned(settings: Parallel) -> Parallel:
    """Returns settings with the numbers that the environment names."""
    found = os.environ
    if all(name in found for name in SLURM):
        process, processes = (int(found[name]) for name in SLURM)
    elif all(name in found for name in GKE):
        process, processes = int(found[GKE[0]]), len(found[GKE[1]].split(","))
        # The hosts of several slices are numbered in each slice.
        process += processes * int(found.get("MEGASCALE_SLICE_ID", 0))
        processes *= int(found.get("MEGASCALE_NUM_SLICES", 1))
    else:
        raise InputError(
            "config.parallel.coordinator is 'auto', but neither SLURM's srun nor GKE"
            " has given this process a number; set config.parallel.processes and"
            " config.parallel.process"
        )
    return dataclasses.replace(settings, process=process, processes=processes)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(
            f"config.parallel.coordinator is {coordinator!r}; give HOST:PORT of process"
            " 0, or 'auto'"
        )
    return host, int(port)


def _wait_for(coordinator: str) -> None:
    """Waits until process 0 listens, because JAX would abort the program otherwise."""
    address, deadline = _address(coordinator), time.monotonic() + CONNECT_TIMEOUT
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"config.parallel.coordinator is {coordinator!r}: no answer"
                    f" ({error}); check that process 0 is running"
                ) from error
            time.sleep(0.2)


def is_distributed() -> bool:
    """Returns whether there are several processes."""
    return jax.process_count() > 1


def is_main() -> bool:
    """Returns whether this is process 0, which decides and writes."""
    return jax.process_index() == 0


def broadcast(tree: Tree) -> Tree:
    """Waits for all processes, then returns process 0's arrays.

    Args:
        tree: arrays of the same shapes in all processes.
    """
    if not is_distributed():
        return tree
    _barrier()
    return multihost_utils.broadcast_one_to_all(tree)


def check_same(digest: str) -> None:
    """Raises InputError, in all processes, unless they have the same digest.

    Args:
        digest: hexadecimal hash of whatever must be the same.
    """
    if is_distributed():
        _barrier()
        mine = np.frombuffer(bytes.fromhex(digest), np.uint8)
        if np.ptp(multihost_utils.process_allgather(mine), axis=0).any():
            raise InputError(
                "the processes have different settings or networks; run the same"
                " command with the same weights everywhere, changing only"
                " config.parallel.process"
            )


def _barrier() -> None:
    # Orbax's barrier, because a collective would time out.
    name, processes = f"guide_jax {next(_barriers)}", set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=BARRIER_TIMEOUT, processes=processes)
