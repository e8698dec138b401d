"""Validation of the configs; experiment/test_unlearn.py tests how a run uses them."""

import jax
import pytest

from configs import default, demo, demo_128, ffhq, mobile_ffhq
from guide_jax.config import read
from guide_jax.config_types import LossWeights, PairWeights, Sampling
from guide_jax.errors import InputError
from guide_jax.experiment import modes as experiment


def test_default_settings_match_the_paper():
    config = default.get_config()
    assert (config.steps, config.target.name, config.target.distance) == (
        1000, "extra", 30.0
    )  # fmt: skip
    assert config.optimizer.learning_rate == 1e-4
    training = read(config).training
    pair = PairWeights(mse=1e-2, lpips=1.0, identity=0.1, total=1.0)
    assert training.weights == LossWeights(pair, pair, 1.0)
    assert training.sampling == Sampling(2, 2, alpha_max=15.0, psi=1.0)


@pytest.mark.parametrize("module", [default, demo, demo_128, ffhq, mobile_ffhq])
def test_configs_are_valid_and_have_the_default_fields(module):
    config = module.get_config()
    read(config)

    def fields(config):
        tree = config.to_dict()
        return jax.tree.structure(tree, is_leaf=lambda x: isinstance(x, tuple))

    assert fields(config) == fields(default.get_config())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target.distance", float("nan"), "target.distance is nan; it must be a fin"),
        ("source.psi", float("inf"), "source.psi is inf"),
        ("loss.adjacency.alpha_max", -1.0, "alpha_max is -1.0; it must not be neg"),
        ("seed", 2**64, "below 2**63"),
    ],
)
def test_invalid_numbers_are_rejected(field, value, message):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as caught:
        read(config)
    assert f"config.{field} is" in str(caught.value)
    assert message in str(caught.value)


def test_a_weight_may_be_negative():
    config = default.get_config()
    config.loss.global_.weight = -1.0
    read(config)


def test_everything_but_training_runs_in_full_float32(monkeypatch, tmp_path):
    precisions = []

    def load(config):
        precisions.append(jax.config.jax_default_matmul_precision)
        raise InputError("enough")

    monkeypatch.setattr(experiment, "load_networks", load)
    config = default.get_config()
    config.precision, config.parallel.devices = "default", 1
    with (
        jax.default_matmul_precision("default"),
        pytest.raises(InputError, match="enough"),
    ):
        experiment.run(config, tmp_path)
    assert precisions == ["highest"]
