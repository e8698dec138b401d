"""Identity encoders as judges: whole pictures in, embeddings of their faces out."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from flax import nnx

from guide_jax.faces.align import align_arcface
from guide_jax.faces.detect import detect
from guide_jax.faces.photos import to_uint8
from guide_jax.models import arcface
from guide_jax.models.mtcnn import MTCNN
from guide_jax.storage.locate import jitted


class Faces(NamedTuple):
    """What a judge saw in some pictures.

    Attributes:
        embeddings: unit norm `[N, E]`; zero where there was no face.
        found: whether there was one, `[N]` bool.
    """

    embeddings: np.ndarray
    found: np.ndarray


Judge = Callable[[np.ndarray], Faces]  # of images [N, H, W, 3] in [-1, 1]


def cropping(identity: nnx.Module, batch: int) -> Judge:
    """Returns a judge that takes aligned pictures' middles, as the loss does.

    It finds a face in every picture.

    Args:
        identity: encoder.
        batch: pictures in one pass.
    """
    embed = jitted(identity, arcface.embed)

    def judge(images: np.ndarray) -> Faces:
        embeddings = in_batches(embed, batch, images)
        return Faces(embeddings, np.ones(len(images), bool))

    return judge


def aligning(identity: nnx.Module, mtcnn: MTCNN, batch: int) -> Judge:
    """Returns a judge that finds the largest face and turns it upright, as published.

    Pictures are rounded to 256 levels first, as if they had been saved.

    Args:
        identity: encoder.
        mtcnn: finds faces.
        batch: faces in one pass of the encoder.
    """
    size = identity.input_size
    embed = jitted(identity, lambda identity, crops: identity(crops))

    def judge(images: np.ndarray) -> Faces:
        crops = np.zeros((len(images), size, size, 3), np.float32)
        found = np.zeros(len(images), bool)
        for i, image in enumerate(to_uint8(np.asarray(images))):
            if faces := detect(mtcnn, image):
                crops[i], found[i] = align_arcface(image, faces[0].points, size), True
        embeddings = in_batches(embed, batch, crops)
        return Faces(embeddings * found[:, None], found)

    return judge


def similarity(a: Faces, b: Faces) -> np.ndarray:
    """Returns the cosines `[n]` of the pairs in both pictures of which is a face."""
    seen = a.found & b.found
    return np.sum(a.embeddings[seen] * b.embeddings[seen], axis=1)


def strangers(faces: Faces) -> np.ndarray:
    """Returns the cosines `[n]` of all pairs of different pictures with a face."""
    seen = faces.embeddings[faces.found]
    return (seen @ seen.T)[np.triu_indices(len(seen), 1)]


def joined(parts: list[Faces]) -> Faces:
    """Returns several batches as one."""
    return Faces(*map(np.concatenate, zip(*parts, strict=True)))


def batches(x: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts into batches of one size; the last repeats its last row to be full.

    Yields:
        A batch, and how many of its rows are new.
    """
    for start in range(0, len(x), size):
        part = x[start : start + size]
        missing = size - len(part)
        yield np.concatenate([part, *[part[-1:]] * missing]), len(part)


def in_batches(program: Callable, size: int, *arrays: np.ndarray) -> np.ndarray:
    """Returns a program's rows for the rows of arrays, taken in batches of one size."""
    found = []
    for parts in zip(*(batches(x, size) for x in arrays), strict=True):
        inputs, counts = zip(*parts, strict=True)
        found.append((program(*inputs), counts[0]))
    # Read when all are on their way, so that the device needn't wait for the host.
    return np.concatenate([np.asarray(rows)[:count] for rows, count in found])
