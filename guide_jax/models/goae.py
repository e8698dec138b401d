"""GOAE's inversion encoder for EG3D (arXiv 2303.12326): a face photo to a code a layer.

All layers share a base code, and all but the first add an offset to it. The offsets
come in three groups, from coarse to fine: queries that are computed from the whole face
attend to a feature map, which is larger in finer groups. The published encoder was
trained group by group; this is its final stage.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.shapes import Array
from guide_jax.models.swin import Swin, dropped, folded, norm, sides

STAGES = 4  # a query map, and a map for each of three groups
LEAKY_SLOPE = 0.01  # PyTorch's default, not StyleGAN2's 0.2
ATTENTION_HEADS = 4
DROPOUT = 0.1  # in the cross-attentions, in training


class MLP(nnx.Module):
    """Dense layers with leaky ReLUs between them, and after the last if `active`."""

    def __init__(self, *widths: int, active: bool = False, rngs: nnx.Rngs):
        self.active = active
        self.layers = nnx.List(
            nnx.Linear(inputs, outputs, rngs=rngs)
            for inputs, outputs in itertools.pairwise(widths)
        )

    def __call__(self, x: Float[Array, "N T I"]) -> Float[Array, "N T O"]:
        """Maps [N, T, I] to [N, T, O]."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.active or i < len(self.layers) - 1:
                x = jax.nn.leaky_relu(x, LEAKY_SLOPE)
        return x


class Query(nnx.Module):
    """Maps the T tokens of a feature map to K vectors."""

    def __init__(self, tokens: int, channels: int, count: int, w_dim: int, *, rngs):
        self.spatial = MLP(tokens, tokens, count, rngs=rngs)
        self.channel = MLP(channels, channels, w_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "N T C"]) -> Float[Array, "N K D"]:
        """Maps [N, T, C] to [N, K, D]."""
        mixed = self.spatial(x.swapaxes(1, 2)).swapaxes(1, 2)  # [N, K, C]
        return self.channel(mixed + x.max(1, keepdims=True))


class CrossAttention(nnx.Module):
    """Lets queries attend to tokens, then maps each by a residual MLP."""

    def __init__(self, w_dim: int, *, rngs: nnx.Rngs):
        self.query, self.key, self.value, self.out = (
            nnx.Linear(w_dim, w_dim, rngs=rngs) for _ in range(4)
        )
        self.norm = norm(w_dim, affine=False, rngs=rngs)
        self.expand = nnx.Linear(w_dim, 2 * w_dim, rngs=rngs)
        self.contract = nnx.Linear(2 * w_dim, w_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "N K D"],
        tokens: Float[Array, "N T D"],
        key: jax.Array | None = None,
    ) -> Float[Array, "N K D"]:
        """Maps queries [N, K, D] and tokens [N, T, D] to [N, K, D].

        With a random key, there is dropout, as in training.
        """
        queries, keys, values = (
            y.reshape(*y.shape[:2], ATTENTION_HEADS, -1)
            for y in (self.query(x), self.key(tokens), self.value(tokens))
        )
        found = nnx.dot_product_attention(
            queries,
            keys,
            values,
            dropout_rng=folded(key, 0),
            dropout_rate=0.0 if key is None else DROPOUT,
            broadcast_dropout=False,
        )
        out = self.out(found.reshape(x.shape))
        x = self.norm(x + dropped(out, DROPOUT, folded(key, 1)))
        hidden = dropped(jax.nn.relu(self.expand(x)), DROPOUT, folded(key, 2))
        return x + dropped(self.contract(hidden), DROPOUT, folded(key, 3))


class GOAE(nnx.Module):
    """Photo `[N, H, W, 3]` -> code minus the generator's w_avg, `[N, L, D]`.

    Attributes:
        num_ws: L: one, plus the layers of all groups.
        w_dim: D.
        config: the constructor's arguments; JSON types, except for tuples.
    """

    kind: ClassVar[str] = "goae"

    def __init__(
        self,
        *,
        groups: Sequence[int] = (3, 3, 7),
        w_dim: int = 512,
        input_size: int = 256,
        width: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 16,
        pretrained_windows: Sequence[int] = (12, 12, 12, 6),
        rngs: nnx.Rngs,
    ):
        """Builds the encoder with random weights.

        Args:
            groups: the generator's layers in the coarse, middle and fine group.
            w_dim: the generator's D, a multiple of four.
            input_size: side that faces are resized to, in pixels.
            width: channels of the trunk's first stage; each further stage doubles them.
            depths: the trunk's blocks per stage.
            heads: the trunk's attention heads per stage.
            window: side of the trunk's windows.
            pretrained_windows: side of the windows in pre-training, per stage.
            rngs: source of the initial weights (its `params` stream).

        Raises:
            ValueError: there are not four stages and three groups, or the sizes do not
                fit together.
        """
        per_stage = depths, heads, pretrained_windows
        if len(groups) != STAGES - 1 or any(len(x) != STAGES for x in per_stage):
            raise ValueError(
                f"the encoder needs {STAGES - 1} groups of layers and {STAGES} stages,"
                f" not {len(groups)} and {[len(x) for x in per_stage]}"
            )
        if w_dim % ATTENTION_HEADS:
            raise ValueError(f"w_dim is {w_dim}; it must divide by {ATTENTION_HEADS}")
        self.groups, self.w_dim, self.input_size = tuple(groups), w_dim, input_size
        self.width, self.window = width, window
        self.depths, self.heads = tuple(depths), tuple(heads)
        self.pretrained_windows = tuple(pretrained_windows)
        self.trunk = Swin(
            input_size, width, depths, heads, window, pretrained_windows, rngs=rngs
        )
        fine, middle, coarse, last = (n**2 for n in sides(input_size, STAGES))  # tokens
        self.base = Query(last, 8 * width, 1, w_dim, rngs=rngs)
        self.queries = nnx.List(
            Query(last, 8 * width, count, w_dim, rngs=rngs) for count in groups
        )
        # From coarse to fine, as all that follows.
        self.channels = nnx.List(
            MLP(*widths, w_dim, active=True, rngs=rngs)
            for widths in ((4 * width,), (2 * width,), (width, 2 * width))
        )
        self.enlarge = nnx.List(
            MLP(few, 2 * few, many, active=True, rngs=rngs)
            for few, many in ((coarse, middle), (middle, fine))
        )
        self.attentions = nnx.List(CrossAttention(w_dim, rngs=rngs) for _ in groups)

    @property
    def num_ws(self) -> int:
        """L."""
        return 1 + sum(self.groups)

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {
            "groups": self.groups,
            "w_dim": self.w_dim,
            "input_size": self.input_size,
            "width": self.width,
            "depths": self.depths,
            "heads": self.heads,
            "window": self.window,
            "pretrained_windows": self.pretrained_windows,
        }

    def __call__(
        self, images: Float[Array, "N H W 3"], key: jax.Array | None = None
    ) -> Float[Array, "N L D"]:
        """Encodes faces in EG3D's crop, `[N, H, W, 3]` in [-1, 1], of any size.

        They are resized bicubically with antialiasing, as by Pillow. With a random key,
        dropout and stochastic depth are on, as in training, for `config.compat`.
        """
        base, offsets = self.parts(images, key)
        return jnp.concatenate([base, base + offsets], axis=1)

    def parts(
        self, images: Float[Array, "N H W 3"], key: jax.Array | None = None
    ) -> tuple[Float[Array, "N 1 D"], Float[Array, "N _ D"]]:
        """Returns the base code, and what is added to it in all layers but the first.

        Args:
            images: as in `__call__`.
            key: as in `__call__`.

        Returns:
            [N, 1, D] and [N, L - 1, D].
        """
        shape = (len(images), self.input_size, self.input_size, 3)
        images = jax.image.resize(images, shape, "cubic", precision="highest")
        fine, middle, coarse, query, last = (
            x.reshape(len(x), -1, x.shape[-1])
            for x in self.trunk(images, folded(key, 0))
        )  # [N, T, C] each
        offsets: list[Float[Array, "N K D"]] = []
        tokens = None
        for i, features in enumerate((coarse, middle, fine)):
            found = self.channels[i](features)
            if tokens is not None:
                smaller = tokens.swapaxes(1, 2)
                found = found + self.enlarge[i - 1](smaller).swapaxes(1, 2)
            tokens = found
            offsets.append(
                self.attentions[i](self.queries[i](query), tokens, folded(key, 1, i))
            )
        return self.base(last), jnp.concatenate(offsets, axis=1)
