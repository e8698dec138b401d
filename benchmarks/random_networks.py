"""Builds networks with random weights, because their speed doesn't depend on them."""

from collections.abc import Callable

import numpy as np
from flax import nnx

from guide_jax.models.network import fill, leaf_shapes

# Mean of the vectors' random values, by a component of their path; 0 for all others.
# The standard deviation is small because larger values made IR-SE50 so chaotic that
# changing an image by a millionth changed the gradient's direction.
CENTRES = {"var": 1.0, "scale": 0.6, "slope": 0.25, "heads": 1.0}
WIDTH = 0.03


def random(build: Callable) -> nnx.Module:
    """Returns a network with random weights, scaled so that nothing overflows.

    Args:
        build: makes the network from `rngs`; only its shapes are used.
    """
    skeleton = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    leaves = {}
    for path, shape in leaf_shapes(skeleton).items():
        leaf = rng.standard_normal(shape, np.float32)
        if path.endswith("kernel"):
            leaf /= np.sqrt(np.prod(shape[:-1]))
        elif len(shape) < 2:
            leaf = WIDTH * leaf + sum(CENTRES.get(part, 0) for part in path.split("."))
        leaves[path] = leaf
    return fill(skeleton, leaves)


def config_f(resolution: int, most: int = 512) -> tuple[int, ...]:
    """Returns config-f's channels at 4, 8, ... `resolution` px, `most` at most."""
    blocks = [4 << i for i in range(resolution.bit_length() - 2)]
    return tuple(min(32768 // block, most) for block in blocks)
