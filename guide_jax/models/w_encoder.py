"""A small inversion encoder: maps a face photo to the code that reproduces it."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.arcface import IRNet
from guide_jax.models.photo_encoder import PhotoEncoder
from guide_jax.models.resample import average_pool
from guide_jax.models.shapes import Array


class WEncoder(PhotoEncoder):
    """Photo `[N, H, W, 3]` -> code minus w_avg, `[N, L, D]`.

    An IR-SE trunk applied to the whole face, averaged to a small square. It predicts
    one w and repeats it for every layer, because it is trained on a generator's own
    samples, which all have that form. With L = 1, it serves every generator of the same
    W space.
    """

    kind: ClassVar[str] = "w_encoder"

    def __init__(
        self,
        *,
        num_ws: int,
        w_dim: int = 512,
        input_size: int = 64,
        units: Sequence[int] = (2, 2, 2, 1),
        widths: Sequence[int] = (24, 24, 48, 96, 160),
        rngs: nnx.Rngs,
    ):
        """Builds the encoder.

        Args:
            num_ws: the generator's L, or 1.
            w_dim: the generator's D.
            input_size: side that faces are averaged to, in pixels.
            units: residual units per stage.
            widths: channels of the stem, then of each stage.
            rngs: source of the initial weights.
        """
        super().__init__(num_ws, w_dim, input_size, units, widths)
        self.trunk = IRNet(units, widths, True, w_dim, input_size, rngs=rngs)

    def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N L D"]:
        """Encodes aligned faces `[N, H, W, 3]` in [-1, 1], of any size."""
        small = average_pool(images, self.input_size)
        w = self.trunk.project(small)  # [N, D]
        return jnp.repeat(w[:, None], self.num_ws, axis=1)  # [N, L, D]
