"""Steps over several devices: `jax.pmap` shares out a step's random latents.

`jax.pmap` gives every device the student and an equal part of the adjacent and of the
global pairs (section 3.3); the first takes the person's own pair besides. Gradients and
differences meet in one all-reduce, and every device takes the same step. One device
goes the same way, without the all-reduce. This is the only file that knows how.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guide_jax.errors import InputError
from guide_jax.training.losses import Differences, Latents, factors, loss_terms
from guide_jax.training.step import Draws, Trainer, draw_latents, gradients, update

Tree = Any
AXIS = "devices"


def devices_of(count: int) -> list[jax.Device]:
    """Returns so many devices of each process, or all of them for 0.

    Raises:
        InputError: there are fewer, or not equally many.
    """
    processes = [jax.local_devices(process_index=i) for i in range(jax.process_count())]
    there = sorted({len(local) for local in processes})
    if len(there) > 1:
        raise InputError(
            f"the processes have {' and '.join(map(str, there))} devices; they need"
            " equally many (CUDA_VISIBLE_DEVICES hides some)"
        )
    if count > there[0]:
        raise InputError(
            f"config.parallel.devices is {count}, but there are {there[0]}"
            f" ({processes[0][0].platform}) in a process"
        )
    return [device for local in processes for device in local[: count or None]]


class Team:
    """The devices that share each step.

    Attributes:
        devices: all of them, in every process the same.
        local: those of this process.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Names the devices; by default JAX's first one."""
        self.devices = tuple(devices or jax.local_devices()[:1])
        process = jax.process_index()
        self.local = tuple(d for d in self.devices if d.process_index == process)
        mesh = Mesh(np.array(self.local), (AXIS,))
        self._whole = NamedSharding(mesh, PartitionSpec())
        first = self.devices.index(self.local[0])
        self._indices = jax.device_put(
            np.arange(first, first + len(self.local)),
            NamedSharding(mesh, PartitionSpec(AXIS)),
        )

    def replicate(self, tree: Tree) -> Tree:
        """Puts arrays on each of this process's devices."""
        return jax.device_put(tree, self._whole)

    def first(self, tree: Tree) -> Tree:
        """Returns what this process's first device has of replicated arrays."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def memory(self) -> int:
        """Returns how many bytes a device of this process may take."""
        stats = self.local[0].memory_stats()
        if stats and "bytes_limit" in stats:
            return stats["bytes_limit"]
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole // jax.local_device_count()

    def map(
        self,
        function: Callable,
        *,
        mapped: Sequence[bool],
        out_mapped: bool = False,
        donate: Sequence[int] = (),
    ) -> Callable:
        """Makes a program of `function(index, *args)` that all devices run.

        Args:
            function: index is the device's place in the team, a scalar.
            mapped: for each further argument, whether its arrays have a leading axis
                of this process's devices; else all devices get the same.
            out_mapped: the same for the result.
            donate: which of the further arguments the program may overwrite.

        Returns:
            The function of the further arguments.
        """
        program = jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(0, *(0 if each else None for each in mapped)),
            out_axes=0 if out_mapped else None,
            devices=self.devices,
            donate_argnums=tuple(1 + i for i in donate),
        )
        run = functools.partial(program, self._indices)
        run.lower = functools.partial(program.lower, self._indices)
        return run


def fitting(draws: Draws, devices: int, processes: int = 1) -> list[int]:
    """Returns which numbers of devices, of so many, can share a step's random latents.

    Args:
        draws: of a step.
        devices: of all processes together.
        processes: each has equally many.
    """
    counts = draws.num_adjacent, draws.num_global
    return [
        n
        for n in range(processes, devices + 1, processes)
        if n == 1 or (any(counts) and not any(count % n for count in counts))
    ]


def check(draws: Draws, devices: int, processes: int = 1) -> None:
    """Raises InputError unless a step's random latents divide over the devices.

    Args:
        draws: of a step.
        devices: of all processes together.
        processes: each has equally many.
    """
    fit = fitting(draws, devices, processes)
    if devices in fit:
        return
    fewer = " or ".join(str(n // processes) for n in fit)
    raise InputError(
        f"loss.adjacency.count = {draws.num_adjacent} and loss.global_.count ="
        f" {draws.num_global} don't divide over {devices} devices. Multiples of"
        f" {devices} would ({devices}, {2 * devices}, ...)"
        + (f", or config.parallel.devices of {fewer}" if fewer else "")
        + "; config.parallel.over=people gives each device a person instead"
    )


def step_on(
    trainer: Trainer,
    student: Tree,
    opt_state: Tree,
    constants: dict[str, Tree],
    latents: Latents,
    num_adjacent: int,
    index: jax.Array | int = 0,
    devices: int = 1,
) -> tuple[Tree, Tree, dict[str, jax.Array]]:
    """One device's part of a step on given latents.

    Args:
        trainer: from `make_trainer`.
        student: the trainable parameters.
        opt_state: Adam's.
        constants: `trainer.constants()`.
        latents: of the whole step, `[1 + N_a + N_g, L, D]`.
        num_adjacent: N_a.
        index: the device's place.
        devices: how many share the step.

    Returns:
        Student and opt_state after the step; the whole loss's terms before it.
    """
    shares = Shares(num_adjacent, len(latents.student) - 1 - num_adjacent, devices)
    by = factors(trainer.weights, shares.adjacent, shares.global_)
    find = functools.partial(gradients, trainer, student, constants)
    if devices == 1:
        grads, found = find(latents, by)
    else:

        def part(own: bool):
            rows = jax.tree.map(lambda x: shares.take(x, index, own), (latents, by))
            grads, found = find(*rows)
            return grads, shares.place(found, index, own)

        # A condition, so that the person's own pair is computed once and not by all.
        parts = lax.cond(index == 0, lambda: part(own=True), lambda: part(own=False))
        grads, found = meet(parts)
    student, opt_state = update(trainer, student, opt_state, grads)
    return student, opt_state, loss_terms(found, trainer.weights)


def meet(tree: Tree) -> Tree:
    """Adds up what the devices have, in one all-reduce."""
    flat, restore = ravel_pytree(tree)
    return restore(lax.psum(flat, AXIS))


class Shares:
    """Which of a step's pairs are whose.

    Rows are [own, adjacent ..., global ...] of arrays of all pairs, and without the
    global ones of arrays of those that are compared by more than LPIPS.
    """

    def __init__(self, adjacent: int, global_: int, devices: int):
        self.adjacent, self.global_ = adjacent, global_
        self._a, self._g = adjacent // devices, global_ // devices

    def take(self, rows: jax.Array, index: jax.Array, own: bool) -> jax.Array:
        """Returns the rows of a device, led by the person's own if it has that."""
        rows = jnp.asarray(rows)
        parts = [rows[:1]] * own
        parts.append(lax.dynamic_slice_in_dim(rows, 1 + index * self._a, self._a))
        if len(rows) > 1 + self.adjacent:
            start = 1 + self.adjacent + index * self._g
            parts.append(lax.dynamic_slice_in_dim(rows, start, self._g))
        return jnp.concatenate(parts)

    def place(self, found: Differences, index: jax.Array, own: bool) -> Differences:
        """Puts a device's differences among zeros for everybody else's."""

        def rows(mine: jax.Array, has_global: bool) -> jax.Array:
            count = 1 + self.adjacent + (self.global_ if has_global else 0)
            all_ = jnp.zeros(count, mine.dtype)
            if own:
                all_, mine = all_.at[0].set(mine[0]), mine[1:]
            all_ = lax.dynamic_update_slice_in_dim(
                all_, mine[: self._a], 1 + index * self._a, 0
            )
            if not has_global:
                return all_
            start = 1 + self.adjacent + index * self._g
            return lax.dynamic_update_slice_in_dim(all_, mine[self._a :], start, 0)

        return Differences(
            rows(found.mse, False), rows(found.lpips, True), rows(found.identity, False)
        )


def make_train_step(trainer: Trainer, draws: Draws, team: Team) -> Callable:
    """Returns the program of a step.

    Its arguments are (student, opt_state, constants, w_u, w_target, key, i), of which
    the first two are donated; step i draws from `jax.random.fold_in(key, i)`. It gives
    (student, opt_state, terms).
    """
    devices = len(team.devices)

    def train_step(index, student, opt_state, constants, w_u, w_target, key, i):
        key = jax.random.fold_in(key, i)
        latents = draw_latents(trainer, constants, draws, w_u, w_target, key)
        step = functools.partial(step_on, index=index, devices=devices)
        n = draws.num_adjacent
        return step(trainer, student, opt_state, constants, latents, n)

    return team.map(train_step, mapped=(False,) * 7, donate=(0, 1))


def place_on(device: jax.Device, network: nnx.Module) -> nnx.Module:
    """Returns a network whose arrays are on a device, for programs to run there."""
    graph, state = nnx.split(network)
    return nnx.merge(graph, jax.device_put(state, device))
