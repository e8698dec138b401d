"""The demo at 128 px with MobileStyleGAN: sharper faces.

    python main.py --config=configs/demo_128.py

The README lists the expected results.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """Returns the demo's settings for the larger generator."""
    config = demo.get_config()
    config.name = "demo_128"
    config.networks.generator.path = "demo:mobilestylegan_128.npz"
    # For photos; see "Erasure, with photos" in benchmarks/README.md.
    config.erase.shrinkage = 0.1
    config.attack.strangers = "generator:demo:stylegan2_64.npz"
    return config
