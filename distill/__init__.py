"""How the demo bundle's weights were made; each file is a command that can be rerun.

Order: perceptual, faces, teachers, generator, samples, identity (twice), encoder,
student; the bundle's README has the command lines. What they work with is kept in
`distill_work/`, below the current folder.
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
    """Saves a network as the bundle's are: its 32 MB allow 6 bits of mantissa."""
    save_network(path, network, dtype=np.float16, mantissa_bits=6, about=about)
