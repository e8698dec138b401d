import copy

import numpy as np
import published_files
import pytest
import tiny
from checkpoint_files import write_zip
from eg3d_golden import contents
from golden_data import load

from convert import __main__ as cli
from convert import eg3d
from convert.export import export, names_of
from convert.registry import FAMILIES
from convert.rules import ConversionError, convert
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network

CATS = {"avg_camera_pivot": [0, 0, -0.06]}
CARS = {
    "superresolution_module": "training.superresolution.SuperresolutionHybrid2X",
    "white_back": True,
}


@pytest.fixture
def state():
    """What the published file of the tiny golden generator holds."""
    return contents(load("eg3d_tiny"))


def with_options(state, **options):
    return state | {"rendering_kwargs": state["rendering_kwargs"] | options}


def test_only_eg3d_recognises_it(state):
    assert [family for family in FAMILIES if family.recognises(state)] == [eg3d.EG3D]


def test_arguments_and_rendering_settings_are_read(state):
    config = convert(state, eg3d.EG3D).config
    assert config["channels"] == (32, 32, 32, 32, 32, 16, 8)
    assert (config["plane_channels"], config["sr_channels"]) == (32, (256, 128))
    assert (config["z_dim"], config["w_dim"], config["mapping_layers"]) == (512, 512, 2)
    assert (config["resolution"], config["render_size"]) == (512, 128)
    assert (config["depth_samples"], config["importance_samples"]) == (12, 12)
    assert (config["near"], config["far"], config["box"]) == (2.25, 3.3, 1)
    assert config["camera_pivot"] == (0, 0, 0.2)
    assert (config["conv_clamp"], config["sr_conv_clamp"]) == (None, 256)
    other = with_options(state, **CATS, c_gen_conditioning_zero=True, ray_start=2)
    other = eg3d.EG3D.config(other | {"neural_rendering_resolution": 64})
    assert other["camera_pivot"] == (0, 0, -0.06)
    assert (other["camera_scale"], other["near"], other["render_size"]) == (0, 2, 64)


def test_a_published_file_is_converted_with_its_mean_code(tmp_path, capsys, state):
    (file,) = published_files.write_eg3d(state, tmp_path)
    mean = np.repeat(published_files.draw(512)[None], 14, axis=0)
    write_zip(tmp_path / "w_avg.pt", mean)
    for extra in ([], [str(tmp_path / "w_avg.pt")]):
        out = tmp_path / f"out{len(extra)}"
        assert cli.main([str(file), *extra, "--out", str(out), "--npz"]) == 0
        loaded = load_network(out / f"{file.stem}.npz")
        wanted = convert(state, eg3d.EG3D)
        assert loaded.config == wanted.config
        leaves = flat_leaves(wanted)
        if extra:
            leaves["mapping.w_avg"] = mean[0]
        for name, leaf in flat_leaves(loaded).items():
            np.testing.assert_array_equal(leaf, leaves[name], err_msg=name)
    capsys.readouterr()
    assert cli.main([str(tmp_path / "w_avg.pt"), "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "w_avg.pt: this is a mean code [14, 512]; give it together with" in line


def test_mean_codes_with_different_rows_are_refused(state):
    with pytest.raises(ConversionError, match="rows of the mean code differ"):
        convert(state | {"w_avg": published_files.draw(14, 512)}, eg3d.EG3D)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (CARS, r"module is '.*2X', white_back is True; supported .*ffhqrebalanced"),
        ({"ray_start": "auto"}, "ray_start is 'auto'"),
        ({"disparity_space_sampling": True}, "disparity_space_sampling is True"),
        ({"density_noise": 1}, "density_noise is 1"),
        ({"superresolution_noise_mode": "random"}, "noise_mode is 'random'"),
        ({"mesh_clip": 3}, "mesh_clip is unknown"),
    ],
)
def test_other_rendering_options_are_refused_in_one_line(state, change, message):
    with pytest.raises(ConversionError, match=message) as error:
        convert(with_options(state, **change), eg3d.EG3D)
    assert "\n" not in str(error.value)


def test_missing_settings_and_other_axes_are_refused(state):
    with pytest.raises(
        ConversionError, match=r"has no rendering_kwargs, .* \.pkl file"
    ):
        convert(load("eg3d_tiny").weights(), eg3d.EG3D)
    options = dict(state["rendering_kwargs"])
    del options["box_warp"]
    with pytest.raises(ConversionError, match="box_warp is missing"):
        convert(state | {"rendering_kwargs": options}, eg3d.EG3D)
    axes = published_files.PLANE_AXES
    eg3d.prepare(state | {"renderer.plane_axes": axes}, print)
    corrected = axes.copy()
    corrected[2] = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]  # onto (z, y)
    with pytest.raises(ConversionError, match="planes have other axes"):
        eg3d.prepare(state | {"renderer.plane_axes": corrected}, print)


@pytest.mark.parametrize(
    "key",
    [
        "decoder.net.2.weight",
        "backbone.mapping.embed.bias",
        "superresolution.block1.conv0.bias",
    ],
)
def test_missing_and_unknown_tensors_are_named(state, key):
    array = state.pop(key)
    with pytest.raises(ConversionError, match=r"no tensor for|is missing"):
        convert(state, eg3d.EG3D)
    with pytest.raises(ConversionError, match=f"'{key}_'"):
        convert(state | {key: array, f"{key}_": array}, eg3d.EG3D)


def test_stylegan3_is_refused_by_name(tmp_path, capsys):
    state = {"synthesis.input.freqs": np.ones((4, 2), np.float32)}
    write_zip(tmp_path / "stylegan3.pt", state)
    arguments = [str(tmp_path / "stylegan3.pt"), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a StyleGAN3 generator, which is not supported; use a StyleGAN2" in line


# Export -------------------------------------------------------------------------------


def test_golden_state_dict_survives_a_round_trip(state):
    network = convert(state, eg3d.EG3D)
    assert names_of(network) == "eg3d"
    exported = export(network, "eg3d")
    wanted = load("eg3d_tiny").weights()
    assert list(exported) == list(wanted)
    for key, array in wanted.items():
        assert exported[key].tobytes() == array.tobytes(), key


def test_the_call_rebuilds_the_published_class(state):
    call = eg3d.call(convert(state, eg3d.EG3D).config)
    call, rest = call.split("), and ")
    assert rest == "neural_rendering_resolution = 128"
    arguments = eval(call.replace("training.triplane.TriPlaneGenerator", "dict") + ")")
    wanted = copy.deepcopy(load("eg3d_tiny").info["init_kwargs"])
    for key, value in arguments.pop("rendering_kwargs").items():
        assert wanted["rendering_kwargs"].get(key, value) == value, key
    for key, value in arguments.items():
        assert wanted[key] == value, key


def test_networks_that_the_published_class_cannot_hold_are_refused():
    with pytest.raises(ConversionError, match="plane_channels is 4, not 32"):
        export(tiny.eg3d(), "eg3d")
    with pytest.raises(
        ConversionError, match="cannot export a eg3d network; only stylegan2"
    ):
        export(tiny.eg3d(), "nvlabs")
