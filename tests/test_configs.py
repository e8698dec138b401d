"""Configs are checked; what a run does with them is seen in test_session.py."""

import jax
import pytest

from configs import default, demo, demo_128, ffhq, mobile_ffhq
from guide_jax.errors import InputError
from guide_jax.experiment import from_config
from guide_jax.experiment import run as experiment
from guide_jax.training.losses import LossWeights, PairWeights
from guide_jax.training.step import Draws


def test_default_settings_are_the_paper_s():
    config = default.get_config()
    assert (config.steps, config.target.name, config.target.distance) == (
        1000, "extra", 30.0
    )  # fmt: skip
    assert config.optimizer.learning_rate == 1e-4
    assert from_config.pair_weights(config.loss.local) == PairWeights()
    assert from_config.pair_weights(config.loss.adjacency) == PairWeights()
    assert config.loss.global_.weight == LossWeights().global_
    assert from_config.draws(config.loss) == Draws()


@pytest.mark.parametrize("module", [default, demo, demo_128, ffhq, mobile_ffhq])
def test_configs_pass_their_check_and_keep_the_default_s_fields(module):
    config = module.get_config()
    experiment.check(config)

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
def test_numbers_that_no_run_can_have_are_refused(field, value, message):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as caught:
        experiment.check(config)
    assert f"config.{field} is" in str(caught.value)
    assert message in str(caught.value)


def test_a_weight_may_be_negative():
    config = default.get_config()
    config.loss.global_.weight = -1.0
    experiment.check(config)


def test_whatever_the_training_s_precision_all_else_is_float32(monkeypatch, tmp_path):
    seen = []

    def load(config):
        seen.append(jax.config.jax_default_matmul_precision)
        raise InputError("enough")

    monkeypatch.setattr(experiment, "load_networks", load)
    config = default.get_config()
    config.precision, config.parallel.devices = "default", 1
    with (
        jax.default_matmul_precision("default"),
        pytest.raises(InputError, match="enough"),
    ):
        experiment.run(config, tmp_path)
    assert seen == ["highest"]
