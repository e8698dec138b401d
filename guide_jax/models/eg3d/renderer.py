"""Renders features along rays in two passes: evenly spread samples, then more of them
where the first pass saw something.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Float

from guide_jax.models.shapes import Array

# A ray has about 100 samples, each with 12 rows of features to interpolate.
RAYS_PER_CHUNK = 1024
DENSITY_SHIFT = -1.0  # added before the softplus that makes a density positive
SMALLEST_WEIGHT = 0.01  # of an interval, so that empty ones are sampled too
SMALLEST_SHARE = 1e-5


@dataclass(frozen=True)
class Rendering:
    """How a model is rendered; published files state it.

    Attributes:
        size: side of the rendered image, in pixels, before super-resolution.
        depth_samples: samples of a ray's first pass.
        importance_samples: samples of its second pass.
        near: distance from the camera at which rays begin.
        far: distance at which they end.
        box: side of the cube that the planes cover.
    """

    size: int
    depth_samples: int
    importance_samples: int
    near: float | int
    far: float | int
    box: float | int


# Points [P, 3] of one image -> colours [P, C] and raw densities [P].
Field = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def render(
    field: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    planes: Float[Array, "N H W F"],
    origins: Float[Array, "N 3"],
    directions: Float[Array, "N R 3"],
    settings: Rendering,
    key: jax.Array | None = None,
    chunk: int = RAYS_PER_CHUNK,
) -> tuple[Float[Array, "N R C"], Float[Array, "N R"]]:
    """Renders rays, a chunk at a time, so that memory does not grow with their number.

    In a gradient, too, only one chunk's intermediate values are held.

    Args:
        field: maps one image's planes and points `[P, 3]` to colours `[P, C]` and raw
            densities `[P]`.
        planes: `[N, H, W, F]`.
        origins: of the rays, `[N, 3]`.
        directions: of the rays, `[N, R, 3]`, of unit length.
        settings: samples and limits.
        key: keys `[N]` that draw the samples; None spreads them evenly.
        chunk: rays to render at once.

    Returns:
        Colours `[N, R, C]` scaled to about [-1, 1], and depths `[N, R]`.
    """
    N, R, _ = directions.shape
    chunk = min(chunk, R)
    count = -(-R // chunk)
    padding = ((0, 0), (0, count * chunk - R), (0, 0))
    chunks = jnp.pad(directions, padding, mode="edge").reshape(N, count, chunk, 3)
    keys = None
    if key is not None:
        keys = jax.vmap(lambda key: jax.random.split(key, count))(key)

    def of_image(image):
        planes, origin, directions, keys = image

        @jax.checkpoint
        def of_chunk(part):
            return _render_chunk(
                lambda points: field(planes, points), origin, *part, settings
            )

        return jax.lax.map(of_chunk, (directions, keys))

    colours, depths = jax.lax.map(of_image, (planes, origins, chunks, keys))
    colours = colours.reshape(N, count * chunk, -1)[:, :R]
    return colours, depths.reshape(N, count * chunk)[:, :R]


def _render_chunk(
    field: Field,
    origin: Float[Array, "3"],
    directions: Float[Array, "R 3"],
    key: jax.Array | None,
    settings: Rendering,
) -> tuple[Float[Array, "R C"], Float[Array, " R"]]:
    R = len(directions)

    def look(depths):
        """Returns colours [R, S, C] and densities [R, S] at depths [R, S]."""
        points = origin[None, None] + depths[..., None] * directions[:, None]
        colours, densities = field(points.reshape(-1, 3))
        return colours.reshape(*depths.shape, -1), densities.reshape(depths.shape)

    jitter, quantiles = _draws(key, R, settings, directions.dtype)
    step = (settings.far - settings.near) / (settings.depth_samples - 1)
    steps = jnp.arange(settings.depth_samples, dtype=directions.dtype)[None] + jitter
    depths = settings.near + step * steps  # [R, S]
    colours, densities = look(depths)
    weights = interval_weights(depths, densities)
    more_depths = importance_depths(depths, weights, quantiles)
    more_colours, more_densities = look(more_depths)
    return composite(
        jnp.concatenate([depths, more_depths], axis=1),
        jnp.concatenate([colours, more_colours], axis=1),
        jnp.concatenate([densities, more_densities], axis=1),
    )


def _draws(
    key: jax.Array | None, rays: int, settings: Rendering, dtype: jnp.dtype
) -> tuple[Float[Array, "R S"], Float[Array, "R K"]]:
    """Returns what is random in both passes, in [0, 1); without a key, the middles."""
    shapes = (rays, settings.depth_samples), (rays, settings.importance_samples)
    if key is not None:
        first, second = jax.random.split(key)
        jitter = jax.random.uniform(first, shapes[0], dtype)
        return jitter, jax.random.uniform(second, shapes[1], dtype)
    count = settings.importance_samples
    middles = (jnp.arange(count, dtype=dtype) + 0.5) / count
    return jnp.full(shapes[0], 0.5, dtype), jnp.broadcast_to(middles, shapes[1])


def interval_weights(
    depths: Float[Array, "R S"], densities: Float[Array, "R S"]
) -> Float[Array, "R I"]:
    """Returns how much of a ray's light comes from between two samples, `[R, S - 1]`.

    Args:
        depths: `[R, S]`, ascending.
        densities: raw, `[R, S]`.
    """
    density = jax.nn.softplus(
        (densities[:, 1:] + densities[:, :-1]) / 2 + DENSITY_SHIFT
    )
    thickness = density * jnp.diff(depths, axis=1)
    in_front = jnp.cumsum(thickness, axis=1) - thickness
    return -jnp.expm1(-thickness) * jnp.exp(-in_front)


def importance_depths(
    depths: Float[Array, "R S"],
    weights: Float[Array, "R I"],
    quantiles: Float[Array, "R K"],
) -> Float[Array, "R K"]:
    """Samples depths by the first pass's weights; no gradient flows through them.

    As published, the distribution is shifted by half an interval and ends one interval
    early: it has S - 3 of the S - 2 intervals between the middles, with the weights of
    the second to the last but one.

    Args:
        depths: the first pass's, `[R, S]`.
        weights: from `interval_weights`, `[R, S - 1]`.
        quantiles: `[R, K]`, in [0, 1).
    """
    depths, weights = jax.lax.stop_gradient((depths, weights))
    # Blurred: the mean of two maxima of neighbours.
    padded = jnp.pad(weights, ((0, 0), (1, 1)))
    larger = jnp.maximum(padded[:, 1:], padded[:, :-1])
    blurred = (larger[:, 1:] + larger[:, :-1]) / 2 + SMALLEST_WEIGHT
    shares = blurred[:, 1:-1] + SMALLEST_SHARE  # [R, S - 3]
    shares = shares / jnp.sum(shares, axis=1, keepdims=True)
    cumulative = jnp.pad(jnp.cumsum(shares, axis=1), ((0, 0), (1, 0)))
    edges = (depths[:, 1:] + depths[:, :-1]) / 2
    above = jnp.sum(cumulative[:, None] <= quantiles[..., None], axis=2)  # [R, K]
    above = jnp.minimum(above, shares.shape[1])
    below = jnp.maximum(above - 1, 0)

    def ends(values):
        return (jnp.take_along_axis(values, i, axis=1) for i in (below, above))

    (low, high), (start, end) = ends(cumulative), ends(edges)
    width = jnp.where(high - low < SMALLEST_SHARE, 1, high - low)
    return start + (quantiles - low) / width * (end - start)


def composite(
    depths: Float[Array, "R S"],
    colours: Float[Array, "R S C"],
    densities: Float[Array, "R S"],
) -> tuple[Float[Array, "R C"], Float[Array, " R"]]:
    """Returns rays' colours `[R, C]` in about [-1, 1] and depths `[R]`.

    Args:
        depths: of the samples, `[R, S]`, in any order.
        colours: `[R, S, C]`.
        densities: raw, `[R, S]`.
    """
    order = jnp.argsort(depths, axis=1)
    weights = interval_weights(
        jnp.take_along_axis(depths, order, axis=1),
        jnp.take_along_axis(densities, order, axis=1),
    )
    # An interval's colour is the mean of its ends': each sample gets half the weights
    # next to it. Sorting these back is cheaper than sorting the colours.
    padded = jnp.pad(weights, ((0, 0), (1, 1)))
    of_samples = (padded[:, 1:] + padded[:, :-1]) / 2
    back = jnp.argsort(order, axis=1)
    of_samples = jnp.take_along_axis(of_samples, back, axis=1)
    total = jnp.sum(weights, axis=1)
    colour = jnp.einsum("rs,rsc->rc", of_samples, colours)
    depth = jnp.sum(of_samples * depths, axis=1)
    empty = total == 0
    depth = jnp.where(
        empty, jnp.max(depths, axis=1), depth / jnp.where(empty, 1, total)
    )
    return 2 * colour - 1, depth
