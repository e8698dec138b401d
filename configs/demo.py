"""The demo: the bundled 64 px StyleGAN2 forgets one face.

    python main.py
    python main.py --config.source.seed=3
    python main.py --config.source.image=face.jpg

The README lists the expected results.
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
    config.networks.identity.path = "demo:identity_facenet.npz"
    config.networks.judge.path = "demo:judge_dlib.npz"
    # For photos that aren't aligned; the sampled people need no detector.
    config.networks.detector.path = "weights/mtcnn"
    config.networks.detector.published = default.PYPI

    config.parallel.devices = 1  # more hardly pay with N_a = N_g = 2

    # Truncation at which the bundled generators' images look best.
    config.source.psi = 0.7
    config.loss.psi = 0.7
    # Half the paper's steps, so that the demo takes minutes on two cores. The shorter
    # training leaves other people less time to recover, hence the larger global weight.
    config.steps = 500
    config.loss.global_.weight = 3.0
    config.evaluate.others = 40

    # People of the other bundled generator stand for people never seen.
    config.attack.directions = "demo:directions.npz"
    config.attack.strangers = "generator:demo:mobilestylegan_128.npz"
    config.attack.photos, config.attack.starts = 2, 2
    config.attack.budgets = (25, 100)
    config.attack.random_people = 1000
    return config
