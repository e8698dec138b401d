"""Shares a step among several devices with `jax.pmap`.

Every device holds the student and an equal shard of the adjacent and of the random
rows; device 0 also takes the own rows. One all-reduce sums gradients and terms, and
every device applies the same update.

`accumulate.py` does the same one pair of images at a time, `distributed.py` connects
several processes, and `experiment/workers.py` gives each device its own person instead.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guide_jax.config_types import Sampling
from guide_jax.errors import InputError
from guide_jax.training import memory
from guide_jax.training.context import StepContext
from guide_jax.training.losses import PairTerms, loss_terms, term_weights
from guide_jax.training.step import draw_latents, gradient_size, gradients, update

Tree = Any
AXIS = "devices"


class DeviceGroup:
    """The devices that share each step.

    Attributes:
        devices: all devices of the group, the same in every process.
        local: this process's devices in the group.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Takes the devices that share a step; by default, only JAX's first device."""
        self.devices = tuple(devices or jax.local_devices()[:1])
        process = jax.process_index()
        self.local = tuple(d for d in self.devices if d.process_index == process)
        mesh = Mesh(np.array(self.local), (AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        first = self.devices.index(self.local[0])
        self._indices = jax.device_put(
            np.arange(first, first + len(self.local)),
            NamedSharding(mesh, PartitionSpec(AXIS)),
        )

    def replicate(self, tree: Tree) -> Tree:
        """Copies arrays to each device of this process."""
        return jax.device_put(tree, self._replicated)

    def first(self, tree: Tree) -> Tree:
        """Returns the first device's copy of replicated arrays."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def memory(self) -> int:
        """Returns how many bytes are free for each device of this process."""
        stats = self.local[0].memory_stats()
        if stats and "bytes_limit" in stats:
            return max(0, stats["bytes_limit"] - stats.get("bytes_in_use", 0))
        return memory.free() // jax.local_device_count()

    def map(
        self,
        function: Callable,
        *,
        mapped: Sequence[bool],
        out_mapped: bool = False,
        donate: Sequence[int] = (),
    ) -> Callable:
        """Compiles `function(index, *args)` to run on all devices.

        Args:
            function: its first argument is the device's index in the group, a scalar.
            mapped: for each of `args`, whether its arrays have a leading axis over this
                process's devices; otherwise all devices get the same arrays.
            out_mapped: whether the result's arrays have this leading axis.
            donate: indices of the `args` that the program may overwrite.

        Returns:
            The compiled function of `args`.
        """
        program = jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(0, *(0 if each else None for each in mapped)),
            out_axes=0 if out_mapped else None,
            devices=self.devices,
            donate_argnums=tuple(1 + i for i in donate),
        )
        run: Any = partial(program, self._indices)
        run.lower = partial(program.lower, self._indices)
        return run


class Shards:
    """Assigns a step's rows to devices.

    Rows are [own, adjacent, random]; identity and feature terms have no random rows.
    """

    def __init__(self, own: int, adjacent: int, random: int, devices: int):
        """Splits the rows.

        Args:
            own: number of own rows, P.
            adjacent: number of adjacent rows, P * N_a; divisible by `devices`.
            random: number of random rows, N_g; divisible by `devices`.
            devices: number of devices that share the step.

        Raises:
            ValueError: a number is not divisible, so rows would be left out.
        """
        if adjacent % devices or random % devices:
            raise ValueError(
                f"{adjacent} adjacent and {random} random rows for {devices} devices"
            )
        self.own, self.adjacent, self.random = own, adjacent, random
        self._adjacent, self._random = adjacent // devices, random // devices

    def take(self, rows: jax.Array, index: jax.Array, own: bool) -> jax.Array:
        """Returns a device's rows, starting with the own rows if `own` is true."""
        rows = jnp.asarray(rows)
        start, size = self.own + index * self._adjacent, self._adjacent
        parts = [rows[: self.own]] * own
        parts.append(lax.dynamic_slice_in_dim(rows, start, size))
        if len(rows) > self.own + self.adjacent:
            start = self.own + self.adjacent + index * self._random
            parts.append(lax.dynamic_slice_in_dim(rows, start, self._random))
        return jnp.concatenate(parts)

    def place(self, terms: PairTerms, index: jax.Array, own: bool) -> PairTerms:
        """Returns a device's terms at their rows, with zeros in all other rows."""

        def rows(mine: jax.Array, has_random: bool) -> jax.Array:
            count = self.own + self.adjacent + (self.random if has_random else 0)
            whole = jnp.zeros(count, mine.dtype)
            if own:
                whole = whole.at[: self.own].set(mine[: self.own])
                mine = mine[self.own :]
            whole = lax.dynamic_update_slice_in_dim(
                whole, mine[: self._adjacent], self.own + index * self._adjacent, 0
            )
            if not has_random:
                return whole
            start = self.own + self.adjacent + index * self._random
            return lax.dynamic_update_slice_in_dim(
                whole, mine[self._adjacent :], start, 0
            )

        return PairTerms(
            rows(terms.mse, False), rows(terms.lpips, True), rows(terms.identity, False)
        )


def all_reduce(tree: Tree) -> Tree:
    """Sums a tree over the devices in a single all-reduce."""
    flat, restore = ravel_pytree(tree)
    return restore(lax.psum(flat, AXIS))


def make_sharded_step(
    context: StepContext, sampling: Sampling, group: DeviceGroup
) -> Callable:
    """Returns `step.make_step`'s step, compiled for several devices."""
    devices = len(group.devices)

    def step(index, student, opt_state, constants, w_u, w_target, key, i):
        key = jax.random.fold_in(key, i)
        latents = draw_latents(context, constants, sampling, w_u, w_target, key)
        own, (adjacent, random) = len(w_u), (sampling.num_adjacent, sampling.num_global)
        shards = Shards(own, own * adjacent, random, devices)
        weights = term_weights(context.weights, adjacent, random, own)

        def part(has_own: bool) -> tuple[Tree, PairTerms]:
            rows = jax.tree.map(
                lambda x: shards.take(x, index, has_own), (latents, weights)
            )
            grads, values = gradients(context, student, constants, *rows)
            return grads, shards.place(values, index, has_own)

        # Conditional, so that only device 0 computes the own rows.
        parts = lax.cond(index == 0, lambda: part(True), lambda: part(False))
        grads, values = all_reduce(parts)
        student, opt_state = update(context, student, opt_state, grads)
        terms = loss_terms(values, context.weights, own)
        return student, opt_state, terms | gradient_size(grads)

    return group.map(step, mapped=(False,) * 7, donate=(0, 1))


# Which devices ------------------------------------------------------------------------


def devices_of(count: int) -> list[jax.Device]:
    """Returns `count` devices of each process, or all of them if 0.

    Raises:
        InputError: a process has fewer devices, or the processes have unequal numbers.
    """
    processes = [jax.local_devices(process_index=i) for i in range(jax.process_count())]
    numbers = sorted({len(local) for local in processes})
    if len(numbers) > 1:
        raise InputError(
            f"the processes have {' and '.join(map(str, numbers))} devices; all need"
            " the same number (CUDA_VISIBLE_DEVICES can hide some)"
        )
    if count > numbers[0]:
        raise InputError(
            f"config.parallel.devices is {count}, but each process has {numbers[0]}"
            f" ({processes[0][0].platform})"
        )
    return [device for local in processes for device in local[: count or None]]


def valid_counts(sampling: Sampling, devices: int, processes: int = 1) -> list[int]:
    """Returns the numbers of devices that can share a step's random latents.

    Args:
        sampling: how many random latents a step draws.
        devices: number of devices available in all processes together.
        processes: number of processes, which have equally many devices.
    """
    counts = sampling.num_adjacent, sampling.num_global
    return [
        n
        for n in range(processes, devices + 1, processes)
        if n == 1 or (any(counts) and not any(count % n for count in counts))
    ]


def check_divisible(sampling: Sampling, devices: int, processes: int = 1) -> None:
    """Raises InputError unless a step's random latents divide over the devices.

    Args:
        sampling: how many random latents a step draws.
        devices: number of devices in all processes together.
        processes: number of processes, which have equally many devices.
    """
    valid = valid_counts(sampling, devices, processes)
    if devices in valid:
        return
    fewer = " or ".join(str(n // processes) for n in valid)
    raise InputError(
        f"loss.adjacency.count = {sampling.num_adjacent} and loss.global_.count ="
        f" {sampling.num_global} do not divide over {devices} devices; use multiples of"
        f" {devices}"
        + (f", or config.parallel.devices = {fewer}" if fewer else "")
        + ", or config.parallel.over=people, which gives each device a person"
    )
