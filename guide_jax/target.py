"""Target codes for the person to forget, and offsets around them (section 3.2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def extra(w_u: jax.Array, w_avg: jax.Array, distance: float) -> jax.Array:
    """Returns UFO (un-identifying face on latent space): beyond the mean code.

    Args:
        w_u: codes to forget `[P, L, D]`.
        w_avg: mean code, `[D]`, `[L, D]` or `[1, L, D]`.
        distance: d, each target's distance from the mean, away from the person, in the
            L2 norm over `[L, D]`.

    Returns:
        w_target `[P, L, D]`. NaN where w_u equals w_avg, because the direction is
        undefined.
    """
    w_avg = jnp.broadcast_to(w_avg, w_u.shape)
    w_id = w_u - w_avg
    length = jnp.sqrt(jnp.sum(w_id**2, axis=(1, 2), keepdims=True))
    return w_avg - distance * w_id / length


def average(w_u: jax.Array, w_avg: jax.Array, distance: float) -> jax.Array:
    """Returns the mean code, the paper's baseline target; `distance` is unused."""
    del distance
    return jnp.broadcast_to(w_avg, w_u.shape)


TARGETS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "extra": extra,
    "average": average,
}


def offsets(w_u: jax.Array, w_r: jax.Array, alpha: jax.Array) -> jax.Array:
    """Computes offsets from the person towards random latents, for the adjacency loss.

    Args:
        w_u: codes to forget, `[1, L, D]` or `[N, L, D]`.
        w_r: random latents `[N, L, D]`.
        alpha: offset lengths `[N]`, in the L2 norm over `[L, D]`.

    Returns:
        The offsets delta `[N, L, D]`.
    """
    towards = w_r - w_u
    length = jnp.sqrt(jnp.sum(towards**2, axis=(1, 2), keepdims=True))
    return alpha[:, None, None] * towards / length
