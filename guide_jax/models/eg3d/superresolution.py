"""Enlarges rendered features to the final image, with the code's last style."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.shapes import Array
from guide_jax.models.stylegan2 import SynthesisBlock


class SuperResolution(nnx.Module):
    """StyleGAN2 blocks `block0`, `block1`, ... without noise; each doubles the size.

    Args:
        fan_in: channels of the features; the first three are also an image.
        channels: channels of the blocks' activations.
        resolution: side of the final image, in pixels.
        w_dim: length of a style vector.
        conv_clamp: limit on every layer's output; None for none.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        fan_in: int,
        channels: Sequence[int],
        resolution: int,
        w_dim: int,
        *,
        conv_clamp: float | int | None,
        rngs: nnx.Rngs,
    ):
        self.size = resolution >> len(channels)
        self.num_blocks = len(channels)
        for i, fan_out in enumerate(channels):
            block = SynthesisBlock(
                fan_in,
                fan_out,
                self.size << (i + 1),
                w_dim,
                conv_clamp=conv_clamp,
                rngs=rngs,
            )
            setattr(self, f"block{i}", block)
            fan_in = fan_out

    def __call__(
        self,
        features: Float[Array, "N S S C"],
        w: Float[Array, "N D"],
        dtype: jax.typing.DTypeLike | None = None,
    ) -> Float[Array, "N H W 3"]:
        """Maps features [N, S, S, C] of any size with w [N, D] to images [N, H, W, 3].

        Args:
            features: rendered, in about [-1, 1].
            w: the last style of each code.
            dtype: dtype of the convolutions; None for the features'.
        """
        N, S, _, C = features.shape
        if self.size != S:
            shape = (N, self.size, self.size, C)
            features = jax.image.resize(features, shape, "linear", antialias=True)
        x, image = features.astype(dtype or features.dtype), features[..., :3]
        styles = jnp.repeat(w[:, None], 3, axis=1)  # conv0, conv1 and torgb
        for i in range(self.num_blocks):
            out = getattr(self, f"block{i}")(x, image, styles, "none")
            x, image = out["x"], out["img"]
        return image
