"""Detects faces with MTCNN, with five landmarks each.

The networks run in JAX; NumPy processes their outputs. Sizes, thresholds and the order
of the steps are facenet-pytorch's, so the boxes and points match its results.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.models.mtcnn import CELL, MTCNN, STRIDE, ONet, RNet, proposals

MIN_FACE = 20  # pixels
THRESHOLDS = (0.6, 0.7, 0.7)  # minimum scores of P-Net, R-Net and O-Net
FACTOR = 0.709  # scale from one pyramid level to the next
BATCH = 64  # crops per batch of R-Net and O-Net
# Overlap above which the box with the lower score is dropped: within a level, after
# P-Net and R-Net, and after O-Net.
LEVEL_OVERLAP, OVERLAP, LAST_OVERLAP = 0.5, 0.7, 0.7


class Face(NamedTuple):
    """A detected face. Coordinates are pixels; (0, 0) is the first pixel's centre.

    Attributes:
        box: [4] float32: left, top, right, bottom; may extend beyond the image.
        score: from 0 to 1.
        points: [5, 2] float32: x and y of the left eye, right eye, nose, left and right
            mouth corner, where left is the viewer's left.
    """

    box: np.ndarray
    score: float
    points: np.ndarray

    @property
    def side(self) -> float:
        """Side of a square with the box's area, in pixels."""
        left, top, right, bottom = self.box.tolist()
        return math.sqrt(max(0, right - left) * max(0, bottom - top))


def detect(
    mtcnn: MTCNN,
    image: np.ndarray,
    *,
    min_face: float = MIN_FACE,
    thresholds: tuple[float, float, float] = THRESHOLDS,
    factor: float = FACTOR,
) -> list[Face]:
    """Detects all faces in an image.

    Args:
        mtcnn: the three networks.
        image: [H, W, 3] RGB, uint8 or float in [-1, 1].
        min_face: side of the smallest face to search for, in pixels; the time is
            proportional to 1 / min_face**2.
        thresholds: minimum scores of P-Net, R-Net and O-Net.
        factor: scale from one pyramid level to the next, below 1.

    Returns:
        The faces, largest first.

    Raises:
        ValueError: the image is not of shape [H, W, 3].
    """
    if np.ndim(image) != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be [H, W, 3], not {list(image.shape)}")
    sums = Sums(image)
    boxes = _propose(mtcnn, sums, min_face, thresholds[0], factor)
    boxes = _refine(mtcnn.rnet, sums, boxes, thresholds[1])
    return _finish(mtcnn.onet, sums, boxes, thresholds[2])


class Sums:
    """Summed-area table of an image, which gives the mean of any box from 4 reads.

    Attributes:
        height: H, in pixels.
        width: W, in pixels.
    """

    def __init__(self, image: np.ndarray):
        """Sums an image [H, W, 3], uint8 or float in [-1, 1]."""
        self.height, self.width = image.shape[:2]
        self._scale = 127.5 if image.dtype == np.uint8 else 1
        self._shift = 1 if image.dtype == np.uint8 else 0
        self._sums = np.zeros((self.height + 1, self.width + 1, 3))
        inner = self._sums[1:, 1:]
        np.cumsum(image, axis=0, dtype=np.float64, out=inner)
        np.cumsum(inner, axis=1, out=inner)

    def resize(self, height: int, width: int) -> np.ndarray:
        """Resizes the whole image to [height, width, 3], float32 in [-1, 1]."""
        whole = np.array([[0, 0, self.width, self.height]])
        return self.crops(whole, height, width)[0]

    def crops(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Crops boxes and resizes them to a common size by area averaging.

        Pixel i of n is the mean from floor(i * side / n) to ceil((i + 1) * side / n),
        as in PyTorch's `interpolate(mode="area")`.

        Args:
            boxes: [N, 4] integers within the image: left, top, right, bottom, where
                right and bottom are exclusive.
            height: height of the results in pixels.
            width: width of the results in pixels.

        Returns:
            [N, height, width, 3], float32 in [-1, 1].
        """
        top, bottom = _windows(boxes[:, 1], boxes[:, 3], height)  # [N, height]
        left, right = _windows(boxes[:, 0], boxes[:, 2], width)  # [N, width]
        area = (bottom - top)[:, :, None] * (right - left)[:, None, :]
        total = self._at(bottom, right) - self._at(top, right)
        total += self._at(top, left) - self._at(bottom, left)
        mean = total / (area * self._scale)[..., None] - self._shift
        return mean.astype(np.float32)

    def _at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self._sums[rows[:, :, None], columns[:, None, :]]


def _windows(start: np.ndarray, stop: np.ndarray, count: int):
    """Returns the starts and ends [N, count] of `count` windows from start to stop."""
    i, side = np.arange(count), (stop - start)[:, None]
    first, last = i * side // count, -(-(i + 1) * side // count)
    return start[:, None] + first, start[:, None] + last


# Weights are arguments, so that networks with equal shapes share a compiled program.
@functools.partial(jax.jit, static_argnums=0)
def _run(graph: nnx.GraphDef, state: nnx.State, *args: jax.Array):
    return nnx.merge(graph, state)(*args)


def _propose(
    mtcnn: MTCNN, sums: Sums, min_face: float, threshold: float, factor: float
) -> np.ndarray:
    """Runs P-Net over the pyramid; returns boxes with scores [N, 5]."""
    split = nnx.split(mtcnn.pnet)
    proposed = [np.zeros((0, 9), np.float32)]
    for scale in scales(sums.height, sums.width, min_face, factor):
        H, W = int(sums.height * scale + 1), int(sums.width * scale + 1)
        level = np.zeros((1, bucket(H), bucket(W), 3), np.float32)
        level[0, :H, :W] = sums.resize(H, W)
        scores, sides = _run(*split, level, jnp.array([H, W]))
        part = (0, slice(proposals(H)), slice(proposals(W)))
        scores, sides = np.asarray(scores)[part], np.asarray(sides)[part]
        row, column = np.nonzero(scores >= threshold)
        corner = np.stack([column, row, column, row], 1) * STRIDE  # [N, 4]
        # In float32 as published, because the floor depends on the last bit.
        cell = np.array([1, 1, CELL, CELL], np.float32)
        corner = (corner + cell).astype(np.float32)
        box = np.floor(corner / np.float32(scale))
        at = row, column
        boxes = np.concatenate([box, scores[at][:, None], sides[at]], 1)
        proposed.append(boxes[suppress(boxes, LEVEL_OVERLAP)])
    boxes = np.concatenate(proposed)
    boxes = boxes[suppress(boxes, OVERLAP)]
    size = boxes[:, 2:4] - boxes[:, :2]
    boxes[:, :4] += boxes[:, 5:] * np.tile(size, 2)
    return squared(boxes[:, :5])


def scales(height: int, width: int, min_face: float, factor: float) -> Iterator[float]:
    """Yields the pyramid's scales; the first shrinks `min_face` to P-Net's cell."""
    scale = CELL / min_face
    side = min(height, width) * scale
    while side >= CELL:
        yield scale
        scale, side = scale * factor, side * factor


def bucket(side: int) -> int:
    """Returns the side to which a level is padded: 12, 16, 24, 32, 48, 64, ...

    Padding to few sizes lets photos of different sizes share compiled programs.
    """
    power = 1 << max(0, side - 1).bit_length()  # the next power of two
    return max(CELL, power * 3 // 4 if side <= power * 3 // 4 else power)


def _refine(rnet: RNet, sums: Sums, boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the boxes [N, 5] that R-Net classifies as faces, adjusted and squared."""
    boxes, sides = _classify(rnet, sums, boxes, threshold)
    keep = suppress(boxes, OVERLAP)
    return squared(_moved(boxes[keep], sides[keep]))


def _finish(onet: ONet, sums: Sums, boxes: np.ndarray, threshold: float) -> list[Face]:
    """Returns the faces that O-Net finds among the boxes [N, 5], largest first."""
    boxes, sides, points = _classify(onet, sums, boxes, threshold)
    size = boxes[:, 2:4] - boxes[:, :2] + 1
    points = points * size[:, None] + boxes[:, None, :2] - 1  # [N, 5, 2]
    boxes = _moved(boxes, sides)
    faces = [
        Face(boxes[i, :4], float(boxes[i, 4]), points[i])
        for i in suppress(boxes, LAST_OVERLAP, smaller=True)
    ]
    return sorted(faces, key=lambda face: -face.side)


def _classify(
    net: RNet | ONet, sums: Sums, boxes: np.ndarray, threshold: float
) -> tuple[np.ndarray, ...]:
    """Runs a network on the boxes [N, 5].

    Returns:
        The boxes that score above the threshold, with their new scores [n, 5], and the
        network's remaining outputs for them, [n, ...] each.
    """
    # Box coordinates are 1-based.
    inner = np.trunc(boxes[:, :4]).astype(int)
    inner[:, :2] = np.maximum(inner[:, :2], 1) - 1
    inner[:, 2:] = np.minimum(inner[:, 2:], [sums.width, sums.height])
    visible = (inner[:, 2:] > inner[:, :2]).all(1)
    boxes, inner = boxes[visible], inner[visible]
    split, parts = nnx.split(net), []
    # Batches are always full, so that one program suffices. Without boxes, one empty
    # batch still runs to get the outputs' shapes.
    for i in range(0, max(1, len(inner)), BATCH):
        part = inner[i : i + BATCH]
        crops = np.zeros((BATCH, net.side, net.side, 3), np.float32)
        crops[: len(part)] = sums.crops(part, net.side, net.side)
        parts.append([np.asarray(x)[: len(part)] for x in _run(*split, crops)])
    scores, *others = map(np.concatenate, zip(*parts, strict=True))
    good = scores > threshold
    boxes = np.concatenate([boxes[good, :4], scores[good, None]], 1)
    return boxes, *(other[good] for other in others)


def _moved(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Moves the sides of boxes [N, 5] by fractions [N, 4] of the boxes' sizes."""
    boxes = boxes.copy()
    size = boxes[:, 2:4] - boxes[:, :2] + 1
    boxes[:, :4] += sides * np.tile(size, 2)
    return boxes


def squared(boxes: np.ndarray) -> np.ndarray:
    """Extends boxes [N, 5] to squares with the longer side, keeping their centres."""
    boxes = boxes.copy()
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.max(1, keepdims=True)
    boxes[:, :2] += size * 0.5 - side * 0.5
    boxes[:, 2:4] = boxes[:, :2] + side
    return boxes


def suppress(boxes: np.ndarray, overlap: float, *, smaller: bool = False) -> np.ndarray:
    """Non-maximum suppression: picks boxes by score, drops those that overlap a pick.

    Args:
        boxes: [N, 5 or more]: left, top, right, bottom, score.
        overlap: overlap above which the box with the lower score is dropped.
        smaller: whether overlap is relative to the smaller box, with boxes counted one
            pixel larger (as published for the last step), instead of to the union.

    Returns:
        Indices [n], highest score first.
    """
    corner, far = boxes[:, :2], boxes[:, 2:4] + int(smaller)
    areas = np.prod(far - corner, axis=1)
    order, picked = np.argsort(-boxes[:, 4], kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        picked.append(best)
        shared = np.minimum(far[best], far[order]) - np.maximum(
            corner[best], corner[order]
        )
        shared = np.prod(np.maximum(shared, 0), axis=1)
        if smaller:
            whole = np.minimum(areas[best], areas[order])
        else:
            whole = areas[best] + areas[order] - shared
        order = order[shared <= overlap * whole]
    return np.array(picked, int)
