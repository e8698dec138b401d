"""Samples people from the distilled generator, with identity-preserving edits.

    python -m distill.samples --directions DIR

DIR holds `smile.pt` and `pose.pt`, the InterFaceGAN directions that encoder4editing
(MIT) publishes for StyleGAN2-FFHQ. Writes `samples.npz` with `codes` `[P, V, D]` and
uint8 `images` `[P, V, 128, 128, 3]`. View 0 is the unedited person of the seed; the
other views have a random smile and pose.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from convert import torch_file
from distill import BUNDLE, WORK, faces
from guide_jax.faces.photos import to_uint8
from guide_jax.models.network import jitted
from guide_jax.storage.network_file import load_network

STRENGTH = 2.5  # largest step along a unit direction, in W


def read_directions(folder: Path, w_dim: int) -> np.ndarray:
    """Returns the unit directions for smile and pose, `[2, D]`."""
    files = [folder / f"{name}.pt" for name in ("smile", "pose")]
    # The pose file repeats its direction for each of the 18 layers.
    return np.stack([np.reshape(torch_file.read(f), (-1, w_dim))[0] for f in files])


def main():
    """Writes the samples of consecutive seeds, starting at 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directions", type=Path, required=True)
    parser.add_argument(
        "--generator", type=Path, default=BUNDLE / "mobilestylegan_128.npz"
    )
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--edits", type=int, default=1)
    args = parser.parse_args()
    generator = load_network(args.generator)
    synthesise = jitted(generator.synthesis, lambda synthesis, w: synthesis(w)[0])
    z = faces.z_of(np.arange(args.count))
    w = np.asarray(generator.mapping(z, psi=faces.PSI)[:, 0])  # [P, D]
    directions = read_directions(args.directions, w.shape[1])
    rng = np.random.default_rng(0)
    steps = rng.uniform(-STRENGTH, STRENGTH, (args.count, 1 + args.edits, 2))
    steps[:, 0] = 0
    codes = w[:, None] + (steps @ directions).astype(np.float32)  # [P, V, D]
    rows = codes.reshape(-1, w.shape[1])
    images = []
    for part in tqdm(np.array_split(rows, len(rows) // 20), unit="batch"):
        styles = np.repeat(part[:, None], generator.num_ws, axis=1)
        images.append(to_uint8(np.asarray(synthesise(styles))))
    images = np.concatenate(images).reshape(*codes.shape[:2], *images[0].shape[1:])
    np.savez(WORK / "samples.npz", codes=codes, images=images)


if __name__ == "__main__":
    main()
