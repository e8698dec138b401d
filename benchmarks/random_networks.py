"""Networks of random numbers: how long they take doesn't depend on their weights."""

from collections.abc import Callable

import numpy as np
from flax import nnx

from guide_jax.checkpoint import fill, leaf_shapes

NOT_NEGATIVE = ("var", "heads")  # variances, and LPIPS's weights of channels


def random(build: Callable) -> nnx.Module:
    """Returns a network of random numbers, so small that nothing overflows."""
    skeleton = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    leaves = {}
    for path, shape in leaf_shapes(skeleton).items():
        leaf = rng.standard_normal(shape, np.float32)
        if path.endswith("kernel"):
            leaf /= np.sqrt(np.prod(shape[:-1]))
        if any(part in NOT_NEGATIVE for part in path.split(".")):
            leaf = np.abs(leaf) + 0.5
        leaves[path] = leaf
    return fill(skeleton, leaves)


def config_f(resolution: int, most: int = 512) -> tuple[int, ...]:
    """Returns config-f's channels at 4, 8, ... `resolution` pixels, `most` at most."""
    blocks = [4 << i for i in range(resolution.bit_length() - 2)]
    return tuple(min(32768 // block, most) for block in blocks)
