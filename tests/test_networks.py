"""Where a config's networks come from."""

import pytest
import tiny

from configs import default, demo, ffhq
from guide_jax import networks
from guide_jax.checkpoint import save_network
from guide_jax.errors import InputError


@pytest.fixture
def config(tmp_path):
    """Returns the demo's config on tiny networks, without its encoder."""
    config = demo.get_config()
    made = {"generator": tiny.mobile(), "identity": tiny.identity()}
    for role, network in made.items():
        save_network(tmp_path / f"{role}.npz", network)
        config.networks[role].path = str(tmp_path / f"{role}.npz")
    config.networks.judge.path = config.networks.identity.path
    config.networks.encoder.path = "none.npz"
    return config


def test_encoder_is_asked_for_only_with_a_photo(config):
    assert set(networks.load_networks(config)) == set(default.ROLES) - {"encoder"}
    config.source.image = "face.jpg"
    with pytest.raises(InputError, match=r"--config\.networks\.encoder\.path"):
        networks.load_networks(config)


def test_a_config_without_an_encoder_takes_no_photo():
    config = ffhq.get_config()
    config.source.image = "face.jpg"
    with pytest.raises(InputError, match=r"takes no photo.*--config\.source\.seed"):
        networks.load_networks(config)


def test_a_network_of_another_kind_than_its_role_s_is_refused(config):
    config.networks.judge.path = config.networks.generator.path
    with pytest.raises(InputError, match=r"mobilestylegan network, but .*judge"):
        networks.load_networks(config)


def test_bundled_paths_are_told_by_their_prefix():
    assert networks.locate("demo:x.npz") == networks.BUNDLE / "x.npz"
    assert str(networks.locate("weights/x")) == "weights/x"
