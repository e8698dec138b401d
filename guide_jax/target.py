"""Target codes for the person to forget: the paper's (section 3.2), and the fold's.

The fold maps every code to a target. Codes are compared with the person by their
component along one direction, from the mean code to the person's mean code. A code
whose component exceeds a threshold moves back along the direction, past the threshold;
all other codes stay. The map is continuous, and no target's component exceeds the
threshold, so a generator that follows it shows nobody who is far along the direction.
UFO with offsets, by contrast, is a translation near the person and the identity
elsewhere; in between, a continuous generator passes the person again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guide_jax.config_types import Fold


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


def direction(w_u: jax.Array, w_avg: jax.Array) -> jax.Array:
    """Returns the unit direction `[L, D]` from the mean code to a person's codes.

    The mean of several photos' codes has more of what they share, the identity, than of
    each photo's pose and light.

    Args:
        w_u: the person's codes `[P, L, D]`.
        w_avg: mean code, `[D]` or `[L, D]`.
    """
    w_id = w_u.mean(axis=0) - jnp.broadcast_to(w_avg, w_u.shape[1:])
    return w_id / jnp.sqrt(jnp.sum(w_id**2))


def component(w: jax.Array, w_avg: jax.Array, direction: jax.Array) -> jax.Array:
    """Returns how far codes `[N, L, D]` lie along a direction `[L, D]`: `[N]`."""
    offset = w - jnp.broadcast_to(w_avg, w.shape)
    return jnp.einsum("nld,ld->n", offset, direction, precision="highest")


def at_component(
    w: jax.Array, component_: jax.Array, w_avg: jax.Array, direction: jax.Array
) -> jax.Array:
    """Returns codes moved along a direction until they have given components `[N]`."""
    change = component_ - component(w, w_avg, direction)
    return w + change[:, None, None] * direction[None]


def fold(
    w: jax.Array, w_avg: jax.Array, direction: jax.Array, settings: Fold
) -> jax.Array:
    """Maps codes to their targets; codes below the threshold are their own.

    Args:
        w: codes `[N, L, D]`.
        w_avg: mean code, `[D]` or `[L, D]`.
        direction: the person's, from `direction`.
        settings: threshold, gain and limit.
    """
    along = component(w, w_avg, direction)
    end = jnp.minimum(along, _folded(along, settings))
    return w - (along - end)[:, None, None] * direction[None]


def _folded(component: jax.Array, settings: Fold) -> jax.Array:
    """Returns where a component beyond the threshold goes; larger for those below."""
    end = settings.threshold - settings.gain * (component - settings.threshold)
    return jnp.maximum(end, -settings.limit)


def fold_person(w_u: jax.Array, w_avg: jax.Array, settings: Fold) -> jax.Array:
    """Returns the targets `[P, L, D]` of a person's own codes.

    They follow the fold, but each code moves by at least twice the threshold, so that
    one with a small component is forgotten too.

    Args:
        w_u: the person's codes `[P, L, D]`.
        w_avg: mean code, `[D]` or `[L, D]`.
        settings: threshold, gain and limit.

    Returns:
        The targets. NaN if the codes' mean is w_avg, because the direction is
        undefined.
    """
    along = direction(w_u, w_avg)
    own = component(w_u, w_avg, along)
    end = jnp.minimum(_folded(own, settings), own - 2 * settings.threshold)
    return at_component(w_u, end, w_avg, along)
