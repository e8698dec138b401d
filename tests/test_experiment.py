"""What a config's fields become; the rest of a run is seen in test_main.py."""

import jax
import numpy as np
import pytest
import tiny

from configs import default, demo, ffhq
from guide_jax import data, experiment, unlearn
from guide_jax.errors import InputError
from guide_jax.losses import LossWeights, PairWeights
from guide_jax.unlearn import Draws


def test_every_training_field_reaches_the_training(monkeypatch, tmp_path):
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "seed": 11,
            "steps": 12,
            "optimizer.learning_rate": 0.013,
            "loss.psi": 0.14,
            "loss.local.weight": 1.5,
            "loss.local.mse_weight": 1.6,
            "loss.local.lpips_weight": 1.7,
            "loss.local.id_weight": 1.8,
            "loss.adjacency.weight": 2.5,
            "loss.adjacency.mse_weight": 2.6,
            "loss.adjacency.lpips_weight": 2.7,
            "loss.adjacency.id_weight": 2.8,
            "loss.adjacency.count": 3,
            "loss.adjacency.alpha_max": 3.5,
            "loss.global_.weight": 4.5,
            "loss.global_.count": 5,
        }
    )
    given = {}

    def record(generator, judges, w_u, w_target, **kwargs):
        kwargs.pop("on_step")(0, {"total": 1.5})
        given.update(kwargs, args=(generator, *judges, w_u, w_target))
        return "forgetful"

    monkeypatch.setattr(unlearn, "unlearn", record)
    networks = {"generator": "g", "lpips": "l", "identity": "i", "judge": "j"}
    forgetful, _ = experiment.train(config, networks, "w_u", "w_target", tmp_path)
    assert forgetful == "forgetful"
    assert given.pop("key") == jax.random.key(11)
    assert given == {
        "args": ("g", "l", "i", "w_u", "w_target"),
        "steps": 12,
        "learning_rate": 0.013,
        "weights": LossWeights(
            PairWeights(mse=1.6, lpips=1.7, identity=1.8, total=1.5),
            PairWeights(mse=2.6, lpips=2.7, identity=2.8, total=2.5),
            4.5,
        ),
        "draws": Draws(3, 5, alpha_max=3.5, psi=0.14),
    }
    assert '{"step": 0, "total": 1.5, ' in (tmp_path / "metrics.jsonl").read_text()


def test_default_settings_are_the_paper_s():
    config = default.get_config()
    assert (config.steps, config.target.name, config.target.distance) == (
        1000, "extra", 30.0
    )  # fmt: skip
    assert config.optimizer.learning_rate == 1e-4
    assert experiment._pair_weights(config.loss.local) == PairWeights()
    assert experiment._pair_weights(config.loss.adjacency) == PairWeights()
    assert config.loss.global_.weight == LossWeights().global_
    draws = Draws(
        config.loss.adjacency.count,
        config.loss.global_.count,
        config.loss.adjacency.alpha_max,
        config.loss.psi,
    )
    assert draws == Draws()


@pytest.mark.parametrize("module", [default, demo, ffhq])
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


def test_sampled_person_is_the_seed_s_z_through_the_mapping():
    config, generator = default.get_config(), tiny.generator(8)
    config.source.seed, config.source.psi = 5, 0.5
    person = experiment.find_person(config, generator, None)
    z = data.z_of_seed(5, 8)
    w = tiny.jitted(generator.mapping, lambda m, z: m(z), z)
    w_avg = generator.mapping.w_avg[...]
    np.testing.assert_allclose(person.w, (w + w_avg) / 2, rtol=1e-5, atol=1e-5)
    assert (person.photo, person.name) == (None, "seed 5")
