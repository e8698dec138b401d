"""Swin Transformer V2 (arXiv 2111.09883): attention within windows of a feature map.

The trunk of GOAE's encoder. Stochastic depth is off, except in `config.compat`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Float64, Int64

from guide_jax.models.ops import channelwise
from guide_jax.models.shapes import Array

PATCH = 4  # side of the patches that the first convolution reads, in pixels
MLP_RATIO = 4
BIAS_HIDDEN = 512  # hidden units of the network that computes the position bias
BIAS_LIMIT = 16.0
LARGEST_SCALE = 100.0  # of the cosines between queries and keys
DROP_PATH = 0.2  # published rate of stochastic depth in the last block
NORM_EPSILON = 1e-5  # PyTorch's; Flax's is 1e-6


class Attention(nnx.Module):
    """Multi-head attention among the T tokens of a window, on scaled cosines.

    A small network maps the distance between two tokens to a bias per head, so windows
    may have another size than in pre-training.
    """

    def __init__(
        self, channels: int, heads: int, window: int, pretrained: int, *, rngs: nnx.Rngs
    ):
        """Builds the layer.

        Args:
            channels: C, a multiple of `heads`.
            heads: number of heads.
            window: side of the windows; T is its square.
            pretrained: side of the windows in pre-training, which scales distances.
            rngs: source of the initial weights.
        """
        self.heads, self.window, self.pretrained = heads, window, pretrained
        self.qkv = nnx.Linear(channels, 3 * channels, use_bias=False, rngs=rngs)
        self.query_bias = nnx.Param(jnp.zeros((channels,)))
        self.value_bias = nnx.Param(jnp.zeros((channels,)))
        self.log_scale = nnx.Param(jnp.full((heads,), math.log(10)))
        self.bias_hidden = nnx.Linear(2, BIAS_HIDDEN, rngs=rngs)
        self.bias_out = nnx.Linear(BIAS_HIDDEN, heads, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "N M T C"], apart: Bool[Array, "M T T"] | None
    ) -> Float[Array, "N M T C"]:
        """Maps the M windows of each image.

        Args:
            x: [N, M, T, C].
            apart: [M, T, T], true for tokens that must not see each other.
        """
        N, M, T, C = x.shape
        queries, keys, values = jnp.split(self.qkv(x), 3, axis=-1)
        queries = queries + channelwise(self.query_bias[...], x)
        values = values + channelwise(self.value_bias[...], x)
        by_head = (N, M, T, self.heads, C // self.heads)
        scale = jnp.exp(jnp.minimum(self.log_scale[...], math.log(LARGEST_SCALE)))
        logits = jnp.einsum(
            "nmqhd,nmkhd->nmhqk",
            _unit(queries.reshape(by_head)),
            _unit(keys.reshape(by_head)),
        )
        logits = logits * scale[None, None, :, None, None] + self.bias()
        if apart is not None:
            logits = logits + jnp.where(apart, -100.0, 0.0)[None, :, None]
        weights = jax.nn.softmax(logits, axis=-1)
        mixed = jnp.einsum("nmhqk,nmkhd->nmqhd", weights, values.reshape(by_head))
        return self.out(mixed.reshape(x.shape))

    def bias(self) -> Float[Array, "1 1 heads T T"]:
        """Returns what is added to the logit of each pair of tokens."""
        dtype = self.bias_hidden.kernel[...].dtype
        distances = jnp.asarray(coordinates(self.window, self.pretrained), dtype)
        table = self.bias_out(jax.nn.relu(self.bias_hidden(distances)))
        table = BIAS_LIMIT * jax.nn.sigmoid(table.reshape(-1, self.heads))
        pairs = table[offsets(self.window)]  # [T, T, heads]
        return pairs.transpose(2, 0, 1)[None, None]


class Block(nnx.Module):
    """Attention and an MLP, each normalised after it and added to its input.

    With a shift, the windows are moved by that many pixels to the right and down; the
    map is rolled for it, and what meets only through rolling stays apart.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        pretrained: int,
        shift: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.window, self.shift = window, shift
        self.attention = Attention(channels, heads, window, pretrained, rngs=rngs)
        self.norm1 = norm(channels, rngs=rngs)
        self.expand = nnx.Linear(channels, MLP_RATIO * channels, rngs=rngs)
        self.contract = nnx.Linear(MLP_RATIO * channels, channels, rngs=rngs)
        self.norm2 = norm(channels, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "N S S C"],
        rate: float = 0.0,
        key: jax.Array | None = None,
    ) -> Float[Array, "N S S C"]:
        """Maps [N, S, S, C] to [N, S, S, C]; S is a multiple of the window.

        With a key, each branch of an image is left out with probability `rate`.
        """
        whole = (1, 2, 3)  # an image's branch is left out as a whole
        x = x + dropped(self.norm1(self._attend(x)), rate, folded(key, 0), whole)
        hidden = jax.nn.gelu(self.expand(x), approximate=False)
        branch = self.norm2(self.contract(hidden))
        return x + dropped(branch, rate, folded(key, 1), whole)

    def _attend(self, x: Float[Array, "N S S C"]) -> Float[Array, "N S S C"]:
        N, S, _, C = x.shape
        window, shift, per_side = self.window, self.shift, S // self.window
        apart = None
        if shift:
            x = jnp.roll(x, (-shift, -shift), (1, 2))
            region = regions(S, window, shift)
            apart = jnp.asarray(region[:, None] != region[:, :, None])
        x = x.reshape(N, per_side, window, per_side, window, C).swapaxes(2, 3)
        x = self.attention(x.reshape(N, per_side**2, window**2, C), apart)
        x = x.reshape(N, per_side, per_side, window, window, C).swapaxes(2, 3)
        return jnp.roll(x.reshape(N, S, S, C), (shift, shift), (1, 2))


class Merge(nnx.Module):
    """Halves the resolution and doubles the channels."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4 * channels, 2 * channels, use_bias=False, rngs=rngs)
        self.norm = norm(2 * channels, rngs=rngs)

    def __call__(self, x: Float[Array, "N S S C"]) -> Float[Array, "N h w O"]:
        """Maps [N, S, S, C] to [N, S / 2, S / 2, 2 C]."""
        N, S, _, C = x.shape
        x = x.reshape(N, S // 2, 2, S // 2, 2, C)
        # Of the four pixels, those of the left column come first.
        x = x.transpose(0, 1, 3, 4, 2, 5)
        return self.norm(self.linear(x.reshape(N, S // 2, S // 2, 4 * C)))


class Swin(nnx.Module):
    """The trunk: patches of 4 pixels, then stages that each end in a `Merge`."""

    def __init__(
        self,
        input_size: int,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        pretrained: Sequence[int],
        *,
        rngs: nnx.Rngs,
    ):
        """Builds the trunk with random weights.

        Args:
            input_size: side of the images in pixels.
            width: channels of the first stage; each stage has twice its predecessor's.
            depths: blocks per stage; every second block's windows are shifted.
            heads: attention heads per stage.
            window: side of the windows; stages whose map isn't larger have one window.
            pretrained: side of the windows in pre-training, per stage.
            rngs: source of the initial weights (its `params` stream).

        Raises:
            ValueError: the settings do not fit together.
        """
        self.input_size = input_size
        self.embed = nnx.Conv(
            3, width, (PATCH, PATCH), PATCH, padding="VALID", rngs=rngs
        )
        self.norm_in = norm(width, rngs=rngs)
        self.blocks: nnx.List = nnx.List()
        self.merges: nnx.List = nnx.List()
        for stage, side in enumerate(sides(input_size, len(depths))):
            channels, inner = width << stage, min(window, side)
            if side % inner or channels % heads[stage]:
                raise ValueError(
                    f"stage {stage} of the trunk: {side} pixels and {channels} channels"
                    f" do not divide into windows of {inner} and {heads[stage]} heads"
                )
            shift = inner // 2 if side > inner else 0
            if stage:
                self.merges.append(Merge(channels // 2, rngs=rngs))
            self.blocks.append(
                nnx.List(
                    Block(
                        channels,
                        heads[stage],
                        inner,
                        pretrained[stage],
                        shift * (i % 2),
                        rngs=rngs,
                    )
                    for i in range(depths[stage])
                )
            )
        self.norm_out = norm(width << (len(depths) - 1), rngs=rngs)

    def __call__(
        self, images: Float[Array, "N S S 3"], key: jax.Array | None = None
    ) -> list[Float[Array, "N _ _ _"]]:
        """Returns each stage's input, then the normalised output of the last.

        Args:
            images: [N, input_size, input_size, 3].
            key: draws which branches are left out, as in training; None keeps all.
        """
        count = sum(len(blocks) for blocks in self.blocks)
        rates = iter(np.linspace(0, DROP_PATH, count))
        x = self.norm_in(self.embed(images))
        maps = [x]
        for stage, blocks in enumerate(self.blocks):
            if stage:
                x = self.merges[stage - 1](x)
                maps.append(x)
            for i, block in enumerate(blocks):
                x = block(x, float(next(rates)), folded(key, stage, i))
        return [*maps, self.norm_out(x)]


def folded(key: jax.Array | None, *parts: int) -> jax.Array | None:
    """Returns a part's key, from the whole's; None for None."""
    for part in parts:
        key = None if key is None else jax.random.fold_in(key, part)
    return key


def dropped(
    x: Float[Array, "..."],
    rate: float,
    key: jax.Array | None,
    together: tuple[int, ...] = (),
) -> Float[Array, "..."]:
    """Returns x with values left out and the others scaled; unchanged without a key.

    Args:
        x: any array.
        rate: share that is left out, in [0, 1].
        key: chooses which.
        together: axes along which values are left out together.
    """
    if key is None:
        return x
    return nnx.Dropout(rate, broadcast_dims=together, deterministic=False)(x, rngs=key)


def sides(input_size: int, stages: int) -> list[int]:
    """Returns the side of each stage's map.

    Raises:
        ValueError: the input's side can't be halved that often.
    """
    if input_size % (PATCH << (stages - 1)):
        raise ValueError(
            f"{input_size} pixels can't be reduced to {stages} stages; use a multiple"
            f" of {PATCH << (stages - 1)}"
        )
    return [input_size // (PATCH << stage) for stage in range(stages)]


def norm(channels: int, *, affine: bool = True, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns PyTorch's layer norm over the channels."""
    return nnx.LayerNorm(
        channels,
        epsilon=NORM_EPSILON,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        rngs=rngs,
    )


# The cached arrays are shared, so they are made read-only.


@functools.cache
def coordinates(window: int, pretrained: int) -> Float64[np.ndarray, "D D 2"]:
    """Returns the scaled vertical and horizontal distances within a window.

    Args:
        window: side of the window.
        pretrained: side in pre-training; its longest distance is mapped to log2(9) / 3.

    Returns:
        [2 * window - 1, 2 * window - 1, 2]: log2(1 + |d|) / 3 with d's sign.
    """
    along = np.arange(1 - window, window) * 8 / max(1, pretrained - 1)
    along = np.sign(along) * np.log2(1 + np.abs(along)) / 3
    found = np.stack(np.meshgrid(along, along, indexing="ij"), -1)
    found.setflags(write=False)
    return found


@functools.cache
def offsets(window: int) -> Int64[np.ndarray, "T T"]:
    """Returns where `coordinates`, flattened, has the distance of each pair of tokens.

    Returns:
        [T, T]: for query and key, the rows' and the columns' difference.
    """
    row, column = np.divmod(np.arange(window**2), window)
    down, right = (x[:, None] - x + window - 1 for x in (row, column))
    found = down * (2 * window - 1) + right
    found.setflags(write=False)
    return found


@functools.cache
def regions(side: int, window: int, shift: int) -> Int64[np.ndarray, "M T"]:
    """Returns a number for each token of a rolled map; neighbours have equal ones.

    Returns:
        [M, T], the windows in reading order.
    """
    at = np.arange(side)
    part = (at >= side - window).astype(int) + (at >= side - shift)
    region = part[:, None] * 3 + part
    per_side = side // window
    region = region.reshape(per_side, window, per_side, window).swapaxes(1, 2)
    found = region.reshape(per_side**2, window**2)
    found.setflags(write=False)
    return found


def _unit(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
