"""The inversion encoder e4e (arXiv 2102.02766): a face photo to a code for each layer.

It is an IR-SE trunk without a head, a feature pyramid over its last three stages, and a
small network (`Style`) for each of the generator's L codes. The published one was
trained stage by stage; this is its last stage, the one for use.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax.models.arcface import IR50_UNITS, Stem, residual_blocks
from guide_jax.models.ops import Buffer, Linear
from guide_jax.models.resample import average_pool, bilinear_matrix

# From these codes on, the pyramid's middle map is looked at, then the finest one.
MIDDLE, FINE = 3, 7
LEAKY_SLOPE = 0.01  # PyTorch's default, not StyleGAN2's 0.2


class Style(nnx.Module):
    """From a square feature map to one code, halving it until one pixel is left."""

    def __init__(self, inputs: int, w_dim: int, size: int, *, rngs: nnx.Rngs):
        channels = [inputs] + [w_dim] * (size.bit_length() - 1)
        self.convs = nnx.List(
            nnx.Conv(channels[i], w_dim, (3, 3), 2, padding=1, rngs=rngs)
            for i in range(len(channels) - 1)
        )
        self.linear = Linear(w_dim, w_dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, size, size, inputs] to [N, D]."""
        for conv in self.convs:
            x = jax.nn.leaky_relu(conv(x), LEAKY_SLOPE)
        return self.linear(x[:, 0, 0])


class E4E(nnx.Module):
    """Photo `[N, H, W, 3]` -> code minus w_avg, `[N, L, D]`.

    Batch norms are in eval mode, as `IRNet`'s.

    Attributes:
        w_avg: [L, D], what the codes are relative to: its training's mean code, not
            that of the generator it is used with.
        config: the constructor's arguments, of JSON types but for tuples.
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
            num_ws: L of the generator.
            w_dim: D of the generator.
            input_size: side to which faces are averaged.
            units: residual units for each stage; each halves the resolution.
            widths: channels of the stem, then of each stage.
            rngs: draws the weights from its `params` stream.

        Raises:
            ValueError: there are less than three stages, not one width more than
                stages, or the last stage's side is no power of two from 2 on.
        """
        self.num_ws, self.w_dim, self.input_size = num_ws, w_dim, input_size
        self.units, self.widths = tuple(units), tuple(widths)
        side, rest = divmod(input_size, 2 ** len(units))
        if len(units) < 3 or rest or side < 2 or side & (side - 1):
            raise ValueError(
                f"a feature pyramid needs three stages and a power of two as its"
                f" smallest side, not {len(units)} stages that leave {side} pixels of"
                f" {input_size}"
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

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {
            "num_ws": self.num_ws,
            "w_dim": self.w_dim,
            "input_size": self.input_size,
            "units": self.units,
            "widths": self.widths,
        }

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes aligned faces in [-1, 1] of any size."""
        maps = self.pyramid(self.trunk(average_pool(images, self.input_size)))
        first, *deltas = (
            style(maps[_level(i)]) for i, style in enumerate(self.styles)
        )  # each [N, D]
        return jnp.stack([first, *(first + delta for delta in deltas)], axis=1)

    def trunk(self, images: jax.Array) -> list[jax.Array]:
        """Returns what the last three stages give, the largest map first.

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

    def pyramid(self, stages: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns the maps that the styles look at, the smallest first.

        Args:
            stages: as from `trunk`.
        """
        *finer, x = stages
        maps = [x]
        for lateral, stage in zip(self.laterals, reversed(finer), strict=True):
            x = _double(x) + lateral(stage)
            maps.append(x)
        return maps


def _level(i: int) -> int:
    """Returns which of the pyramid's maps code i comes from; 0 is the smallest."""
    return (i >= MIDDLE) + (i >= FINE)


def _double(x: jax.Array) -> jax.Array:
    """Doubles the side of [N, S, S, C], corners kept in place."""
    side = x.shape[1]
    matrix = jnp.asarray(bilinear_matrix(side, 2 * side, align_corners=True), x.dtype)
    return jnp.einsum("sh,nhwc,tw->nstc", matrix, x, matrix, precision="highest")
