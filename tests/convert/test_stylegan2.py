import numpy as np
import pytest
from golden_data import load
from ml_dtypes import bfloat16

from convert.contents import find
from convert.rules import ConversionError, convert
from convert.stylegan2 import NVLABS, ROSINALITY
from guide_jax.models.network import flat_leaves


@pytest.fixture
def nvlabs():
    """NVlabs' state dict of the tiny golden generator."""
    return load("stylegan2_nv_tiny").weights()


@pytest.fixture
def rosinality(nvlabs):
    """The same generator with rosinality's names, as a bare state dict."""
    state = {}
    for name, array in nvlabs.items():
        if "resample_filter" in name or name == "mapping.w_avg":
            continue
        key, array = to_rosinality(name, array)
        state[key] = array
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 16
    return state | {
        "convs.0.conv.blur.kernel": kernel,
        "to_rgbs.0.upsample.kernel": kernel,
    }


def to_rosinality(name, array):
    parts = name.split(".")
    if parts[0] == "mapping":
        return f"style.{int(parts[1][2:]) + 1}.{parts[2]}", array
    if parts[2] == "const":
        return "input.input", array[None]
    block = int(parts[1][1:]).bit_length() - 3  # 0 at 4 pixels
    leaf = ".".join(parts[3:])
    leaf = {"affine.weight": "conv.modulation.weight"}.get(leaf, leaf)
    leaf = {"affine.bias": "conv.modulation.bias"}.get(leaf, leaf)
    if parts[2] == "torgb":
        layer = f"to_rgbs.{block - 1}" if block else "to_rgb1"
        array = array.reshape(1, 3, 1, 1) if leaf == "bias" else array
    else:
        number = 2 * block - 2 + int(parts[2][4:]) if block else -1
        layer = f"convs.{number}" if block else "conv1"
        if leaf == "noise_const":
            return f"noises.noise_{number + 1}", array[None, None]
        if leaf == "noise_strength":
            return f"{layer}.noise.weight", array[None]
        leaf = "activate.bias" if leaf == "bias" else leaf
    if leaf == "weight":
        return f"{layer}.conv.weight", array[None]
    return f"{layer}.{leaf}", array


def test_config_is_read_from_shapes(nvlabs, rosinality):
    expected = load("stylegan2_nv_tiny").info["init_kwargs"]
    for state, family in ((nvlabs, NVLABS), (rosinality, ROSINALITY)):
        config = convert(state, family).config
        assert config["resolution"] == expected["img_resolution"]
        assert config["z_dim"] == expected["z_dim"]
        assert config["w_dim"] == expected["w_dim"]
        assert config["mapping_layers"] == expected["mapping_kwargs"]["num_layers"]
        base, most = (
            expected["synthesis_kwargs"][f"channel_{name}"] for name in ("base", "max")
        )
        assert config["channels"] == tuple(
            min(base // resolution, most) for resolution in (4, 8, 16, 32)
        )


def test_each_family_recognises_only_its_own_files(nvlabs, rosinality):
    for state, of_nvlabs in ((nvlabs, True), (rosinality, False)):
        assert NVLABS.recognises(state) == of_nvlabs
        assert ROSINALITY.recognises(state) != of_nvlabs


@pytest.mark.parametrize("rows", [None, 1, 8])
def test_both_families_fill_the_same_network(nvlabs, rosinality, rows):
    w_avg = nvlabs["mapping.w_avg"]
    latent_avg = w_avg if rows is None else np.tile(w_avg, (rows, 1))
    ours = flat_leaves(convert(nvlabs, NVLABS))
    found = find({"g_ema": rosinality, "g": {}, "latent_avg": latent_avg})
    theirs = flat_leaves(convert(found.state, found.kind))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def test_w_avg_of_a_bare_rosinality_dict_is_its_mean_w(rosinality):
    generator = convert(rosinality, ROSINALITY)
    z = np.random.default_rng(0).standard_normal((4096, generator.z_dim))
    w = generator.mapping(z.astype(np.float32))[:, 0]
    assert np.abs(w.mean(0)).max() > 0.01
    np.testing.assert_allclose(generator.mapping.w_avg[...], w.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("synthesis.b8.conv0.bias", None, r"synthesis\.b8\.conv0\.bias"),
        ("synthesis.b4.conv1.weight", None, r"synthesis\.b4\.conv1\.weight"),
        ("synthesis.b16.torgb.weight", (3, 64, 3, 3), r"synthesis\.b16\.torgb\.weight"),
        ("mapping.fc0.weight", (64,), r"mapping\.fc0\.weight"),
        ("mapping.fc0.weight", (64, 0), r"'mapping\.fc0\.weight' .* an empty axis"),
        ("mapping.w_avg", (8, 64), r"mapping\.w_avg"),
        ("mapping.embed.weight", (64, 5), r"mapping\.embed\.weight"),
        ("synthesis.b8.skip.weight", (64, 64, 1, 1), r"synthesis\.b8\.skip\.weight"),
        ("discriminator", (1,), "discriminator"),
    ],
)
def test_nvlabs_faults_are_named(nvlabs, key, change, message):
    expect_fault(nvlabs, NVLABS, key, change, message)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("convs.0.activate.bias", None, r"synthesis\.b8\.conv0\.bias"),
        ("conv1.conv.modulation.weight", None, r"conv1\.conv\.modulation\.weight"),
        ("style.1.weight", None, r"style\.1\.weight"),
        ("noises.noise_2", (1, 1, 4, 4), r"noises\.noise_2"),
        ("convs.1.conv.weight", (2, 64, 64, 3, 3), r"convs\.1\.conv\.weight"),
        ("noises.noise_7", (1, 1, 64, 64), r"noises\.noise_7"),
        ("stddev", (1,), "stddev"),
    ],
)
def test_rosinality_faults_are_named(rosinality, key, change, message):
    expect_fault(rosinality, ROSINALITY, key, change, message)


def expect_fault(state, family, key, change, message):
    """Removes a tensor (None) or gives it another shape; expects a conversion error."""
    if change is None:
        del state[key]
    else:
        state[key] = np.zeros(change, np.float32)
    with pytest.raises(ConversionError, match=message):
        convert(state, family)


def test_unsupported_smoothing_kernels_are_refused(nvlabs, rosinality):
    key = "synthesis.b8.conv0.resample_filter"
    nvlabs[key] = np.full((4, 4), 1 / 16, np.float32)
    with pytest.raises(ConversionError, match=key):
        convert(nvlabs, NVLABS)
    key = "to_rgbs.0.upsample.kernel"
    rosinality[key] = rosinality[key] / 4
    with pytest.raises(ConversionError, match=key):
        convert(rosinality, ROSINALITY)


def test_missing_noise_is_drawn_from_a_fixed_seed(rosinality):
    bare = {k: x for k, x in rosinality.items() if not k.startswith("noises.")}
    notes = []
    ours = flat_leaves(convert(bare, ROSINALITY, notes.append))
    again = flat_leaves(convert(bare, ROSINALITY))
    whole = flat_leaves(convert(rosinality, ROSINALITY))
    noise = [path for path in whole if path.endswith("noise_const")]
    assert any(f"no noise images; {len(noise)} were drawn" in note for note in notes)
    drawn = np.concatenate([np.ravel(ours[path]) for path in noise])
    assert (abs(drawn.mean()) < 0.1, abs(drawn.std() - 1) < 0.1) == (True, True)
    for path in whole:
        wanted = again if path in noise else whole
        np.testing.assert_array_equal(ours[path], wanted[path], err_msg=path)


def test_half_precision_is_converted(nvlabs, rosinality):
    for state, family in ((nvlabs, NVLABS), (rosinality, ROSINALITY)):
        for dtype in (np.float16, bfloat16):
            half = {key: np.asarray(x).astype(dtype) for key, x in state.items()}
            wanted = {key: x.astype(np.float32) for key, x in half.items()}
            got = flat_leaves(convert(half, family))
            for path, leaf in flat_leaves(convert(wanted, family)).items():
                assert got[path].dtype == np.float32
                np.testing.assert_array_equal(got[path], leaf, err_msg=path)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"mapping.embed.weight": (64, 5)}, "conditional generator"),
        ({"synthesis.b8.skip.weight": (64, 64, 1, 1)}, "architecture='resnet'"),
        ({"synthesis.b4.torgb.weight": None}, "architecture='orig'"),
        ({"synthesis.b4.torgb.weight": (1, 64, 1, 1)}, "generator of grey images"),
        ({"synthesis.b4.torgb.weight": (96, 64, 1, 1)}, "generator of 96 channels"),
    ],
)
def test_known_causes_are_given_instead_of_tensors(nvlabs, changes, cause):
    for key, shape in changes.items():
        nvlabs.pop(key, None)
        if shape:
            nvlabs[key] = np.zeros(shape, np.float32)
    with pytest.raises(ConversionError, match=cause) as caught:
        convert(nvlabs, NVLABS)
    assert "use one" in str(caught.value)


def test_only_ten_tensors_are_named(nvlabs):
    strays = {f"synthesis.stray{i}": np.ones(1) for i in range(40)}
    with pytest.raises(ConversionError) as caught:
        convert(nvlabs | strays, NVLABS)
    assert str(caught.value).count("stray") == 20  # each with its path
    assert str(caught.value).endswith("; and 30 more")
