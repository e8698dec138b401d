"""StyleGAN2's generator with skip connections, unconditional.

One class covers NVlabs' stylegan2-ada-pytorch and rosinality's parameterisation (the
e4e decoder). They differ in names, layouts and one detail: in the demodulation, NVlabs
adds 1e-8 to the sum of squares of the raw weights, rosinality to that of the weights
times 1 / sqrt(k * k * I). The raw sum is of the order of k * k * I, so the relative
difference is about 1e-8, below float32's precision, and NVlabs' form is used for both.

Weights are stored as published, before the equalised learning rate's scale, so that
gradients and Adam update them as in the published code. Leaf names are NVlabs'.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models import ops
from guide_jax.models.shapes import Array

NOISE_MODES = ("const", "none")
Noise = str | jax.Array  # one of these, or keys [N] that draw the noise


class Mapping(nnx.Module):
    """The mapping network: `fc0`, `fc1`, ... and the average code `w_avg [D]`."""

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int,
        lr_multiplier: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.num_ws = num_ws
        self.num_layers = num_layers
        for i in range(num_layers):
            layer = ops.Linear(
                w_dim if i else z_dim, w_dim, lr_multiplier=lr_multiplier, rngs=rngs
            )
            setattr(self, f"fc{i}", layer)
        self.w_avg = ops.Buffer(jnp.zeros((w_dim,), jnp.float32))

    def __call__(
        self,
        z: Float[Array, "N Z"],
        psi: float | int = 1.0,
        cutoff: int | None = None,
    ) -> Float[Array, "N L D"]:
        """Maps latents z to codes w.

        Args:
            z: [N, Z], standard normal.
            psi: truncation, a Python number: 1 for none, 0 gives `w_avg`.
            cutoff: number of the L vectors to truncate, from the first; None for all.

        Returns:
            w [N, L, D], the same vector L times, apart from truncation.
        """
        return self.styles(ops.normalize_2nd_moment(z), psi, cutoff)

    def styles(
        self, x: Float[Array, "N I"], psi: float | int, cutoff: int | None
    ) -> Float[Array, "N L D"]:
        """Maps the first layer's input [N, I] to w [N, L, D], truncated by psi."""
        for i in range(self.num_layers):
            x = ops.leaky_relu(getattr(self, f"fc{i}")(x))  # [N, D]
        w = jnp.repeat(x[:, None], self.num_ws, axis=1)  # [N, L, D]
        if psi == 1:
            return w
        w_avg = self.w_avg[...][None, None, :]
        truncated = w_avg + psi * (w - w_avg)
        cutoff = self.num_ws if cutoff is None else cutoff
        return jnp.concatenate([truncated[:, :cutoff], w[:, cutoff:]], axis=1)


def _folded(noise: Noise, index: int) -> Noise:
    """Returns the noise of a part of the network; keys are other ones in each."""
    if isinstance(noise, str):
        return noise
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(noise)


def check_input(w: Float[Array, "... L D"], num_ws: int, noise: str) -> None:
    """Raises ValueError unless w is [N, num_ws, D] and the noise mode is known."""
    if w.ndim != 3 or w.shape[1] != num_ws:
        # JAX would silently clamp an index out of range.
        raise ValueError(
            f"w has shape {list(w.shape)}; this generator takes [N, {num_ws}, D]"
        )
    if noise not in NOISE_MODES:
        raise ValueError(f"unknown noise mode {noise!r}; choose one of {NOISE_MODES}")


class SynthesisLayer(nnx.Module):
    """A modulated 3x3 convolution, noise, bias and leaky ReLU."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        resolution: int,
        w_dim: int,
        *,
        up: bool,
        conv_clamp: float | int | None,
        rngs: nnx.Rngs,
    ):
        self.up = up
        self.conv_clamp = conv_clamp
        self.affine = ops.Linear(w_dim, fan_in, bias_init=1.0, rngs=rngs)
        self.weight = nnx.Param(ops.normal(rngs, (3, 3, fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros((fan_out,), jnp.float32))
        self.noise_strength = nnx.Param(jnp.zeros((), jnp.float32))
        self.noise_const = ops.Buffer(ops.normal(rngs, (resolution, resolution)))

    def __call__(
        self, x: Float[Array, "N H W I"], w: Float[Array, "N D"], noise: Noise
    ) -> Float[Array, "N h w O"]:
        """Maps x [N, H, W, I] with w [N, D] to [N, H, W, O] or [N, 2H, 2W, O]."""
        y = ops.modulated_conv(x, self.weight[...], self.affine(w), up=self.up)
        if not isinstance(noise, str):
            size = y.shape[1:3]
            planes = jax.vmap(lambda key: jax.random.normal(key, size, y.dtype))(noise)
            y = y + planes[..., None] * self.noise_strength[...]
        elif noise == "const":
            plane = self.noise_const[...] * self.noise_strength[...]  # [H, W]
            y = y + plane[None, :, :, None]
        y = y + ops.channelwise(self.bias[...], y)
        y = ops.leaky_relu(y, clamp=self.conv_clamp)
        return y.astype(x.dtype)


class ToRGB(nnx.Module):
    """A modulated 1x1 convolution to an image, without demodulation."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        w_dim: int,
        *,
        conv_clamp: float | int | None,
        rngs: nnx.Rngs,
    ):
        self.conv_clamp = conv_clamp
        self.affine = ops.Linear(w_dim, fan_in, bias_init=1.0, rngs=rngs)
        self.weight = nnx.Param(ops.normal(rngs, (1, 1, fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros((fan_out,), jnp.float32))

    def __call__(
        self, x: Float[Array, "N H W I"], w: Float[Array, "N D"]
    ) -> Float[Array, "N H W O"]:
        """Maps x [N, H, W, I] with w [N, D] to [N, H, W, O] in w's dtype."""
        weight = self.weight[0, 0]  # [I, O]
        style = self.affine(w) / math.sqrt(weight.shape[0])  # [N, I]
        # A kernel per example is cheap here and saves a pass over the activations.
        kernels = style[:, :, None] * weight[None]  # [N, I, O]
        y = ops.product("nhwi,nio->nhwo", x, kernels)
        y = y + ops.channelwise(self.bias[...], y)
        if self.conv_clamp is None:
            return y
        return jnp.clip(y, -self.conv_clamp, self.conv_clamp)


class SynthesisBlock(nnx.Module):
    """A resolution: `conv0` (doubles the size; absent at 4 px), `conv1`, `torgb`."""

    def __init__(
        self,
        fan_in: int | None,
        fan_out: int,
        resolution: int,
        w_dim: int,
        *,
        image_channels: int = 3,
        conv_clamp: float | int | None,
        rngs: nnx.Rngs,
    ):
        layer = functools.partial(
            SynthesisLayer,
            fan_out=fan_out,
            resolution=resolution,
            w_dim=w_dim,
            conv_clamp=conv_clamp,
            rngs=rngs,
        )
        if fan_in is None:
            self.const = nnx.Param(ops.normal(rngs, (resolution, resolution, fan_out)))
        else:
            self.conv0 = layer(fan_in, up=True)
        self.conv1 = layer(fan_out, up=False)
        self.torgb = ToRGB(
            fan_out, image_channels, w_dim, conv_clamp=conv_clamp, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "N H W I"] | None,
        image: Float[Array, "N H W C"] | None,
        w: Float[Array, "N K D"],
        noise: Noise,
        dtype: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Float[Array, "N _ _ _"]]:
        """Runs the block.

        Args:
            x: the previous block's activations [N, H, W, I]; None in the first block.
            image: the previous block's image [N, H, W, C]; None in the first block.
            w: the block's codes, one per layer: [N, 3, D], or [N, 2, D] in the first.
            noise: 'const', 'none', or keys [N] that draw it.
            dtype: dtype of the first block's activations; later blocks use x's dtype.

        Returns:
            `x` [N, 2H, 2W, O], `img` [N, 2H, 2W, C] and, except in the first block,
            `conv0`.
        """
        out: dict[str, Array] = {}
        if x is None:
            const = self.const[...].astype(dtype or self.const.dtype)
            x = jnp.broadcast_to(const, (w.shape[0], *const.shape))
        else:
            x = out["conv0"] = self.conv0(x, w[:, 0], _folded(noise, 0))
        out["x"] = self.conv1(x, w[:, -2], _folded(noise, 1))
        rgb = self.torgb(out["x"], w[:, -1])
        out["img"] = rgb if image is None else ops.upsample(image) + rgb
        return out


class Synthesis(nnx.Module):
    """The synthesis network: blocks `b4`, `b8`, ..., up to the image's resolution.

    Attributes:
        feature_name: name of the activation that the last toRGB reads, as in 'b32.x'.
    """

    def __init__(
        self,
        w_dim: int,
        channels: Sequence[int],
        *,
        image_channels: int = 3,
        conv_clamp: float | int | None,
        rngs: nnx.Rngs,
    ):
        self.resolutions = tuple(4 << i for i in range(len(channels)))
        self.num_ws = 2 * len(channels)
        self.feature_name = f"b{self.resolutions[-1]}.x"
        for i, resolution in enumerate(self.resolutions):
            block = SynthesisBlock(
                channels[i - 1] if i else None,
                channels[i],
                resolution,
                w_dim,
                image_channels=image_channels,
                conv_clamp=conv_clamp,
                rngs=rngs,
            )
            setattr(self, f"b{resolution}", block)

    def __call__(
        self,
        w: Float[Array, "... L D"],  # any rank: check_input's error is plainer
        noise: str = "const",
        dtype: jax.typing.DTypeLike | None = None,
        *,
        noise_seed: jax.Array | None = None,
    ) -> tuple[Float[Array, "N H W C"], dict[str, Float[Array, "N _ _ _"]]]:
        """Synthesises images from codes.

        Args:
            w: [N, L, D].
            noise: 'const' for the stored noise, 'none' for no noise.
            dtype: dtype of the convolutions; None for the parameters'.
            noise_seed: uint32 [N], from which each image's noise is drawn, instead of
                `noise`; for `config.compat`.

        Returns:
            The images [N, H, W, C], about [-1, 1] and not clipped, and the activations
            by name, NHWC: 'b8.x', 'b8.img', 'b8.conv0' and so on ('b4' has no conv0).
            The images always have the parameters' dtype.

        Raises:
            ValueError: w does not hold L vectors, or the noise mode is unknown.
        """
        check_input(w, self.num_ws, noise)
        x, image = None, cast(Any, None)
        keys = noise if noise_seed is None else jax.vmap(jax.random.key)(noise_seed)
        activations: dict[str, Array] = {}
        for i, resolution in enumerate(self.resolutions):
            # A block's toRGB shares its code with the next block's first layer.
            block_w = w[:, max(2 * i - 1, 0) : 2 * i + 2]
            drawn = _folded(keys, i)
            out = getattr(self, f"b{resolution}")(x, image, block_w, drawn, dtype)
            x, image = out["x"], out["img"]
            activations |= {f"b{resolution}.{name}": a for name, a in out.items()}
        return image, activations

    def affine_layers(self) -> list[tuple[int, ops.Linear]]:
        """Returns each layer that reads a style, and which of the L styles it reads."""
        layers = []
        for i, resolution in enumerate(self.resolutions):
            block = getattr(self, f"b{resolution}")
            if i:
                layers.append((2 * i - 1, block.conv0.affine))
            layers.append((2 * i, block.conv1.affine))
            layers.append((2 * i + 1, block.torgb.affine))
        return layers


class StyleGAN2(nnx.Module):
    """A StyleGAN2 generator.

    Args:
        resolution: side of the image, in pixels; a power of two.
        channels: channels of the activations at 4, 8, ..., `resolution` pixels.
        z_dim: length of a latent.
        w_dim: length of a style vector.
        mapping_layers: number of the mapping network's layers.
        mapping_lr_multiplier: factor on the mapping network's weights and biases.
        conv_clamp: limit on every layer's output; None for none.
        rngs: source of the initial weights and of the stored noise.

    Raises:
        ValueError: `channels` does not cover 4 to `resolution` pixels.
    """

    kind = "stylegan2"

    def __init__(
        self,
        *,
        resolution: int,
        channels: Sequence[int],
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        mapping_lr_multiplier: float = 0.01,
        conv_clamp: float | int | None = None,
        rngs: nnx.Rngs,
    ):
        channels = tuple(channels)
        if not channels or resolution != 2 << len(channels):
            raise ValueError(
                f"{len(channels)} channel counts do not fit {resolution} pixels:"
                " one is needed for each of 4, 8, ... up to the resolution"
            )
        # A tuple, because a dict would make the graph definition unhashable.
        self._config = (
            ("resolution", resolution),
            ("channels", channels),
            ("z_dim", z_dim),
            ("w_dim", w_dim),
            ("mapping_layers", mapping_layers),
            ("mapping_lr_multiplier", mapping_lr_multiplier),
            ("conv_clamp", conv_clamp),
        )
        self.resolution = resolution
        self.z_dim = z_dim
        self.w_dim = w_dim
        self.synthesis = Synthesis(w_dim, channels, conv_clamp=conv_clamp, rngs=rngs)
        self.num_ws = self.synthesis.num_ws
        mapping_args = (self.num_ws, mapping_layers, mapping_lr_multiplier)
        self.mapping = Mapping(z_dim, w_dim, *mapping_args, rngs=rngs)

    @property
    def feature_name(self) -> str:
        """Name of the activation that the last output head reads."""
        return self.synthesis.feature_name

    @property
    def config(self) -> dict:
        """The constructor's arguments; JSON types, except for tuples."""
        return dict(self._config)
