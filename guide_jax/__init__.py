"""Make a face generator forget one person (GUIDE, arXiv 2405.09879), in JAX and Flax.

Docstrings and comments, such as `# [N, L, D]`, describe shapes with these letters:

    N  batch
    H, W, C  image height, width and channels; images are float32 RGB in [-1, 1], NHWC
    L  num_ws, the number of style vectors that the synthesis network takes
    D  w_dim, the length of a style vector
    Z  z_dim, the length of the mapping network's input
    E  length of an identity embedding
    P  number of codes that one training run forgets

`main.py` and `examples/forget_one.py` use the same public functions, which are imported
on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guide_jax.attacks.battery import Attacker
    from guide_jax.config import load_config
    from guide_jax.config_types import Config
    from guide_jax.errors import InputError, UnlearningError
    from guide_jax.experiment.modes import run
    from guide_jax.experiment.unlearn import make_trainer
    from guide_jax.latents import Codes, LatentFinder
    from guide_jax.metrics.evaluator import Evaluator
    from guide_jax.metrics.judges import aligning_judge, cropping_judge
    from guide_jax.models.generator import Generator, ImagePass
    from guide_jax.people import Person, list_people, sampled
    from guide_jax.storage.locate import Networks, load_networks
    from guide_jax.storage.network_file import load_network, save_network
    from guide_jax.training.trainer import Trainer

_PUBLIC = {
    "Attacker": "attacks.battery",
    "Codes": "latents",
    "Config": "config_types",
    "Evaluator": "metrics.evaluator",
    "Generator": "models.generator",
    "ImagePass": "models.generator",
    "InputError": "errors",
    "LatentFinder": "latents",
    "Networks": "storage.locate",
    "Person": "people",
    "Trainer": "training.trainer",
    "UnlearningError": "errors",
    "aligning_judge": "metrics.judges",
    "cropping_judge": "metrics.judges",
    "list_people": "people",
    "load_config": "config",
    "load_network": "storage.network_file",
    "load_networks": "storage.locate",
    "make_trainer": "experiment.unlearn",
    "run": "experiment.modes",
    "sampled": "people",
    "save_network": "storage.network_file",
}

__all__ = [
    "Attacker",
    "Codes",
    "Config",
    "Evaluator",
    "Generator",
    "ImagePass",
    "InputError",
    "LatentFinder",
    "Networks",
    "Person",
    "Trainer",
    "UnlearningError",
    "aligning_judge",
    "cropping_judge",
    "list_people",
    "load_config",
    "load_network",
    "load_networks",
    "make_trainer",
    "run",
    "sampled",
    "save_network",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'guide_jax' has no attribute {name!r}")
    module = importlib.import_module(f"guide_jax.{_PUBLIC[name]}")
    return getattr(module, name)
