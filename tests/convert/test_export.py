import dataclasses
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiny
from golden_data import load

from convert import __main__ as cli
from convert import export as exporting
from convert.export import NAMES, call_of, export
from convert.rules import ConversionError, Rule, convert
from guide_jax.models.network import fill
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.storage.network_file import load_network, save_network

DATA = Path(__file__).parents[1] / "data"


def generator(channels=(6, 5, 4), z_dim=7, w_dim=7, **config):
    return tiny.random(
        lambda rngs: StyleGAN2(
            resolution=2 << len(channels),
            channels=channels,
            z_dim=z_dim,
            w_dim=w_dim,
            **{"mapping_layers": 2} | config,
            rngs=rngs,
        )
    )


def convert_back(state, names):
    """Converts an exported state dict back to a network."""
    return convert(state, NAMES[names].family)


def assert_same(got, wanted):
    """Checks for the same keys in the same order and bit-identical arrays."""
    assert list(got) == list(wanted)
    for key, array in wanted.items():
        assert got[key].dtype == array.dtype == np.float32, key
        assert got[key].shape == array.shape, key
        assert got[key].tobytes() == array.tobytes(), key


def assert_same_network(got, wanted):
    assert got.config == wanted.config
    assert_same(tiny.flat(got), tiny.flat(wanted))


FIXTURES = [
    ("stylegan2_nv_tiny", "nvlabs"),
    ("stylegan2_rosinality_256", "rosinality"),
    ("stylegan2_nv_ffhq1024", "nvlabs"),
    ("stylegan2_rosinality_1024", "rosinality"),
]


@pytest.mark.parametrize(("name", "names"), FIXTURES)
def test_golden_state_dict_survives_a_round_trip(name, names):
    state = load(name).weights()
    network = convert_back(state, names)
    if names == "rosinality":  # stored next to the state dict in the published file
        state["latent_avg"] = tiny.flat(network)["mapping.w_avg"]
    assert_same(export(network, names), state)


@pytest.mark.parametrize(("name", "names"), FIXTURES)
def test_golden_network_survives_a_round_trip_with_the_other_names(name, names):
    network = convert_back(load(name).weights(), names)
    (other,) = NAMES.keys() - {names}
    assert_same_network(convert_back(export(network, other), other), network)


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("channels", [(3,), (6, 5), (6, 5, 4, 4)])
def test_round_trip_is_bit_exact_at_any_size(names, channels):
    network = generator(channels)
    leaves = tiny.flat(network)
    # Values that arithmetic or a cast to another type would change.
    leaves["mapping.fc1.bias"][:4] = -0.0, 1e-42, 3.4e38, 1 + 2**-23
    network = fill(network, leaves)
    assert_same_network(convert_back(export(network, names), names), network)


def test_z_and_w_lengths_may_differ_only_with_nvlabs_names():
    network = generator(z_dim=8, w_dim=7)
    assert_same_network(convert_back(export(network, "nvlabs"), "nvlabs"), network)
    with pytest.raises(ConversionError, match="z has length 8 and w has length 7"):
        export(network, "rosinality")


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: generator(conv_clamp=256.0), r"conv_clamp is 256\.0, .* None$"),
        (
            lambda: generator(mapping_lr_multiplier=0.1),
            r"mapping_lr_multiplier is 0\.1, .* 0\.01$",
        ),
        (tiny.mobile, "a mobilestylegan network"),
        (tiny.encoder, "a w_encoder network"),
    ],
)
def test_settings_that_a_state_dict_cannot_store_are_refused(build, message, names):
    with pytest.raises(ConversionError, match=message):
        export(build(), names)


# Calls of the published classes -------------------------------------------------


def test_golden_stylegan2_nv_tiny_call():
    golden = load("stylegan2_nv_tiny")
    call = call_of(convert_back(golden.weights(), "nvlabs"), "nvlabs")
    networks = types.SimpleNamespace(Generator=dict)
    got = eval(call, {"training": types.SimpleNamespace(networks=networks)})
    wanted = golden.info["init_kwargs"]
    # A state dict stores neither float16 nor clamp; the class uses none by default.
    for key in ("num_fp16_res", "conv_clamp"):
        assert not wanted["synthesis_kwargs"][key]
    kept = ("channel_base", "channel_max")
    kept = {key: wanted["synthesis_kwargs"][key] for key in kept}
    assert got == wanted | {"synthesis_kwargs": kept}


@pytest.mark.parametrize(
    ("names", "channels", "end"),
    [
        ("nvlabs", (512, 512, 256, 128), "{'channel_base': 4096, 'channel_max': 512})"),
        ("nvlabs", (6, 6, 3, 1), "{'channel_base': 48, 'channel_max': 6})"),
        ("nvlabs", (6, 4, 5), "with channels_dict = {4: 6, 8: 4, 16: 5} in its Syn"),
        ("rosinality", (512, 512), "Generator(8, 7, 2, channel_multiplier=2)"),
        ("rosinality", (*[512] * 5, 256), "(128, 7, 2, channel_multiplier=2)"),
        ("rosinality", (*[512] * 4, 256), "(64, 7, 2, channel_multiplier=1)"),
        ("rosinality", (512, 500), "with self.channels = {4: 512, 8: 500}"),
        ("rosinality", (*[512] * 5, 128), "32: 512, 64: 512, 128: 128}"),
    ],
)
def test_call_names_channels_that_no_argument_can_set(names, channels, end):
    config = {"resolution": 2 << len(channels), "channels": channels}
    config |= {"z_dim": 7, "w_dim": 7, "mapping_layers": 2}
    call = NAMES[names].call(config)
    assert call.removesuffix("thesisNetwork").endswith(end)


# The rules and the lists of tensors must stay in sync ------------------------------


@pytest.mark.parametrize("names", NAMES)
def test_tensors_without_a_rule_are_named(names, monkeypatch):
    family = NAMES[names].family
    rules = [rule for rule in family.rules if "synthesis" not in str(rule.path)]
    rules = [rule for rule in rules if "synthesis" not in rule.pattern][:-1]
    family = dataclasses.replace(family, rules=rules)
    target = dataclasses.replace(NAMES[names], family=family)
    monkeypatch.setitem(exporting.NAMES, names, target)
    key = {"nvlabs": "synthesis.b4.const", "rosinality": "input.input"}[names]
    with pytest.raises(ConversionError, match=f"no value for '{key}'") as caught:
        export(generator(), names)
    assert "no tensor name for synthesis.b4.const" in str(caught.value)


@pytest.mark.parametrize("names", NAMES)
def test_leaves_without_a_tensor_are_named(names, monkeypatch):
    shapes = NAMES[names].shapes

    def fewer(config):
        return ((key, shape) for key, shape in shapes(config) if "noise" not in key)

    target = dataclasses.replace(NAMES[names], shapes=fewer)
    monkeypatch.setitem(exporting.NAMES, names, target)
    with pytest.raises(ConversionError) as caught:
        export(generator((6, 5)), names)
    convs = ("b4.conv1", "b8.conv0", "b8.conv1")
    for conv in convs:
        for leaf in ("noise_strength", "noise_const"):
            assert f"no tensor name for synthesis.{conv}.{leaf}" in str(caught.value)
    assert str(caught.value).count("no tensor name") == 6


@pytest.mark.parametrize(
    "layout", [lambda x: x * 2, lambda x: x / 2, lambda x: x[:1], lambda x: x[::-1] * 0]
)
def test_layouts_that_change_values_are_named(layout, monkeypatch):
    rules = (
        Rule(r"mapping\.w_avg", "mapping.w_avg", layout),
        *NAMES["nvlabs"].family.rules,
    )
    family = dataclasses.replace(NAMES["nvlabs"].family, rules=rules)
    target = dataclasses.replace(NAMES["nvlabs"], family=family)
    monkeypatch.setitem(exporting.NAMES, "nvlabs", target)
    with pytest.raises(ConversionError, match=r"w_avg cannot be converted to '.*\[7\]"):
        export(generator(), "nvlabs")


# The command line ---------------------------------------------------------------------


NEEDS_BOTH = "exporting needs both --export NETWORK and --to FILE; got only"


def read_npz(path):
    with np.load(path) as archive:
        return dict(archive)


@pytest.mark.parametrize("npz", [False, True])
@pytest.mark.parametrize(
    ("file", "names"), [("nvlabs.pkl", "nvlabs"), ("rosinality.pt", "rosinality")]
)
def test_converted_file_survives_a_round_trip(tmp_path, capsys, file, names, npz):
    flags = ["--npz"] if npz else []
    assert cli.main([str(DATA / file), "--out", str(tmp_path), *flags]) == 0
    capsys.readouterr()
    network = tmp_path / (Path(file).stem + (".npz" if npz else ""))
    to = tmp_path / "back.npz"
    flags = [] if names == "nvlabs" else ["--names", names]  # nvlabs is the default
    assert cli.main(["--export", str(network), "--to", str(to), *flags]) == 0
    out, err = capsys.readouterr()
    heads, row, call = out.splitlines()
    assert heads.split() == list(cli.COLUMNS)
    assert row.startswith(f"{network}  {NAMES[names].family.title}  ")
    assert row.endswith(f"  {to}")
    assert call == f"loads into {call_of(load_network(network), names)}"
    assert err == ""
    wanted = read_npz(DATA / f"{names}.npz")
    wanted = {key.removeprefix("g_ema."): array for key, array in wanted.items()}
    assert f" {len(wanted)}  " in row
    got = read_npz(to)
    assert got.keys() == wanted.keys()
    assert_same(got, {key: wanted[key] for key in got})  # samples are unordered


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give FILE... --out DIR or --pypi --out DIR to convert, or --export"),
        ("a.pt", "give FILE... --out DIR or --pypi"),
        ("--out w", "give FILE... --out DIR or --pypi"),
        ("--export net", f"{NEEDS_BOTH} --export"),
        ("--to a.npz", f"{NEEDS_BOTH} --to"),
        ("--names nvlabs", f"{NEEDS_BOTH} --names"),
        ("--export net --names nvlabs", f"{NEEDS_BOTH} --export and --names"),
        (
            "a.pt --export net --to b.npz",
            "FILE cannot be combined with --export and --to",
        ),
        (
            "--export net --to b.npz --out w",
            "--out cannot be combined with --export",
        ),
        ("--export net --to b.npz --npz", "--npz cannot be combined with"),
        ("--export net --to b.npz --dtype float32", "--dtype cannot be combined with"),
        (
            "a.pt --out w --names nvlabs",
            "FILE and --out cannot be combined with --names",
        ),
        (
            "--export net --to b.pth",
            "--to b.pth: unsupported suffix, use one of .npz",
        ),
        ("--export net --to b", "--to b: unsupported suffix, use one of"),
    ],
)
def test_conflicting_or_missing_options_are_refused(
    capsys, monkeypatch, tmp_path, options, message
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(options.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_failures_print_one_line_and_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    names = ("clamped", "mobile", "good")
    clamped, mobile, good = (tmp_path / f"{name}.npz" for name in names)
    save_network(clamped, generator(conv_clamp=256))
    save_network(mobile, tiny.mobile())
    save_network(good, generator())
    (tmp_path / "text.npz").write_text("text")
    there = sorted(tmp_path.iterdir())
    for source, to, message in (
        ("none", "a.npz", "none: no such network"),
        ("text.npz", "a.npz", "text.npz: not a network of guide_jax"),
        ("clamped.npz", "a.npz", "clamped.npz: conv_clamp is 256"),
        (
            "mobile.npz",
            "a.npz",
            "mobile.npz: cannot export a mobilestylegan network",
        ),
        ("good.npz", "good.npz", "good.npz: is a guide_jax network"),
        ("good.npz", "a.pt", "a.pt: .pt needs PyTorch, which is not installed"),
        ("good.npz", "text.npz/a.npz", "text.npz/a.npz: [Errno"),
    ):
        options = ["--export", str(tmp_path / source), "--to", str(tmp_path / to)]
        assert cli.main(options) == 1
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert re.match(re.escape(f"error: {tmp_path}/{message}"), line), line
    assert sorted(tmp_path.iterdir()) == there
