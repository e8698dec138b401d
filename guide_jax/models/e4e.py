"""The inversion encoder e4e (arXiv 2102.02766): maps a face photo to a code per layer.

It consists of an IR-SE trunk without a head, a feature pyramid over the trunk's last
three stages, and a small network (`Style`) for each of the generator's L codes. The
published encoder was trained progressively; this is its final stage, for inference.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.arcface import IR50_UNITS, Stem, residual_blocks
from guide_jax.models.ops import Buffer, Linear
from guide_jax.models.photo_encoder import PhotoEncoder
from guide_jax.models.resample import average_pool, bilinear_matrix
from guide_jax.models.shapes import Array

# Codes from MIDDLE on read the pyramid's middle map, codes from FINE on the finest.
MIDDLE, FINE = 3, 7
LEAKY_SLOPE = 0.01  # PyTorch's default, not StyleGAN2's 0.2


class Style(nnx.Module):
    """Maps a square feature map to one code, halving the map down to one pixel."""

    def __init__(self, inputs: int, w_dim: int, size: int, *, rngs: nnx.Rngs):
        channels = [inputs] + [w_dim] * (size.bit_length() - 1)
        self.convs = nnx.List(
            nnx.Conv(channels[i], w_dim, (3, 3), 2, padding=1, rngs=rngs)
            for i in range(len(channels) - 1)
        )
        self.linear = Linear(w_dim, w_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "N S S I"]) -> Float[Array, "N D"]:
        """Maps [N, size, size, inputs] to [N, D]."""
        for conv in self.convs:
            x = jax.nn.leaky_relu(conv(x), LEAKY_SLOPE)
        return self.linear(x[:, 0, 0])


class E4E(PhotoEncoder):
    """Photo `[N, H, W, 3]` -> code minus w_avg, `[N, L, D]`.

    Batch norms are in eval mode, as in `IRNet`.

    Attributes:
        w_avg: [L, D], the mean code that codes are relative to. It comes from the
            encoder's training and may differ from the generator's mean.
    """

    kind: ClassVar[str] = "e4e"

    def __init__(
        self,
        *,
        num_ws: int = 18,
        w_dim: int = 512,
        input_size: int = 256,
        units: Sequence[int] = IR50_UNITS,
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        rngs: nnx.Rngs,
    ):
        """Builds the encoder with random weights and a w_avg of zero.

        Args:
            num_ws: the generator's L.
            w_dim: the generator's D.
            input_size: side that faces are averaged to, in pixels.
            units: residual units per stage; each stage halves the resolution.
            widths: channels of the stem, then of each stage.
            rngs: source of the initial weights (its `params` stream).

        Raises:
            ValueError: there are fewer than three stages, the number of widths is not
                the number of stages plus one, or the last stage's side is not a power
                of two of at least 2.
        """
        super().__init__(num_ws, w_dim, input_size, units, widths)
        side, rest = divmod(input_size, 2 ** len(units))
        if len(units) < 3 or rest or side < 2 or side & (side - 1):
            raise ValueError(
                "the feature pyramid needs at least three stages and a power of two"
                f" (at least 2) as its smallest side; {len(units)} stages reduce"
                f" {input_size} pixels to {input_size / 2 ** len(units):g}"
            )
        self.stem = Stem(widths[0], rngs=rngs)
        self.blocks = residual_blocks(units, widths, se=True, rngs=rngs)
        self.laterals = nnx.List(
            nnx.Conv(width, widths[-1], (1, 1), rngs=rngs)
            for width in (widths[-2], widths[-3])
        )
        self.styles = nnx.List(
            Style(widths[-1], w_dim, side << _level(i), rngs=rngs)
            for i in range(num_ws)
        )
        self.w_avg = Buffer(jnp.zeros((num_ws, w_dim)))

    def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N L D"]:
        """Encodes aligned faces `[N, H, W, 3]` in [-1, 1], of any size."""
        maps = self.pyramid(self.trunk(average_pool(images, self.input_size)))
        first, *deltas = (
            style(maps[_level(i)]) for i, style in enumerate(self.styles)
        )  # each [N, D]
        return jnp.stack([first, *(first + delta for delta in deltas)], axis=1)

    def trunk(self, images: Float[Array, "N S S 3"]) -> list[Float[Array, "N _ _ _"]]:
        """Returns the feature maps of the last three stages, the largest first.

        Args:
            images: [N, input_size, input_size, 3].
        """
        x = self.stem(images)
        blocks, stages = iter(self.blocks), []
        for count in self.units:
            for _ in range(count):
                x = next(blocks)(x)
            stages.append(x)
        return stages[-3:]

    def pyramid(
        self, stages: Sequence[Float[Array, "N _ _ _"]]
    ) -> list[Float[Array, "N _ _ _"]]:
        """Returns the maps that the styles read, the smallest first.

        Args:
            stages: from `trunk`.
        """
        *finer, x = stages
        maps = [x]
        for lateral, stage in zip(self.laterals, reversed(finer), strict=True):
            x = _double(x) + lateral(stage)
            maps.append(x)
        return maps


def _level(i: int) -> int:
    """Returns the index of the pyramid map that code i reads; 0 is the smallest."""
    return (i >= MIDDLE) + (i >= FINE)


def _double(x: Float[Array, "N S S C"]) -> Float[Array, "N 2*S 2*S C"]:
    """Doubles the side of [N, S, S, C] bilinearly, with aligned corners."""
    side = x.shape[1]
    matrix = jnp.asarray(bilinear_matrix(side, 2 * side, align_corners=True), x.dtype)
    return jnp.einsum("sh,nhwc,tw->nstc", matrix, x, matrix, precision="highest")
