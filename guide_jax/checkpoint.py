"""Networks on disk: one `.npz` file (the demo bundle) or an Orbax folder (converted)."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx


def leaf_shapes(network: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns dotted path -> shape of every array in a network (or its skeleton)."""
    return {path: tuple(leaf.shape) for path, leaf in flat_leaves(network).items()}


def flat_leaves(network: nnx.Module) -> dict:
    """Returns dotted path -> array of every parameter and buffer in a network."""
    flat = nnx.to_flat_state(nnx.state(network))
    return {".".join(map(str, path)): leaf[...] for path, leaf in flat}


def fill(network: nnx.Module, leaves: Mapping[str, np.ndarray]) -> nnx.Module:
    """Returns the network with every leaf set from `leaves`, as float32.

    Args:
        network: a network or its `nnx.eval_shape` skeleton.
        leaves: dotted path -> array; exactly the network's paths and shapes.

    Raises:
        ValueError: paths or shapes differ; the text names them.
    """
    graph, state = nnx.split(network)
    flat = dict(nnx.to_flat_state(state))
    wanted = {".".join(map(str, path)): path for path in flat}
    faults = [f"missing {name}" for name in wanted.keys() - leaves.keys()]
    faults += [f"unknown {name}" for name in leaves.keys() - wanted.keys()]
    faults += [
        f"{name} has shape {list(np.shape(leaves[name]))},"
        f" not {list(flat[path].shape)}"
        for name, path in wanted.items()
        if name in leaves and np.shape(leaves[name]) != tuple(flat[path].shape)
    ]
    if faults:
        raise ValueError("; ".join(sorted(faults)))
    filled = {
        path: flat[path].replace(jnp.asarray(leaves[name], jnp.float32))
        for name, path in wanted.items()
    }
    return nnx.merge(graph, nnx.from_flat_state(filled))
