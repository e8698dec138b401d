"""Networks of random numbers: how long they take doesn't depend on their weights."""

from collections.abc import Callable

import numpy as np
from flax import nnx

from guide_jax.storage.network_file import fill, leaf_shapes

# What vectors are drawn around, by a part of their path; the others around 0. They stay
# close to it: drawn widely, they made IR-SE50 so chaotic that a change of an image by a
# millionth turned the gradient.
CENTRES = {"var": 1.0, "scale": 0.6, "slope": 0.25, "heads": 1.0}
WIDTH = 0.03


def random(build: Callable) -> nnx.Module:
    """Returns a network of random numbers, so tame that nothing overflows."""
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
    """Returns config-f's channels at 4, 8, ... `resolution` pixels, `most` at most."""
    blocks = [4 << i for i in range(resolution.bit_length() - 2)]
    return tuple(min(32768 // block, most) for block in blocks)
