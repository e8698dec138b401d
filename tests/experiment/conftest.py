"""Networks, judges and runs that several of this folder's tests use."""

import numpy as np
import pytest
import tiny
from jobs import settings

from guide_jax.experiment import modes as experiment
from guide_jax.metrics import judges


@pytest.fixture(scope="module")
def networks():
    loss = tiny.loss_networks()
    return {
        "generator": tiny.generator(8),
        "encoder": tiny.encoder(num_ws=4),
        "lpips": loss.lpips,
        "identity": loss.identity,
        "judge": tiny.identity(1),
    }


@pytest.fixture
def stranger(networks, monkeypatch):
    """Returns a function: images -> embeddings, which replaces the judge."""

    def replace(embed):
        def judge(images):
            embeddings = np.array([embed(image) for image in images], np.float32)
            return judges.Faces(embeddings, np.ones(len(images), bool))

        monkeypatch.setattr(judges, "cropping_judge", lambda *args: judge)

    return replace


@pytest.fixture
def many(networks, monkeypatch, tmp_path):
    made = tiny.networks(**networks)
    monkeypatch.setattr(experiment, "load_networks", lambda config: made)

    def run(mode="unlearn", **changes):
        return experiment.run(settings(**changes), tmp_path / "work", mode)

    return run
