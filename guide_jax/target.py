"""Where in latent space the forgotten person goes (paper, section 3.2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def extra(w_u: jax.Array, w_avg: jax.Array, distance: float) -> jax.Array:
    """Un-identifying face on latent space: past the mean, away from the person.

    Args:
        w_u: the person's code `[1, L, D]`.
        w_avg: mean w, `[D]` or `[1, L, D]`.
        distance: d, how far beyond the mean, in the L2 norm of the whole `[1, L, D]`.

    Returns:
        w_target `[1, L, D]`. NaN where w_u is w_avg: there is no direction to go.
    """
    w_id = w_u - w_avg
    return w_avg - distance * w_id / jnp.linalg.norm(w_id)


def average(w_u: jax.Array, w_avg: jax.Array, distance: float) -> jax.Array:
    """The paper's baseline: the mean face; `distance` is not used."""
    del distance
    return jnp.broadcast_to(w_avg, w_u.shape)


TARGETS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "extra": extra,
    "average": average,
}


def offsets(w_u: jax.Array, w_r: jax.Array, alpha: jax.Array) -> jax.Array:
    """Steps from the person towards random latents, for the adjacency loss.

    Args:
        w_u: the person's code `[1, L, D]`.
        w_r: random latents `[N, L, D]`.
        alpha: length of each step `[N]`, in the L2 norm of the whole `[L, D]`.

    Returns:
        The steps delta `[N, L, D]`.
    """
    towards = w_r - w_u
    length = jnp.sqrt(jnp.sum(towards**2, axis=(1, 2), keepdims=True))
    return alpha[:, None, None] * towards / length
