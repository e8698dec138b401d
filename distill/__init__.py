"""Scripts that made the demo's bundled weights; each file is a rerunnable command.

Run them in this order: perceptual, faces, judge, teachers, generator, samples,
identity, encoder, student. The bundle's README gives the command lines. Intermediate
data goes to `distill_work/` in the current folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from guide_jax.storage.network_file import save_network

BUNDLE = Path(__file__).parent.parent / "guide_jax" / "demo_weights"
WORK = Path("distill_work")


def store(path: Path, network: nnx.Module, about: Mapping[str, Any]) -> None:
    """Saves a network in the bundle's format: float16 rounded to 6 bits of mantissa.

    The rounding keeps the bundle within 48 MB.

    Args:
        path: the file to write.
        network: the network.
        about: notes and measurements to store with it.
    """
    save_network(path, network, dtype=np.float16, mantissa_bits=6, about=about)
