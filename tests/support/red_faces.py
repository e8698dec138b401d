"""An MTCNN without weights, for tests, that detects red squares on grey as faces.

The lower halves are magenta: like the real one, it finds turned faces too, with
points as if they were upright, but scores them lower.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.models.mtcnn import CELL, STRIDE

# Landmarks relative to the red square's centre, in units of its side. FFHQ's crop is
# then 2 sides wide and centred 0.155 sides above the square's centre.
POINTS = np.array([[-0.25, -0.2], [0.25, -0.2], [0, 0], [-0.2, 0.25], [0.2, 0.25]])
FFHQ_SIDE, FFHQ_UP = 2, 0.155
BOX_SIDE = 1.5  # side of the boxes, in units of the square's side


def redness(images):
    """Returns 1 where an image [..., 3] is red and 0 where it is grey."""
    return jnp.clip((images[..., 0] - images[..., 1]) / 2, 0, 1)


def frame_kernel(side):
    """Returns a [side, side] kernel that gives 1 for a red square framed in grey."""
    frame = side // 6
    inner = np.zeros((side, side), np.float32)
    inner[frame:-frame, frame:-frame] = 1
    return inner / inner.sum() - (1 - inner) / (1 - inner).sum()


class RedP(nnx.Module):
    def __call__(self, images, extent):
        red = jnp.pad(redness(images), ((0, 0), (0, 1), (0, 1)))[..., None]
        scores = jax.lax.conv_general_dilated(
            red,
            frame_kernel(CELL)[:, :, None, None],
            (STRIDE, STRIDE),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[..., 0]
        return scores, jnp.zeros((*scores.shape, 4))


def place(crops):
    """Returns the red's centres [N, 2] and sides [N] in [N, S, S, 3], relative to S."""
    red = redness(crops)
    at = (jnp.arange(crops.shape[1], dtype="float32") + 0.5) / crops.shape[1]
    total = red.sum((1, 2)) + 1e-6
    x = (red.sum(1) * at[None]).sum(1) / total
    y = (red.sum(2) * at[None]).sum(1) / total
    return jnp.stack([x, y], 1), jnp.sqrt(total) / crops.shape[1]


class RedR(nnx.Module):
    side = 24

    def __call__(self, crops):
        middle, side = place(crops)
        score = jnp.where(crops.shape[1] * side > crops.shape[1] / 4, 0.9, 0.0)
        half = BOX_SIDE / 2 * side[:, None]
        return score, jnp.concatenate([middle - half, middle + half - 1], 1)


class RedO(nnx.Module):
    side = 48

    def __call__(self, crops):
        middle, side = place(crops)
        _, boxes = RedR.__call__(self, crops)
        blue = jnp.clip((crops[..., 2] - crops[..., 1]) / 2, 0, 1)
        at = (jnp.arange(self.side, dtype="float32") + 0.5) / self.side
        lower = (blue.sum(2) * at[None]).sum(1) / (blue.sum((1, 2)) + 1e-6)
        score = jnp.where(lower > middle[:, 1] + 0.15 * side, 0.9995, 0.8)
        points = middle[:, None] + side[:, None, None] * POINTS[None]
        return score + side / 2500, boxes, points


class RedMTCNN(nnx.Module):
    def __init__(self):
        self.pnet, self.rnet, self.onet = RedP(), RedR(), RedO()


def picture(height, width, *squares):
    """Returns a grey image [height, width, 3] with upright faces (x, y, side)."""
    image = np.full((height, width, 3), 100, np.uint8)
    for x, y, side in squares:
        image[y : y + side, x : x + side] = (255, 0, 0)
        image[y + side // 2 : y + side, x : x + side, 2] = 255
    return image
