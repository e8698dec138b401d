"""From a photo to the code of a person that a generator shows (section 3.1)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.errors import InputError
from guide_jax.networks import jitted


def invert(encoder: nnx.Module, generator: nnx.Module, photo: np.ndarray) -> jax.Array:
    """Returns the codes `[N, L, D]` of photos `[N, H, W, 3]` in [-1, 1].

    What the encoder says is added to its own `w_avg` where it has one, else to the
    generator's.

    Raises:
        InputError: the encoder belongs to another generator.
    """
    # An encoder of one w serves every generator of its W space.
    layers_fit = encoder.num_ws in (1, generator.num_ws)
    if not layers_fit or encoder.w_dim != generator.w_dim:
        raise InputError(
            f"the encoder gives codes [{encoder.num_ws}, {encoder.w_dim}], the"
            f" generator takes [{generator.num_ws}, {generator.w_dim}];"
            " check config.networks.encoder"
        )
    encode = jitted(encoder, lambda encoder, photo: encoder(photo))
    w_avg = getattr(encoder, "w_avg", generator.mapping.w_avg)  # [L, D] or [D]
    w = w_avg[...] + encode(photo)
    return jnp.broadcast_to(w, (len(w), generator.num_ws, generator.w_dim))
