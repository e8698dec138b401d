"""The demo at 128 px, with MobileStyleGAN: sharper faces, slower and fewer steps.

    python main.py --config=configs/demo_128.py

What it should give is in the README, under "What the demo reaches".
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """Returns the demo's settings for the larger generator."""
    config = demo.get_config()
    config.name = "demo_128"
    config.networks.generator.path = "demo:mobilestylegan_128.npz"
    config.steps = 150
    config.loss.global_.weight = 1.0
    return config
