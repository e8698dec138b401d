"""Judges: identity encoders that map whole images to embeddings of their faces.

A judge is never one of the loss networks.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from guide_jax.batching import in_batches
from guide_jax.faces.align import align_arcface
from guide_jax.faces.detect import detect
from guide_jax.faces.photos import to_uint8
from guide_jax.models import arcface
from guide_jax.models.arcface import IRNet
from guide_jax.models.mtcnn import MTCNN
from guide_jax.models.network import jitted


class Faces(NamedTuple):
    """A judge's embeddings of images.

    Attributes:
        embeddings: unit norm `[N, E]`; zero where no face was found.
        found: whether a face was found, `[N]` bool.
    """

    embeddings: np.ndarray
    found: np.ndarray


Judge = Callable[[np.ndarray], Faces]  # takes images [N, H, W, 3] in [-1, 1]


def cropping_judge(identity: IRNet, batch: int) -> Judge:
    """Returns a judge that crops aligned images at a fixed location, as the loss does.

    It assumes that every image shows a face.

    Args:
        identity: the identity encoder.
        batch: images in one pass.
    """
    embed = jitted(identity, arcface.embed)

    def judge(images: np.ndarray) -> Faces:
        embeddings = in_batches(embed, batch, images)
        return Faces(embeddings, np.ones(len(images), bool))

    return judge


def aligning_judge(identity: IRNet, mtcnn: MTCNN, batch: int) -> Judge:
    """Returns a judge that detects and aligns the largest face, as published.

    Images are rounded to 8 bits first, as if they had been saved.

    Args:
        identity: the identity encoder.
        mtcnn: the face detector.
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
    """Returns the cosine similarities `[n]` of the pairs that both show a face."""
    seen = a.found & b.found
    return np.sum(a.embeddings[seen] * b.embeddings[seen], axis=1)


def strangers(faces: Faces) -> np.ndarray:
    """Returns the cosine similarities `[n]` of all pairs of different faces."""
    seen = faces.embeddings[faces.found]
    return (seen @ seen.T)[np.triu_indices(len(seen), 1)]


def joined(parts: list[Faces]) -> Faces:
    """Concatenates the embeddings of several batches."""
    return Faces(*map(np.concatenate, zip(*parts, strict=True)))
