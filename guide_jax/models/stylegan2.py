"""StyleGAN2's generator with skip connections, unconditional.

One class serves NVlabs' stylegan2-ada-pytorch and rosinality's parameterisation (the
e4e decoder). They differ in names, in layouts and in one number: NVlabs adds 1e-8 to
the demodulation's sum of squares of raw weights, rosinality to that of weights times
1 / sqrt(k * k * I). The raw sum is of the order of k * k * I, so the two differ by
about 1e-8 of it, less than float32's rounding, and NVlabs' form stands for both.

Weights are kept as published, before the equalised learning rate's scale: gradients and
Adam then move them as they move the published ones. Leaf names are NVlabs'.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax.models import ops

NOISE_MODES = ("const", "none")


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
        self, z: jax.Array, psi: float = 1.0, cutoff: int | None = None
    ) -> jax.Array:
        """Maps latents to codes.

        Args:
            z: [N, Z], standard normal.
            psi: truncation, a Python number: 1 changes nothing, 0 gives `w_avg`.
            cutoff: how many of the L vectors to truncate, from the first; None for all.

        Returns:
            w [N, L, D]; the same vector L times, but for truncation.
        """
        x = ops.normalize_2nd_moment(z)
        for i in range(self.num_layers):
            x = ops.leaky_relu(getattr(self, f"fc{i}")(x))  # [N, D]
        w = jnp.repeat(x[:, None], self.num_ws, axis=1)  # [N, L, D]
        if psi == 1:
            return w
        w_avg = self.w_avg[...]
        truncated = w_avg + psi * (w - w_avg)
        cutoff = self.num_ws if cutoff is None else cutoff
        return jnp.concatenate([truncated[:, :cutoff], w[:, cutoff:]], axis=1)


def check_input(w: jax.Array, num_ws: int, noise: str) -> None:
    """Raises ValueError unless w is [N, num_ws, D] and the noise mode is known."""
    if w.ndim != 3 or w.shape[1] != num_ws:
        # JAX would clamp a bad index and go on.
        raise ValueError(
            f"w has shape {list(w.shape)}, this generator needs [N, {num_ws}, D]"
        )
    if noise not in NOISE_MODES:
        raise ValueError(f"noise is {noise!r}, not one of {NOISE_MODES}")


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
        conv_clamp: float | None,
        rngs: nnx.Rngs,
    ):
        self.up = up
        self.conv_clamp = conv_clamp
        self.affine = ops.Linear(w_dim, fan_in, bias_init=1.0, rngs=rngs)
        self.weight = nnx.Param(ops.normal(rngs, (3, 3, fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros((fan_out,), jnp.float32))
        self.noise_strength = nnx.Param(jnp.zeros((), jnp.float32))
        self.noise_const = ops.Buffer(ops.normal(rngs, (resolution, resolution)))

    def __call__(self, x: jax.Array, w: jax.Array, noise: str) -> jax.Array:
        """Maps x [N, H, W, I] under w [N, D] to [N, H, W, O] or [N, 2H, 2W, O]."""
        y = ops.modulated_conv(x, self.weight[...], self.affine(w), up=self.up)
        if noise == "const":
            y = y + (self.noise_const[...] * self.noise_strength[...])[:, :, None]
        y = ops.leaky_relu(y + self.bias[...], clamp=self.conv_clamp)
        return y.astype(x.dtype)


class ToRGB(nnx.Module):
    """A modulated 1x1 convolution to RGB, without demodulation."""

    def __init__(
        self, fan_in: int, w_dim: int, *, conv_clamp: float | None, rngs: nnx.Rngs
    ):
        self.conv_clamp = conv_clamp
        self.affine = ops.Linear(w_dim, fan_in, bias_init=1.0, rngs=rngs)
        self.weight = nnx.Param(ops.normal(rngs, (1, 1, fan_in, 3)))
        self.bias = nnx.Param(jnp.zeros((3,), jnp.float32))

    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Maps x [N, H, W, I] under w [N, D] to [N, H, W, 3], of w's dtype."""
        weight = self.weight[0, 0]  # [I, 3]
        style = self.affine(w) / math.sqrt(weight.shape[0])  # [N, I]
        # Here a kernel per example is cheap, and spares a pass over the activations.
        kernels = style[:, :, None] * weight  # [N, I, 3]
        y = ops.product("nhwi,nio->nhwo", x, kernels) + self.bias[...]
        if self.conv_clamp is None:
            return y
        return jnp.clip(y, -self.conv_clamp, self.conv_clamp)


class SynthesisBlock(nnx.Module):
    """One resolution: `conv0` (doubles the size; not at 4 pixels), `conv1`, `torgb`."""

    def __init__(
        self,
        fan_in: int | None,
        fan_out: int,
        resolution: int,
        w_dim: int,
        *,
        conv_clamp: float | None,
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
        self.is_first = fan_in is None
        if fan_in is None:
            self.const = nnx.Param(ops.normal(rngs, (resolution, resolution, fan_out)))
        else:
            self.conv0 = layer(fan_in, up=True)
        self.conv1 = layer(fan_out, up=False)
        self.torgb = ToRGB(fan_out, w_dim, conv_clamp=conv_clamp, rngs=rngs)

    def __call__(
        self,
        x: jax.Array | None,
        image: jax.Array | None,
        w: jax.Array,
        noise: str,
        dtype: jax.typing.DTypeLike | None = None,
    ) -> dict[str, jax.Array]:
        """Runs the block.

        Args:
            x: activations of the block before [N, H, W, I]; None in the first.
            image: its image [N, H, W, 3]; None in the first.
            w: the block's codes, one per layer, [N, 3, D], in the first [N, 2, D].
            noise: 'const' or 'none'.
            dtype: of the first block's activations; those after it have their x's.

        Returns:
            `x` [N, 2H, 2W, O], `img` [N, 2H, 2W, 3] and, but in the first, `conv0`.
        """
        out = {}
        if self.is_first:
            x = self.const[...].astype(dtype or self.const.dtype)
            x = jnp.broadcast_to(x, (w.shape[0], *x.shape))
        else:
            x = out["conv0"] = self.conv0(x, w[:, 0], noise)
        out["x"] = self.conv1(x, w[:, -2], noise)
        rgb = self.torgb(out["x"], w[:, -1])
        out["img"] = rgb if self.is_first else ops.upsample(image) + rgb
        return out


class Synthesis(nnx.Module):
    """The synthesis network: blocks `b4`, `b8`, ... up to the image's resolution.

    Attributes:
        feature_name: the activation that the last toRGB reads, such as 'b32.x'.
    """

    def __init__(
        self,
        w_dim: int,
        channels: Sequence[int],
        *,
        conv_clamp: float | None,
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
                conv_clamp=conv_clamp,
                rngs=rngs,
            )
            setattr(self, f"b{resolution}", block)

    def __call__(
        self,
        w: jax.Array,
        noise: str = "const",
        dtype: jax.typing.DTypeLike | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Makes images from codes.

        Args:
            w: [N, L, D].
            noise: 'const' for the stored noise, 'none' for no noise.
            dtype: that convolutions run in; None: the parameters'.

        Returns:
            The images [N, H, W, 3], about [-1, 1] and not clipped, and the activations
            by name, NHWC: 'b8.x', 'b8.img', 'b8.conv0' and so on ('b4' has no conv0).
            Whatever `dtype` is, the images have the parameters'.

        Raises:
            ValueError: w has not L vectors, or the noise's name is unknown.
        """
        check_input(w, self.num_ws, noise)
        x = image = None
        activations = {}
        for i, resolution in enumerate(self.resolutions):
            # A block's toRGB shares its code with the next block's first layer.
            block_w = w[:, max(2 * i - 1, 0) : 2 * i + 2]
            out = getattr(self, f"b{resolution}")(x, image, block_w, noise, dtype)
            x, image = out["x"], out["img"]
            activations |= {f"b{resolution}.{name}": a for name, a in out.items()}
        return image, activations


class StyleGAN2(nnx.Module):
    """A StyleGAN2 generator.

    Args:
        resolution: of the image, in pixels; a power of two.
        channels: of the activations at 4, 8, ... `resolution` pixels.
        z_dim: length of a latent.
        w_dim: length of a style vector.
        mapping_layers: number of the mapping network's layers.
        mapping_lr_multiplier: factor on their weights and biases.
        conv_clamp: limit on every layer's output; None for none.
        rngs: source of the initial weights and of the stored noise.

    Raises:
        ValueError: `channels` does not reach from 4 to `resolution`.
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
        conv_clamp: float | None = None,
        rngs: nnx.Rngs,
    ):
        channels = tuple(channels)
        if not channels or resolution != 2 << len(channels):
            raise ValueError(
                f"{len(channels)} channel counts do not make {resolution} pixels"
            )
        # As a tuple, for a dict would make the graph definition unhashable.
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
    def config(self) -> dict:
        """The constructor's arguments, fit for JSON."""
        return dict(self._config)
