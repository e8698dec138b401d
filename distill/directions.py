"""Bundles the published smile and pose directions that attacks edit codes with.

    python -m distill.directions --directions DIR

DIR holds `smile.pt` and `pose.pt`, as for `distill.samples`. Writes `directions.npz`,
name -> `[D]`, the unit directions times `STRENGTH`.
"""

import argparse
from pathlib import Path

import numpy as np

from distill import BUNDLE
from distill.samples import STRENGTH, read_directions
from guide_jax.storage.atomic import write_arrays

NAMES = "smile", "pose"
W_DIM = 512


def main():
    """Writes the directions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directions", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=BUNDLE / "directions.npz")
    args = parser.parse_args()
    unit = read_directions(args.directions, W_DIM)
    scaled = (STRENGTH * unit).astype(np.float32)
    write_arrays(args.out, dict(zip(NAMES, scaled, strict=True)))


if __name__ == "__main__":
    main()
