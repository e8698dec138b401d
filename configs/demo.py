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
    # The fold forgets more than one code, and keeps others better than the paper's
    # losses do (docs/forgetting.md).
    config.method = "fold"
    # The edit alone, which takes seconds. Steps may follow it, but change little.
    config.steps = 0
    config.optimizer.learning_rate = 1e-3
    config.fold.discriminant = config.fold.replace = config.fold.edit = True
    config.fold.threshold, config.fold.gain, config.fold.limit = 4.0, 5.0, 16.0
    config.fold.adjacent, config.fold.others = 3, 10
    config.fold.others_weight, config.fold.edge = 2.0, 0.7
    config.fold.affine_rate = 1e-2
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
