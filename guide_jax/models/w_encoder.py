"""A small inversion encoder: a face photo to the code that a generator shows it by."""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax.models.arcface import IRNet
from guide_jax.models.resample import average_pool


class WEncoder(nnx.Module):
    """Photo `[N, H, W, 3]` -> code minus w_avg, `[N, L, D]`.

    An IR-SE trunk on the whole face, averaged to a small square. It says one w, and
    repeats it for every layer: trained on a generator's own samples, it knows no
    others. With L = 1 it is for every generator of the same W space.
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
            num_ws: L of the generator, or 1.
            w_dim: D of the generator.
            input_size: side to which faces are averaged.
            units: residual units for each stage.
            widths: channels of the stem, then of each stage.
            rngs: for the initial weights.
        """
        self.num_ws, self.w_dim, self.input_size = num_ws, w_dim, input_size
        self.trunk = IRNet(units, widths, True, w_dim, input_size, rngs=rngs)

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {
            "num_ws": self.num_ws,
            "w_dim": self.w_dim,
            "input_size": self.input_size,
            "units": self.trunk.units,
            "widths": self.trunk.widths,
        }

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes aligned faces in [-1, 1] of any size."""
        small = average_pool(images, self.input_size)
        w = self.trunk.project(small)  # [N, D]
        return jnp.repeat(w[:, None], self.num_ws, axis=1)  # [N, L, D]
