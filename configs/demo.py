"""The demo: forget one face at 128 px with the weights that come with the package.

    python main.py
    python main.py --config.source.seed=3
    python main.py --config.source.image=face.jpg

What it should give is in the README, under "What the demo reaches".
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the demo's settings."""
    config = default.get_config()
    config.name = "demo"
    config.networks.generator.path = "demo:generator.npz"
    config.networks.encoder.path = "demo:encoder.npz"
    config.networks.lpips.path = "demo:lpips_alex.npz"
    config.networks.identity.path = "demo:identity_dlib.npz"
    config.networks.judge.path = "demo:identity_facenet.npz"

    # The bundled generator was trained on truncated latents, as its faces were
    # published.
    config.source.psi = 0.7
    config.loss.psi = 0.7
    config.steps = 150
    config.evaluate.others = 40
    return config
