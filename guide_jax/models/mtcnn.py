"""MTCNN, three small networks that detect faces (arXiv 1604.02878).

P-Net proposes boxes all over an image, R-Net rejects most of them, and O-Net refines
the rest and locates five points in each. `guide_jax.faces.detect` runs them in turn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from guide_jax.models.arcface import PReLU
from guide_jax.models.shapes import Array

# The nets were trained on (pixel - 127.5) / 128, a little less than [-1, 1].
INPUT_SCALE = 127.5 / 128
CELL, STRIDE = 12, 2  # P-Net scores 12-pixel squares at a stride of 2 pixels


class Layer(NamedTuple):
    """A convolution with PReLU; `pool` is the side of the max-pool after it, or 0."""

    channels: int
    size: int = 3
    pool: int = 0


P_LAYERS = (Layer(10, pool=2), Layer(16), Layer(32))
R_LAYERS = (Layer(28, pool=3), Layer(48, pool=3), Layer(64, size=2))
O_LAYERS = (Layer(32, pool=3), Layer(64, pool=3), Layer(64, pool=2), Layer(128, size=2))
LAST_SIDE = 3  # side of R-Net's and O-Net's last feature map


class Trunk(nnx.Module):
    """The convolutions of one of the three networks, without padding."""

    def __init__(self, layers: Sequence[Layer], *, rngs: nnx.Rngs):
        self.pools = tuple(layer.pool for layer in layers)
        inputs = (3, *(layer.channels for layer in layers))
        self.convs = nnx.List(
            nnx.Conv(n, layer.channels, (layer.size,) * 2, padding="VALID", rngs=rngs)
            for n, layer in zip(inputs, layers, strict=False)
        )
        self.acts = nnx.List(PReLU(layer.channels) for layer in layers)

    def __call__(
        self, x: Float[Array, "N H W 3"], extent: Int[Array, "2"] | None = None
    ) -> Float[Array, "N h w C"]:
        """Maps [N, H, W, 3] in [-1, 1] to the last feature map; see `PNet`."""
        x = x * INPUT_SCALE
        for conv, act, pool in zip(self.convs, self.acts, self.pools, strict=True):
            x = act(conv(x))
            if extent is not None:
                extent = extent - (conv.kernel_size[0] - 1)
            if pool:
                x = max_pool(x, pool, extent)
                extent = None  # from here on, padding cannot reach the valid part
        return x


class PNet(nnx.Module):
    """Proposes boxes: a score and a box per 12-pixel square, at stride 2."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.trunk = Trunk(P_LAYERS, rngs=rngs)
        self.score = nnx.Conv(P_LAYERS[-1].channels, 2, (1, 1), rngs=rngs)
        self.box = nnx.Conv(P_LAYERS[-1].channels, 4, (1, 1), rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "N H W 3"],
        extent: Int[Array, "2"] | None = None,
    ) -> tuple[Float[Array, "N h w"], Float[Array, "N h w 4"]]:
        """Scans images of any size.

        Args:
            images: [N, H, W, 3] in [-1, 1], at least 12 x 12.
            extent: [2] integers, the height and width of the image within the padded
                array. The first `proposals(height)` rows and `proposals(width)` columns
                of the results equal those of the image alone.

        Returns:
            Scores [N, h, w] in [0, 1], and the boxes' sides [N, h, w, 4] relative to
            the square: left, top, right, bottom, as fractions of its side.
        """
        x = self.trunk(images, extent)
        return _probability(self.score(x)), self.box(x)


class CropNet(nnx.Module):
    """Base of R-Net and O-Net, which score square crops and correct their boxes."""

    def __init__(self, layers: Sequence[Layer], features: int, *, rngs: nnx.Rngs):
        self.trunk = Trunk(layers, rngs=rngs)
        inputs = LAST_SIDE**2 * layers[-1].channels
        self.dense = nnx.Linear(inputs, features, rngs=rngs)
        self.act = PReLU(features)
        self.score = nnx.Linear(features, 2, rngs=rngs)
        self.box = nnx.Linear(features, 4, rngs=rngs)

    def features(self, crops: Float[Array, "N S S 3"]) -> Float[Array, "N C"]:
        """Returns the features that score and box are read from."""
        x = self.trunk(crops)
        return self.act(self.dense(x.reshape(x.shape[0], -1)))


class RNet(CropNet):
    """Scores proposals."""

    side = 24

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(R_LAYERS, 128, rngs=rngs)

    def __call__(
        self, crops: Float[Array, "N 24 24 3"]
    ) -> tuple[Float[Array, " N"], Float[Array, "N 4"]]:
        """Maps [N, 24, 24, 3] in [-1, 1] to scores [N] and relative boxes [N, 4]."""
        x = self.features(crops)
        return _probability(self.score(x)), self.box(x)


class ONet(CropNet):
    """Scores proposals and locates five points in each."""

    side = 48

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(O_LAYERS, 256, rngs=rngs)
        self.points = nnx.Linear(256, 10, rngs=rngs)

    def __call__(
        self, crops: Float[Array, "N 48 48 3"]
    ) -> tuple[Float[Array, " N"], Float[Array, "N 4"], Float[Array, "N 5 2"]]:
        """Maps [N, 48, 48, 3] in [-1, 1] to scores, boxes and points.

        Returns:
            Scores [N], relative boxes [N, 4], and points [N, 5, 2], x and y as
            fractions of the crop: left eye, right eye, nose, left and right corner of
            the mouth.
        """
        x = self.features(crops)
        points = self.points(x).reshape(-1, 2, 5).swapaxes(1, 2)  # [N, 5, 2]
        return _probability(self.score(x)), self.box(x), points


class MTCNN(nnx.Module):
    """The three networks. "Left" is the left side of the image."""

    kind = "mtcnn"

    def __init__(self, *, rngs: nnx.Rngs):
        """Builds the networks with random weights from `rngs`' `params` stream."""
        self.pnet = PNet(rngs=rngs)
        self.rnet = RNet(rngs=rngs)
        self.onet = ONet(rngs=rngs)

    @property
    def config(self) -> dict:
        """The constructor's arguments (none)."""
        return {}


def proposals(side: int) -> int:
    """Returns the number of rows (columns) of P-Net's results for an image's side."""
    return -(-(side - 2) // 2) - 4


def max_pool(
    x: Float[Array, "N H W C"], size: int, extent: Int[Array, "2"] | None = None
) -> Float[Array, "N h w C"]:
    """Max-pools [N, H, W, C] at stride 2; the last window may extend past the edge.

    Args:
        x: the feature map.
        size: side of the windows.
        extent: [2], numbers of valid rows and columns. The rest is ignored; a window
            without a valid pixel gives 0.

    Returns:
        [N, ceil((H - size) / 2) + 1, ..., C].
    """
    if extent is not None:
        row, column = (jnp.arange(side) for side in x.shape[1:3])
        inside = (row < extent[0])[:, None] & (column < extent[1])[None, :]  # [H, W]
        x = jnp.where(inside[None, :, :, None], x, -jnp.inf)
    outside = [(0, (side - size) % 2) for side in x.shape[1:3]]
    x = nnx.max_pool(x, (size, size), strides=(2, 2), padding=outside)
    return x if extent is None else jnp.where(jnp.isneginf(x), 0, x)


def _probability(logits: Float[Array, "*n 2"]) -> Float[Array, "*n"]:
    """Returns the probability of a face: [..., 2] -> [...]."""
    return jax.nn.softmax(logits)[..., 1]
