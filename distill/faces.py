"""Renders a face per seed with the published 1024 px generator, run by OpenVINO.

    python -m distill.faces --wheel random_face-2021.7.21.1-py3-none-any.whl

For each seed, z is drawn with NumPy and mapped to w with truncation 0.7. The 1024 px
image is averaged over 4 x 4 pixels to 256 px and stored as a JPEG of quality 92; all
images go into one zip file.
"""

import argparse
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from convert import mobilestylegan
from distill import WORK
from guide_jax.faces.photos import to_uint8
from guide_jax.models.generator import z_of_seed

PSI = 0.7


def z_of(seeds: np.ndarray, z_dim: int = 512) -> np.ndarray:
    """Returns the seeds' z, `[N, Z]` float32."""
    return np.concatenate([z_of_seed(seed, z_dim) for seed in seeds])


def load(path: Path, count: int | None = None) -> np.ndarray:
    """Reads the first `count` images of a zip file, uint8 `[N, 256, 256, 3]`."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())[:count]
        images = (Image.open(io.BytesIO(archive.read(name))) for name in names)
        return np.stack([np.asarray(image) for image in images])


def to_float(images: np.ndarray, size: int) -> np.ndarray:
    """Averages uint8 images down to `size` px; returns float32 in [-1, 1], NHWC."""
    n, height = images.shape[:2]
    k = height // size
    blocks = images.reshape(n, size, k, size, k, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32) / 127.5 - 1


def main():
    """Writes `faces.zip` with the images of consecutive seeds, starting at 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=WORK / "faces.zip")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    w_avg = mobilestylegan.read(args.wheel)["mapping.w_avg"]
    mapping, synthesis = _graphs(args.wheel)
    with zipfile.ZipFile(args.out, "w") as archive:
        for seed in tqdm(range(args.count), unit="face"):
            w = mapping([z_of([seed])])[0]
            image = synthesis([w_avg + PSI * (w - w_avg)])[0][0]  # [3, 1024, 1024]
            image = to_uint8(image).transpose(1, 2, 0).reshape(256, 4, 256, 4, 3)
            image = image.mean(axis=(1, 3)).round()
            buffer = io.BytesIO()
            Image.fromarray(image.astype(np.uint8)).save(buffer, "JPEG", quality=92)
            archive.writestr(f"{seed:06d}.jpg", buffer.getvalue())


def _graphs(wheel: Path):
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        core = openvino.Core()
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        return [
            core.compile_model(next(Path(folder).rglob(f"{name}.xml")), "CPU", options)
            for name in mobilestylegan.NETWORKS
        ]


if __name__ == "__main__":
    main()
