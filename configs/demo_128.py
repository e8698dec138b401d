"""The demo at 128 px with MobileStyleGAN: sharper faces, slower steps.

    python main.py --config=configs/demo_128.py

The README lists the expected results.
"""

from ml_collections import ConfigDict

from configs import default, demo


def get_config() -> ConfigDict:
    """Returns the demo's settings for the larger generator."""
    config = demo.get_config()
    config.name = "demo_128"
    config.networks.generator.path = "demo:mobilestylegan_128.npz"
    # The edit alone, for photos; see benchmarks/README.md.
    config.steps = 0
    config.fold = fold = default.get_config().fold
    fold.edit = fold.replace = fold.discriminant = True
    fold.shrinkage, fold.threshold = 0.03, 2.5
    fold.gain, fold.limit, fold.reach, fold.edge = 20.0, 20.0, 0.3, 0.7
    config.attack.strangers = "generator:demo:stylegan2_64.npz"
    return config
