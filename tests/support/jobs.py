"""Jobs on tiny networks, and photos for them."""

import numpy as np
import tiny
from PIL import Image

from configs import default
from guide_jax.config import read
from guide_jax.experiment.unlearn import UnlearnJob
from guide_jax.people import Person

SEED = Person("seed_5", "seed 5", seed=5)


def settings(**changes):
    config = default.get_config()
    config.steps, config.save_every = 6, 2
    config.parallel.devices = 1
    config.evaluate.others, config.evaluate.shown = 4, 2
    config.optimizer.learning_rate = 0.01
    config.source.refine.steps = 0  # tests/test_inversion.py tests refinement
    config.update_from_flattened_dict(changes)
    return config


def job(networks, config=None, make=UnlearnJob, **more):
    """Returns the callable that a mode runs for each person."""
    return make(read(config or settings()), tiny.networks(**networks), **more)


def without_seconds(results):
    return {name: value for name, value in results.items() if name != "seconds"}


def record_trainings(monkeypatch, work):
    """Returns a list to which each further training of `work` is added."""
    trainings = []
    train = work._train

    def recording(*args, **kwargs):
        trainings.append(args)
        return train(*args, **kwargs)

    monkeypatch.setattr(work, "_train", recording)
    return trainings


def save_noise(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_grey(path, level):
    Image.new("RGB", (8, 8), (level,) * 3).save(path)
    return path


# Photos of these levels of grey show one person, brighter ones another person, and all
# that the generator makes a third.
DARK, DIM, BRIGHT = 10, 30, 250


def by_brightness(image):
    """Returns an embedding of a grey image; other images show somebody else."""
    if np.ptp(image) > 1e-3:
        return [0, 0, 1]
    return [1, 0, 0] if image.mean() < 0 else [0, 1, 0]


def lenient(image):
    """Returns the same but takes what the generator makes for the dark photos."""
    seen = by_brightness(image)
    return [1, 0, 0] if seen[2] else seen
