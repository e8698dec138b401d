"""A synthesis network that reads codes as if they were changed linearly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def edited(synthesis: Any, changes: np.ndarray, w_avg: np.ndarray) -> Any:
    """Returns a copy of a synthesis network that reads codes as if they were changed.

    A layer that reads a style vector is affine in it, so a linear change of codes is a
    change of these layers' weights and biases.

    Args:
        synthesis: a generator's synthesis network.
        changes: `[L, D, D]`; the copy shows for a code w what `synthesis` shows for
            `w + (w - w_avg) @ changes`.
        w_avg: mean code `[D]`.
    """
    copy = nnx.clone(synthesis)
    mean = jnp.asarray(w_avg, jnp.float32)[None]
    with jax.default_matmul_precision("highest"):
        for style, layer in copy.affine_layers():
            weight = layer.weight[...]
            before = layer(mean)
            change = jnp.asarray(changes[style], weight.dtype) @ weight
            layer.weight[...] = weight + change
            shift = (before - layer(mean)).reshape(layer.bias[...].shape)
            layer.bias[...] = layer.bias[...] + shift
    return copy
