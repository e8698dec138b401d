"""Looks up points in three planes of features, and decodes colour and density."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models import ops
from guide_jax.models.shapes import Array

# Which of a point's coordinates (x, y, z) run along a plane's width and height. The
# third plane was meant to be (z, y) or (y, z). As published it is (z, x): the second
# one transposed, so that no plane resolves y and z together. The published weights
# were trained like this and need it.
AXES = ((0, 1), (0, 2), (2, 0))
PLANES = len(AXES)
HIDDEN = 64
SATURATION = 0.001  # colours reach a little beyond [0, 1], so that 0 and 1 are finite


def look_up(
    planes: Float[Array, "H W F"], points: Float[Array, "P 3"], box: float | int
) -> Float[Array, "P C"]:
    """Interpolates each plane bilinearly at points, and averages the planes.

    Args:
        planes: one person's `[H, W, 3 * C]`: the channels of the first plane, and so
            on.
        points: `[P, 3]`.
        box: side of the cube around the origin that the planes cover; outside it,
            features are 0.

    Returns:
        `[P, C]`.
    """
    H, W, F = planes.shape
    # A row per pixel and plane; this order needs no copy.
    table = jnp.asarray(planes).reshape(H * W * PLANES, F // PLANES)
    rows, weights = [], []
    for plane, axes in enumerate(AXES):
        # The outer edges of the outer pixels are at -1 and 1.
        across, along = (
            ((points[:, axis] * (2 / box) + 1) * length - 1) / 2
            for axis, length in zip(axes, (W, H), strict=True)
        )
        for column, column_weight in _taps(across, W):
            for row, row_weight in _taps(along, H):
                rows.append((row * W + column) * PLANES + plane)
                weights.append(column_weight * row_weight)
    found = table.at[jnp.stack(rows)].get(mode="promise_in_bounds")  # [12, P, C]
    return jnp.sum(found * jnp.stack(weights)[..., None], axis=0) / PLANES


def _taps(position: Float[Array, " P"], length: int) -> list[tuple[Array, Array]]:
    """Returns the indices `[P]` and weights `[P]` of the two nearest pixels."""
    first = jnp.floor(position)
    share = position - first
    taps = []
    for pixel, weight in ((first, 1 - share), (first + 1, share)):
        inside = (pixel >= 0) & (pixel < length)
        index = jnp.clip(pixel, 0, length - 1).astype(jnp.int32)
        taps.append((index, jnp.where(inside, weight, 0)))
    return taps


class Decoder(nnx.Module):
    """Maps a point's features to its colour, which has C channels, and its density."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.hidden = ops.Linear(channels, HIDDEN, rngs=rngs)
        self.out = ops.Linear(HIDDEN, 1 + channels, rngs=rngs)

    def __call__(
        self, features: Float[Array, "P C"]
    ) -> tuple[Float[Array, "P C"], Float[Array, " P"]]:
        """Returns colours `[P, C]`, in about [0, 1], and raw densities `[P]`.

        Densities may be negative; the renderer makes them positive.
        """
        y = self.out(jax.nn.softplus(self.hidden(features)))
        colours = jax.nn.sigmoid(y[:, 1:]) * (1 + 2 * SATURATION) - SATURATION
        return colours, y[:, 0]
