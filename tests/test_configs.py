"""Validation of the configs; experiment/test_unlearn.py tests how a run uses them."""

import jax
import pytest

from configs import (
    default,
    demo,
    demo_128,
    demo_guide,
    eg3d_ffhq,
    ffhq,
    mobile_ffhq,
)
from guide_jax.config import load_config, read
from guide_jax.config_types import LossWeights, PairWeights, Refine, Sampling
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


def test_photo_settings_reach_the_source_and_the_training():
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "source.photos_per_person": 3,
            "source.held_out": 2,
            "source.variants": 0,
            "source.codes_per_step": 5,
            "source.accept_doubt": True,
            "source.refine.steps": 7,
            "source.refine.learning_rate": 0.25,
            "source.refine.id_weight": 1.5,
            "source.refine.prior_weight": 2.5,
            "source.refine.layers_weight": 3.5,
        }
    )
    made = read(config)
    source = made.source
    assert (source.photos_per_person, source.held_out, source.variants) == (3, 2, 0)
    assert (source.codes_per_step, source.accept_doubt) == (5, True)
    assert source.refine == Refine(7, 0.25, 1.5, 2.5, 3.5)
    assert made.training.codes_per_step == 5


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = default.get_config()
    config.cache = config.source.image = config.evaluate.fid_real = "~/x"
    config.evaluate.external_folder = "~/x"
    settings, place = read(config), tmp_path / "x"
    assert (settings.cache, settings.source.image) == (place, str(place))
    assert settings.evaluate.external_folder == place
    assert settings.evaluate.fid_real == str(place)


def test_a_cache_that_cannot_be_written_is_noted(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        experiment._cache_programs(tmp_path / "file")
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    out = capsys.readouterr().out
    assert f"not cached in {tmp_path / 'file' / 'programs'} (Not a directory)" in out
    assert out.count("\n") == 1


def test_installed_external_judges_are_used_unless_a_config_names_others():
    assert read(default.get_config()).evaluate.external == ("auto",)


def test_at_most_as_many_altered_copies_are_made_as_there_are_alterations():
    config = default.get_config()
    config.source.variants = 4
    assert read(config).source.variants == 4
    config.source.variants = 5
    with pytest.raises(InputError, match=r"source\.variants is 5; there are at most 4"):
        read(config)


@pytest.mark.parametrize(
    "module",
    [default, demo, demo_128, demo_guide, eg3d_ffhq, ffhq, mobile_ffhq],
)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attack.which": ("replay", "luck")},
            "attack.which names 'luck'; choose from",
        ),
        ({"attack.after_training": ("luck",)}, "attack.after_training names 'luck'"),
        ({"attack.require": 6}, "attack.require is 6; there are 5 levels"),
        ({"attack.require": -1}, "attack.require is -1; it must not be negative"),
        (
            {"attack.budgets": (100, 25)},
            "attack.budgets is (100, 25); it must be rising",
        ),
        ({"attack.budgets": ()}, "attack.budgets is (); it must be rising"),
        ({"attack.relearn_steps": (0, 5)}, "attack.relearn_steps is (0, 5)"),
        ({"attack.starts": 0}, "attack.starts is 0; it must be above 0"),
        ({"attack.photos": 0}, "attack.photos is 0; it must be above 0"),
        ({"attack.learning_rate": 0.0}, "attack.learning_rate is 0"),
    ],
)
def test_wrong_settings_of_attacks_are_rejected(changes, message):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError) as caught:
        read(config)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 2, "process": 2, "coordinator": "a:1"}, "process is 2; it counts"
         r" from 0 and must be below config\.parallel\.processes \(2\)"),
        ({"process": 1}, r"process is 1; .* must be below .* \(1\)"),
        ({"processes": 3, "process": 3, "over": "people"}, "process is 3"),
        ({"processes": 3, "process": -1, "over": "people"}, "process is -1"),
        ({"processes": 0}, "processes is 0; it must be above 0"),
        ({"processes": 2}, "share steps need .*coordinator=HOST:PORT"),
        ({"wait": -1.0}, "wait is -1.0; it must not be negative"),
    ],
)  # fmt: skip
def test_impossible_processes_are_rejected(changes, message):
    changes = {f"parallel.{name}": value for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        load_config("default", **changes)


def test_possible_processes_are_accepted():
    for changes in (
        {"over": "people", "processes": 3, "process": 2},
        {"processes": 2, "process": 1, "coordinator": "myhost:1234"},
        {"coordinator": "auto", "process": 7},  # the cluster's numbers are taken
    ):
        fields = {f"parallel.{name}": value for name, value in changes.items()}
        assert load_config("default", **fields).parallel.process > 0
