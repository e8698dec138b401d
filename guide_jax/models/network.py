"""Functions for all networks: named leaves, filling, hashing and jitting.

A network is an `nnx.Module` whose class has a `kind` (see `models.NETWORKS`) and whose
instances keep their constructor's arguments in `config`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.models.shapes import Array

NAMED = 10  # leaves that a message names; the rest are only counted


def leaf_shapes(network: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns dotted path -> shape of every array in a network (or its skeleton)."""
    return {".".join(map(str, path)): tuple(v.shape) for path, v in _flat(network)}


def flat_leaves(network: nnx.Module) -> dict[str, Any]:
    """Returns dotted path -> array of every parameter and buffer in a network."""
    return {".".join(map(str, path)): v[...] for path, v in _flat(network)}


def _flat(network: nnx.Module) -> list[tuple]:
    return list(nnx.to_flat_state(nnx.state(network)))


def fill(
    network: nnx.Module,
    leaves: Mapping[str, Array | np.ndarray],
    made: Callable[[np.ndarray], Any] = jnp.array,
) -> nnx.Module:
    """Returns the network with every leaf set from `leaves`, as float32.

    Args:
        network: a network or its `nnx.eval_shape` skeleton.
        leaves: dotted path -> array; exactly the network's paths and shapes.
        made: makes the leaf from a NumPy array, by default a JAX array.

    Raises:
        ValueError: paths or shapes differ; the message names them.
    """
    graph, state = nnx.split(network)
    flat = dict(nnx.to_flat_state(state))
    wanted = {".".join(map(str, path)): path for path in flat}
    faults = [f"missing {name}" for name in wanted.keys() - leaves.keys()]
    faults += [f"unknown {name}" for name in leaves.keys() - wanted.keys()]
    faults += [
        f"{name} has shape {list(np.shape(leaves[name]))}, not {list(flat[path].shape)}"
        for name, path in wanted.items()
        if name in leaves and np.shape(leaves[name]) != tuple(flat[path].shape)
    ]
    if faults:
        more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
        raise ValueError("; ".join([*sorted(faults)[:NAMED], *more]))
    filled = {
        path: flat[path].replace(made(np.asarray(leaves[name], np.float32)))
        for name, path in wanted.items()
    }
    return nnx.merge(graph, nnx.from_flat_state(filled))


def network_hash(network: Any) -> str:
    """Returns the SHA-256 of a network's kind, config and leaves, hexadecimal."""
    found = hashlib.sha256(json.dumps([network.kind, network.config]).encode())
    for name, leaf in sorted(flat_leaves(network).items()):
        found.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()


def jitted(networks: Any, function: Callable) -> Callable:
    """Jits `function(networks, *args)` with the weights as arguments of the program.

    Weights that a jitted function closes over would be folded as constants, which takes
    XLA minutes for VGG16.

    Args:
        networks: a network, or a tuple of networks.
        function: a pure function of `networks` and arrays.

    Returns:
        A function of the remaining arguments.
    """
    graph, state = nnx.split(networks)
    program = jax.jit(lambda state, *args: function(nnx.merge(graph, state), *args))
    return lambda *args: program(state, *args)


def on_device(network: nnx.Module, device: jax.Device) -> nnx.Module:
    """Returns a copy of a network whose arrays are on `device`."""
    graph, state = nnx.split(network)
    return nnx.merge(graph, jax.device_put(state, device))
