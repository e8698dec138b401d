"""From a photo to the code of a person that a generator shows (section 3.1)."""

import jax
import numpy as np
from flax import nnx

from guide_jax.errors import InputError
from guide_jax.evaluate import Evaluator, Looks


def invert(encoder: nnx.Module, generator: nnx.Module, photo: np.ndarray) -> jax.Array:
    """Returns the code `w_u [1, L, D]` of a photo `[1, H, W, 3]` in [-1, 1].

    Raises:
        InputError: the encoder belongs to another generator.
    """
    if (encoder.num_ws, encoder.w_dim) != (generator.num_ws, generator.w_dim):
        raise InputError(
            f"the encoder gives codes [{encoder.num_ws}, {encoder.w_dim}], the"
            f" generator takes [{generator.num_ws}, {generator.w_dim}];"
            " check config.networks.encoder"
        )
    graph, state = nnx.split(encoder)
    encode = jax.jit(lambda state, photo: nnx.merge(graph, state)(photo))
    return generator.mapping.w_avg[...] + encode(state, photo)


def quality(
    evaluator: Evaluator, photo: np.ndarray, reconstruction: Looks
) -> dict[str, float]:
    """Says how like the photo `[1, H, W, 3]` its reconstruction is.

    A bad inversion makes the generator forget somebody else.
    """
    embedding = evaluator.embed(photo)
    return {
        "id": float(np.sum(embedding * reconstruction.embeddings)),
        "lpips": float(evaluator.lpips(photo, reconstruction.images)[0]),
    }
