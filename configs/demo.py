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
    # No code has what is erased, and nothing is trained (docs/forgetting.md).
    config.method = "erase"
    config.steps = 0
    config.evaluate.others = 40

    config.attack.after_training = (
        "replay", "edits", "line", "neighbourhood", "encoder"
    )  # fmt: skip
    config.attack.directions = "demo:directions.npz"
    # People of the other bundled generator stand for people never seen.
    config.attack.strangers = "generator:demo:mobilestylegan_128.npz"
    config.attack.strangers_count = 6
    config.attack.photos, config.attack.starts, config.attack.batch = 2, 2, 4
    config.attack.budgets = (25, 100)
    config.attack.random_people = 500
    return config
