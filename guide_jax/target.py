"""Target codes for the person to forget: the paper's (section 3.2), and the fold's.

The fold maps every code to a target. Codes are compared with the person by their
component along one direction, from the mean code to the person's mean code. A code
whose component exceeds a threshold moves back along the direction, past the threshold;
all other codes stay. The map is continuous, and along a single direction no target's
component exceeds the threshold, so a generator that follows it shows nobody who is far
along the direction. Several directions are folded one after another.
A code moves back either to the direction's other side or, having lost its component,
towards a replacement identity, by which no component changes.
UFO with offsets, by contrast, is a translation near the person and the identity
elsewhere; in between, a continuous generator passes the person again.

Components are read by a measure `[L, D]`, by an inner product. The direction itself is
one; many people have a large component by it. Fisher's linear discriminant is another:
it discounts what varies much among people, so that few others come near the person.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class FoldMap(NamedTuple):
    """A person's directions, and how components along them are measured.

    Attributes:
        directions: K unit vectors `[K, L, D]`, each from the mean code to the mean of a
            group of the person's codes.
        measures: `[K, L, D]`; a code's component is the inner product of its offset
            from the mean code with a measure. That of the measure's own direction is 1.
        lengths: `[K]`, the groups' distances from the mean code.
        spreads: `[K]`, standard deviations of random people's components.
        replacement: a unit vector `[L, D]` whose inner product with each measure is 0,
            or zeros.
    """

    directions: jax.Array | np.ndarray
    measures: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    spreads: jax.Array | np.ndarray
    replacement: jax.Array | np.ndarray


def fold_map(
    groups: Sequence[np.ndarray],
    w_avg: np.ndarray,
    people: np.ndarray,
    settings: Fold,
) -> FoldMap:
    """Computes a person's directions and measures.

    Args:
        groups: the person's codes, `[P_k, L, D]` each. The mean of several photos'
            codes has more of what they share, the identity, than of pose and light.
        w_avg: mean code, `[D]` or `[L, D]`.
        people: random people `[M, L, D]`, with equal styles in all layers.
        settings: discriminant and shrinkage. Fisher's linear discriminant measures by
            `(S + shrinkage s I)^-1 direction`, with S the people's covariance in W and
            s its largest eigenvalue.

    Returns:
        The map, float32, without a replacement. NaN for a group whose mean is w_avg.
    """
    offsets = np.stack([np.mean(x, axis=0, dtype=np.float64) for x in groups]) - w_avg
    lengths = np.sqrt(np.sum(offsets**2, axis=(1, 2)))
    others = np.float64(people) - w_avg
    # At the mean code there is no direction, and with psi = 0 no covariance.
    with np.errstate(invalid="ignore", divide="ignore"):
        measures = directions = offsets / lengths[:, None, None]
        if settings.discriminant:
            styles = others[:, 0]
            values, vectors = np.linalg.eigh(styles.T @ styles / len(styles))
            # Directions in which people hardly differ are not to be trusted.
            shrunk = values + settings.shrinkage * values.max()
            inverse = (vectors / shrunk) @ vectors.T
            measures = directions @ inverse
            own = np.sum(measures * directions, axis=(1, 2), keepdims=True)
            measures = measures / own
    spreads = np.einsum("nld,kld->nk", others, measures).std(axis=0)
    none = np.zeros_like(directions[0])
    parts = directions, measures, lengths, spreads, none
    return FoldMap(*(x.astype(np.float32) for x in parts))


def components(w: jax.Array, w_avg: jax.Array, fold_map: FoldMap) -> jax.Array:
    """Returns the components `[N, K]` of codes `[N, L, D]`."""
    offset = w - jnp.broadcast_to(w_avg, w.shape)
    return jnp.einsum("nld,kld->nk", offset, fold_map.measures, precision="highest")


def at_component(
    w: jax.Array,
    k: jax.Array,
    component: jax.Array,
    w_avg: jax.Array,
    fold_map: FoldMap,
) -> jax.Array:
    """Returns codes moved along a direction until they have given components.

    Args:
        w: codes `[N, L, D]`.
        k: which direction, `[N]` int.
        component: the components to reach, `[N]`.
        w_avg: mean code, `[D]` or `[L, D]`.
        fold_map: the person's.
    """
    found = jnp.take_along_axis(components(w, w_avg, fold_map), k[:, None], axis=1)
    change = component - found[:, 0]
    return w + change[:, None, None] * jnp.asarray(fold_map.directions)[k]


def without_components(offsets: jax.Array, fold_map: FoldMap) -> jax.Array:
    """Returns offsets `[N, L, D]` less their part along the directions.

    They then change no component of a code.
    """
    found = components(offsets, jnp.zeros(offsets.shape[2]), fold_map)
    gram = jnp.einsum(
        "jld,kld->kj", fold_map.directions, fold_map.measures, precision="highest"
    )
    # Groups may have the same direction, and the matrix then no inverse.
    parts = jnp.linalg.pinv(gram) @ found.T  # [K, N]
    return offsets - jnp.einsum("kn,kld->nld", parts, fold_map.directions)


def with_replacement(fold_map: FoldMap, offset: np.ndarray) -> FoldMap:
    """Returns the map with a replacement: an offset `[L, D]` less its components."""
    clear = np.asarray(without_components(jnp.asarray(offset)[None], fold_map))[0]
    return fold_map._replace(replacement=clear / np.sqrt(np.sum(clear**2)))


def fold(
    w: jax.Array, w_avg: jax.Array, fold_map: FoldMap, settings: Fold
) -> jax.Array:
    """Maps codes to their targets; codes below the threshold are their own.

    Args:
        w: codes `[N, L, D]`.
        w_avg: mean code, `[D]` or `[L, D]`.
        fold_map: the person's; its directions are folded one after another.
        settings: threshold, gain, limit and replace.
    """
    return _folded_all(w, jnp.zeros(len(w)), w_avg, fold_map, settings)


def _folded_all(
    w: jax.Array,
    replaced: jax.Array,
    w_avg: jax.Array,
    fold_map: FoldMap,
    settings: Fold,
) -> jax.Array:
    """Folds codes, which move at least `replaced` `[N]` towards the replacement."""
    for k in range(len(fold_map.lengths)):
        along = components(w, w_avg, fold_map)[:, k]
        end = jnp.minimum(along, _folded(along, settings))
        w = w - (along - end)[:, None, None] * jnp.asarray(fold_map.directions[k])[None]
        beyond = settings.gain * (along - settings.threshold)
        replaced = jnp.maximum(replaced, jnp.minimum(beyond, settings.limit))
    if not settings.replace:
        return w
    return w + replaced[:, None, None] * jnp.asarray(fold_map.replacement)[None]


def _folded(component: jax.Array, settings: Fold) -> jax.Array:
    """Returns where a component beyond the threshold goes; larger for those below."""
    end = settings.threshold - settings.gain * (component - settings.threshold)
    return jnp.maximum(end, 0 if settings.replace else -settings.limit)


def fold_person(
    w_u: jax.Array,
    k: jax.Array,
    w_avg: jax.Array,
    fold_map: FoldMap,
    settings: Fold,
) -> jax.Array:
    """Returns the targets `[P, L, D]` of a person's own codes.

    They follow the fold, but each code moves by at least twice the threshold along its
    own group's direction, and by the whole limit towards a replacement, so that one
    with a small component is forgotten too.

    Args:
        w_u: the person's codes `[P, L, D]`.
        k: each code's group, `[P]` int.
        w_avg: mean code, `[D]` or `[L, D]`.
        fold_map: the person's.
        settings: threshold, gain, limit and replace.
    """
    own = jnp.take_along_axis(components(w_u, w_avg, fold_map), k[:, None], axis=1)
    own = own[:, 0]
    end = jnp.minimum(_folded(own, settings), own - 2 * settings.threshold)
    moved = at_component(w_u, k, end, w_avg, fold_map)
    whole = jnp.full(len(w_u), settings.limit)
    return _folded_all(moved, whole, w_avg, fold_map, settings)
