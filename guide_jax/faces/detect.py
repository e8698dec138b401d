"""Finds faces in pictures with MTCNN, and five points in each.

The networks run in JAX; what they say is sorted out in NumPy. Sizes, thresholds and
the order of the steps are facenet-pytorch's, so its boxes and points come out.
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
THRESHOLDS = (0.6, 0.7, 0.7)  # scores in the three networks
FACTOR = 0.709  # from one level of the pyramid to the next
BATCH = 64  # crops that R-Net and O-Net get at once
# Overlap above which the lower score goes: within a level, after P-Net and R-Net, and
# after O-Net.
LEVEL_OVERLAP, OVERLAP, LAST_OVERLAP = 0.5, 0.7, 0.7


class Face(NamedTuple):
    """One face. Pixel (0, 0) is the middle of the picture's first pixel.

    Attributes:
        box: left, top, right, bottom [4], float32; it may reach beyond the picture.
        score: from 0 to 1.
        points: [5, 2] float32, x and y of the left eye, right eye, nose, left and right
            corner of the mouth, left as one sees the picture.
    """

    box: np.ndarray
    score: float
    points: np.ndarray

    @property
    def side(self) -> float:
        """Side of a square as large as the box."""
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
    """Finds all faces.

    Args:
        mtcnn: the three networks.
        image: [H, W, 3] RGB, uint8 or float in [-1, 1].
        min_face: side of the smallest face to look for, in pixels; the time grows with
            the inverse of its square.
        thresholds: scores that P-, R- and O-Net have to give.
        factor: how much smaller each level of the pyramid is, below 1.

    Returns:
        The faces, the largest first.

    Raises:
        ValueError: the image has another shape.
    """
    if np.ndim(image) != 3 or image.shape[2] != 3:
        raise ValueError(f"one picture [H, W, 3] is needed, not {list(image.shape)}")
    sums = Sums(image)
    boxes = _propose(mtcnn, sums, min_face, thresholds[0], factor)
    boxes = _refine(mtcnn.rnet, sums, boxes, thresholds[1])
    return _finish(mtcnn.onet, sums, boxes, thresholds[2])


class Sums:
    """A picture's sums over all rectangles at its corner: any box's mean is 4 reads.

    Attributes:
        height: H.
        width: W.
    """

    def __init__(self, image: np.ndarray):
        """Takes [H, W, 3], uint8 or float in [-1, 1]."""
        self.height, self.width = image.shape[:2]
        self._scale = 127.5 if image.dtype == np.uint8 else 1
        self._shift = 1 if image.dtype == np.uint8 else 0
        self._sums = np.zeros((self.height + 1, self.width + 1, 3))
        inner = self._sums[1:, 1:]
        np.cumsum(image, axis=0, dtype=np.float64, out=inner)
        np.cumsum(inner, axis=1, out=inner)

    def resize(self, height: int, width: int) -> np.ndarray:
        """Returns the whole picture in another size, [height, width, 3] float32."""
        whole = np.array([[0, 0, self.width, self.height]])
        return self.crops(whole, height, width)[0]

    def crops(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Cuts parts out and brings them to one size by means over areas.

        Pixel i of n is the mean from floor(i * side / n) to ceil((i + 1) * side / n),
        which is PyTorch's `interpolate(mode="area")`.

        Args:
            boxes: [N, 4] integers: left, top, right, bottom, within the picture, the
                last two exclusive.
            height: of the results.
            width: of the results.

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
    """Returns where `count` windows from start to stop begin and end, [N, count]."""
    i, side = np.arange(count), (stop - start)[:, None]
    first, last = i * side // count, -(-(i + 1) * side // count)
    return start[:, None] + first, start[:, None] + last


# The networks' weights are arguments: one program serves all of a shape.
@functools.partial(jax.jit, static_argnums=0)
def _run(graph: nnx.GraphDef, state: nnx.State, *args: jax.Array):
    return nnx.merge(graph, state)(*args)


def _propose(
    mtcnn: MTCNN, sums: Sums, min_face: float, threshold: float, factor: float
) -> np.ndarray:
    """Runs P-Net over the pyramid; returns boxes with scores [N, 5]."""
    split = nnx.split(mtcnn.pnet)
    found = [np.zeros((0, 9), np.float32)]
    for scale in scales(sums.height, sums.width, min_face, factor):
        H, W = int(sums.height * scale + 1), int(sums.width * scale + 1)
        level = np.zeros((1, bucket(H), bucket(W), 3), np.float32)
        level[0, :H, :W] = sums.resize(H, W)
        scores, sides = _run(*split, level, jnp.array([H, W]))
        part = (0, slice(proposals(H)), slice(proposals(W)))
        scores, sides = np.asarray(scores)[part], np.asarray(sides)[part]
        row, column = np.nonzero(scores >= threshold)
        corner = np.stack([column, row, column, row], 1) * STRIDE  # [N, 4]
        # In float32 as published: the floor goes by the last bit.
        corner = (corner + np.float32([1, 1, CELL, CELL])).astype(np.float32)
        box = np.floor(corner / np.float32(scale))
        at = row, column
        boxes = np.concatenate([box, scores[at][:, None], sides[at]], 1)
        found.append(boxes[suppress(boxes, LEVEL_OVERLAP)])
    boxes = np.concatenate(found)
    boxes = boxes[suppress(boxes, OVERLAP)]
    size = boxes[:, 2:4] - boxes[:, :2]
    boxes[:, :4] += boxes[:, 5:] * np.tile(size, 2)
    return squared(boxes[:, :5])


def scales(height: int, width: int, min_face: float, factor: float) -> Iterator[float]:
    """Yields the pyramid's scales, from the one that shows `min_face` as a cell on."""
    scale = CELL / min_face
    side = min(height, width) * scale
    while side >= CELL:
        yield scale
        scale, side = scale * factor, side * factor


def bucket(side: int) -> int:
    """Returns the side that a level is padded to: 12, 16, 24, 32, 48, 64, ...

    So the photos of one shape share the programs of their levels, however large.
    """
    power = 1 << max(0, side - 1).bit_length()  # the next power of two
    return max(CELL, power * 3 // 4 if side <= power * 3 // 4 else power)


def _refine(rnet: RNet, sums: Sums, boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Keeps the boxes [N, 5] that R-Net takes for faces, moved and squared again."""
    boxes, sides = _look(rnet, sums, boxes, threshold)
    keep = suppress(boxes, OVERLAP)
    return squared(_moved(boxes[keep], sides[keep]))


def _finish(onet: ONet, sums: Sums, boxes: np.ndarray, threshold: float) -> list[Face]:
    """Returns the faces among the boxes [N, 5], by O-Net."""
    boxes, sides, points = _look(onet, sums, boxes, threshold)
    size = boxes[:, 2:4] - boxes[:, :2] + 1
    points = points * size[:, None] + boxes[:, None, :2] - 1  # [N, 5, 2]
    boxes = _moved(boxes, sides)
    faces = [
        Face(boxes[i, :4], float(boxes[i, 4]), points[i])
        for i in suppress(boxes, LAST_OVERLAP, smaller=True)
    ]
    return sorted(faces, key=lambda face: -face.side)


def _look(
    net: RNet | ONet, sums: Sums, boxes: np.ndarray, threshold: float
) -> tuple[np.ndarray, ...]:
    """Shows the boxes [N, 5] to a network.

    Returns:
        Those with a score above the threshold, with that score [n, 5]; and the
        network's other outputs for them, [n, ...] each.
    """
    # Boxes count pixels from 1.
    inner = np.trunc(boxes[:, :4]).astype(int)
    inner[:, :2] = np.maximum(inner[:, :2], 1) - 1
    inner[:, 2:] = np.minimum(inner[:, 2:], [sums.width, sums.height])
    seen = (inner[:, 2:] > inner[:, :2]).all(1)
    boxes, inner = boxes[seen], inner[seen]
    split, parts = nnx.split(net), []
    # Always a whole batch, so that there is one program; without boxes, to get shapes.
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
    """Moves the sides of boxes [N, 5] by parts of their size [N, 4]."""
    boxes = boxes.copy()
    size = boxes[:, 2:4] - boxes[:, :2] + 1
    boxes[:, :4] += sides * np.tile(size, 2)
    return boxes


def squared(boxes: np.ndarray) -> np.ndarray:
    """Makes boxes [N, 5] squares of their longer side, about the same middle."""
    boxes = boxes.copy()
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.max(1, keepdims=True)
    boxes[:, :2] += size * 0.5 - side * 0.5
    boxes[:, 2:4] = boxes[:, :2] + side
    return boxes


def suppress(boxes: np.ndarray, overlap: float, *, smaller: bool = False) -> np.ndarray:
    """Picks boxes greedily by score and drops those that overlap a picked one.

    Args:
        boxes: [N, 5 or more]: left, top, right, bottom, score.
        overlap: of two boxes' area, above which the lower score goes.
        smaller: whether overlaps count relative to the smaller box, and boxes as one
            pixel larger (published for the last step), not to both boxes' union.

    Returns:
        Indices [n], the best score first.
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
