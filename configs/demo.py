"""The demo: a small StyleGAN2 of the package's own, at 64 px, forgets one face.

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
    config.networks.generator.path = "demo:stylegan2_64.npz"
    config.networks.encoder.path = "demo:encoder.npz"
    config.networks.lpips.path = "demo:lpips_alex.npz"
    config.networks.identity.path = "demo:identity_dlib.npz"
    config.networks.judge.path = "demo:identity_facenet.npz"
    # For photos that aren't aligned; the demo's own people need none.
    config.networks.detector.path = "weights/mtcnn"
    config.networks.detector.published = default.PYPI

    config.parallel.devices = 1  # two random pairs, which hardly pay for more

    # Where the bundled generators are at their best.
    config.source.psi = 0.7
    config.loss.psi = 0.7
    # Half the paper's steps, to end in minutes on two cores; what that leaves undone is
    # other people's recovery, so it counts for more.
    config.steps = 500
    config.loss.global_.weight = 3.0
    config.evaluate.others = 40
    return config
