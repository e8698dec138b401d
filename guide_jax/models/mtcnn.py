"""MTCNN, three small networks that find faces (arXiv 1604.02878).

P-Net proposes boxes all over a picture, R-Net refuses most of them, O-Net refines the
rest and finds five points in each. `guide_jax.faces.detect` runs them in sequence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax.models.arcface import PReLU

# The nets were trained on (pixel - 127.5) / 128, a little less than [-1, 1].
INPUT_SCALE = 127.5 / 128
CELL, STRIDE = 12, 2  # P-Net sees squares of 12 pixels, every second pixel


class Layer(NamedTuple):
    """A convolution and its PReLU; `pool` is the max-pool's side after them, or 0."""

    channels: int
    size: int = 3
    pool: int = 0


P_LAYERS = (Layer(10, pool=2), Layer(16), Layer(32))
R_LAYERS = (Layer(28, pool=3), Layer(48, pool=3), Layer(64, size=2))
O_LAYERS = (Layer(32, pool=3), Layer(64, pool=3), Layer(64, pool=2), Layer(128, size=2))
LAST_SIDE = 3  # of R-Net's and O-Net's last feature map


class Trunk(nnx.Module):
    """The convolutions of one of the three, without padding."""

    def __init__(self, layers: Sequence[Layer], *, rngs: nnx.Rngs):
        self.pools = tuple(layer.pool for layer in layers)
        inputs = (3, *(layer.channels for layer in layers))
        self.convs = nnx.List(
            nnx.Conv(n, layer.channels, (layer.size,) * 2, padding="VALID", rngs=rngs)
            for n, layer in zip(inputs, layers, strict=False)
        )
        self.acts = nnx.List(PReLU(layer.channels) for layer in layers)

    def __call__(self, x: jax.Array, extent: jax.Array | None = None) -> jax.Array:
        """Maps [N, H, W, 3] in [-1, 1] to the last feature map; see `PNet`."""
        x = x * INPUT_SCALE
        for conv, act, pool in zip(self.convs, self.acts, self.pools, strict=True):
            x = act(conv(x))
            if extent is not None:
                extent = extent - (conv.kernel_size[0] - 1)
            if pool:
                x = max_pool(x, pool, extent)
                extent = None  # what lies behind it no longer reaches what counts
        return x


class PNet(nnx.Module):
    """Proposes boxes: a score and a box for each 12-pixel square, every 2 pixels."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.trunk = Trunk(P_LAYERS, rngs=rngs)
        self.score = nnx.Conv(P_LAYERS[-1].channels, 2, (1, 1), rngs=rngs)
        self.box = nnx.Conv(P_LAYERS[-1].channels, 4, (1, 1), rngs=rngs)

    def __call__(
        self, images: jax.Array, extent: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Scans pictures of any size.

        Args:
            images: [N, H, W, 3] in [-1, 1], at least 12 x 12.
            extent: [2] integers, the height and width that count where the rest is
                padding: there `proposals(height)` rows and so many columns of the
                results are what the part alone would give.

        Returns:
            Scores [N, h, w] in [0, 1], and the box's sides [N, h, w, 4] relative to the
            square: left, top, right, bottom, in parts of its side.
        """
        x = self.trunk(images, extent)
        return _probability(self.score(x)), self.box(x)


class RNet(nnx.Module):
    """Judges proposals."""

    side = 24

    def __init__(self, *, rngs: nnx.Rngs):
        self.trunk = Trunk(R_LAYERS, rngs=rngs)
        inputs = LAST_SIDE**2 * R_LAYERS[-1].channels
        self.dense = nnx.Linear(inputs, 128, rngs=rngs)
        self.act = PReLU(128)
        self.score = nnx.Linear(128, 2, rngs=rngs)
        self.box = nnx.Linear(128, 4, rngs=rngs)

    def __call__(self, crops: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps [N, 24, 24, 3] in [-1, 1] to scores [N] and relative boxes [N, 4]."""
        x = self.trunk(crops)
        x = self.act(self.dense(x.reshape(x.shape[0], -1)))
        return _probability(self.score(x)), self.box(x)


class ONet(nnx.Module):
    """Judges proposals and finds five points in each."""

    side = 48

    def __init__(self, *, rngs: nnx.Rngs):
        self.trunk = Trunk(O_LAYERS, rngs=rngs)
        inputs = LAST_SIDE**2 * O_LAYERS[-1].channels
        self.dense = nnx.Linear(inputs, 256, rngs=rngs)
        self.act = PReLU(256)
        self.score = nnx.Linear(256, 2, rngs=rngs)
        self.box = nnx.Linear(256, 4, rngs=rngs)
        self.points = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, crops: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Maps [N, 48, 48, 3] in [-1, 1] to scores, boxes and points.

        Returns:
            Scores [N], relative boxes [N, 4], and points [N, 5, 2] as x and y in parts
            of the crop: left eye, right eye, nose, left and right corner of the mouth.
        """
        x = self.trunk(crops)
        x = self.act(self.dense(x.reshape(x.shape[0], -1)))
        points = self.points(x).reshape(-1, 2, 5).swapaxes(1, 2)  # [N, 5, 2]
        return _probability(self.score(x)), self.box(x), points


class MTCNN(nnx.Module):
    """The three networks. "Left" is the left side of the picture."""

    kind = "mtcnn"

    def __init__(self, *, rngs: nnx.Rngs):
        """Builds them with random weights, drawn from `rngs`' `params` stream."""
        self.pnet = PNet(rngs=rngs)
        self.rnet = RNet(rngs=rngs)
        self.onet = ONet(rngs=rngs)

    @property
    def config(self) -> dict:
        """The constructor's arguments: there are none."""
        return {}


def proposals(side: int) -> int:
    """Returns how many rows (columns) of results P-Net gives for a picture's side."""
    return -(-(side - 2) // 2) - 4


def max_pool(x: jax.Array, size: int, extent: jax.Array | None = None) -> jax.Array:
    """Max-pools [N, H, W, C] at stride 2, with a last window that may stick out.

    Args:
        x: the feature map.
        size: side of the windows.
        extent: [2], rows and columns that count; the others are not looked at, and a
            window of them alone gives 0.

    Returns:
        [N, ceil((H - size) / 2) + 1, ..., C].
    """
    if extent is not None:
        row, column = (jnp.arange(side) for side in x.shape[1:3])
        inside = (row < extent[0])[:, None] & (column < extent[1])  # [H, W]
        x = jnp.where(inside[..., None], x, -jnp.inf)
    outside = [(0, (side - size) % 2) for side in x.shape[1:3]]
    x = nnx.max_pool(x, (size, size), strides=(2, 2), padding=outside)
    return x if extent is None else jnp.where(jnp.isneginf(x), 0, x)


def _probability(logits: jax.Array) -> jax.Array:
    """Returns the probability of a face, [..., 2] -> [...]."""
    return jax.nn.softmax(logits)[..., 1]
