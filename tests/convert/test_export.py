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
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.storage.network_file import fill, load_network, save_network

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


def again(state, names):
    """Returns the network that a file of this state dict is read as."""
    return convert(state, NAMES[names].family)


def assert_same(got, wanted):
    """Same keys in the same order; every array the same, bit for bit."""
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
def test_golden_state_dict_comes_back(name, names):
    state = load(name).weights()
    network = again(state, names)
    if names == "rosinality":  # the published file has it beside the state dict
        state["latent_avg"] = tiny.flat(network)["mapping.w_avg"]
    assert_same(export(network, names), state)


@pytest.mark.parametrize(("name", "names"), FIXTURES)
def test_golden_network_comes_back_under_the_other_names(name, names):
    network = again(load(name).weights(), names)
    (other,) = NAMES.keys() - {names}
    assert_same_network(again(export(network, other), other), network)


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("channels", [(3,), (6, 5), (6, 5, 4, 4)])
def test_any_size_comes_back_bit_for_bit(names, channels):
    network = generator(channels)
    leaves = tiny.flat(network)
    # Numbers that arithmetic or another type in between would change.
    leaves["mapping.fc1.bias"][:4] = -0.0, 1e-42, 3.4e38, 1 + 2**-23
    network = fill(network, leaves)
    assert_same_network(again(export(network, names), names), network)


def test_lengths_of_z_and_w_may_differ_under_nvlabs_names():
    network = generator(z_dim=8, w_dim=7)
    assert_same_network(again(export(network, "nvlabs"), "nvlabs"), network)
    with pytest.raises(ConversionError, match="z has length 8 and its w 7"):
        export(network, "rosinality")


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: generator(conv_clamp=256.0), r"its conv_clamp is 256\.0, .* None$"),
        (
            lambda: generator(mapping_lr_multiplier=0.1),
            r"its mapping_lr_multiplier is 0\.1, .* 0\.01$",
        ),
        (tiny.mobile, "a mobilestylegan network"),
        (tiny.encoder, "a w_encoder network"),
    ],
)
def test_what_the_names_cannot_say_is_refused(build, message, names):
    with pytest.raises(ConversionError, match=message):
        export(build(), names)


# How the published classes are called -------------------------------------------------


def test_golden_stylegan2_nv_tiny_call():
    golden = load("stylegan2_nv_tiny")
    call = call_of(again(golden.weights(), "nvlabs"), "nvlabs")
    networks = types.SimpleNamespace(Generator=dict)
    got = eval(call, {"training": types.SimpleNamespace(networks=networks)})
    wanted = golden.info["init_kwargs"]
    # Of float16 and clamp the state dict says nothing; the class has none unless told.
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
def test_the_call_names_the_channels_that_no_argument_gives(names, channels, end):
    config = {"resolution": 2 << len(channels), "channels": channels}
    config |= {"z_dim": 7, "w_dim": 7, "mapping_layers": 2}
    call = NAMES[names].call(config)
    assert call.removesuffix("thesisNetwork").endswith(end)


# The rules and the lists of tensors must not drift apart ------------------------------


@pytest.mark.parametrize("names", NAMES)
def test_tensors_without_a_rule_are_named(names, monkeypatch):
    family = NAMES[names].family
    rules = [rule for rule in family.rules if "synthesis" not in str(rule.path)]
    rules = [rule for rule in rules if "synthesis" not in rule.pattern][:-1]
    family = dataclasses.replace(family, rules=rules)
    target = dataclasses.replace(NAMES[names], family=family)
    monkeypatch.setitem(exporting.NAMES, names, target)
    key = {"nvlabs": "synthesis.b4.const", "rosinality": "input.input"}[names]
    with pytest.raises(ConversionError, match=f"nothing fills '{key}'") as caught:
        export(generator(), names)
    assert "synthesis.b4.const has no name" in str(caught.value)


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
            assert f"synthesis.{conv}.{leaf} has no name" in str(caught.value)
    assert str(caught.value).count("has no name") == 6


@pytest.mark.parametrize(
    "layout", [lambda x: x * 2, lambda x: x / 2, lambda x: x[:1], lambda x: x[::-1] * 0]
)
def test_a_layout_that_does_more_than_move_numbers_is_named(layout, monkeypatch):
    rules = (
        Rule(r"mapping\.w_avg", "mapping.w_avg", layout),
        *NAMES["nvlabs"].family.rules,
    )
    family = dataclasses.replace(NAMES["nvlabs"].family, rules=rules)
    target = dataclasses.replace(NAMES["nvlabs"], family=family)
    monkeypatch.setitem(exporting.NAMES, "nvlabs", target)
    with pytest.raises(ConversionError, match=r"w_avg can't be put back into '.*\[7\]"):
        export(generator(), "nvlabs")


# The command line ---------------------------------------------------------------------


def read_npz(path):
    with np.load(path) as archive:
        return dict(archive)


@pytest.mark.parametrize("npz", [False, True])
@pytest.mark.parametrize(
    ("file", "names"), [("nvlabs.pkl", "nvlabs"), ("rosinality.pt", "rosinality")]
)
def test_a_converted_file_comes_back(tmp_path, capsys, file, names, npz):
    flags = ["--npz"] if npz else []
    assert cli.main([str(DATA / file), "--out", str(tmp_path), *flags]) == 0
    capsys.readouterr()
    network = tmp_path / (Path(file).stem + (".npz" if npz else ""))
    to = tmp_path / "back.npz"
    flags = [] if names == "nvlabs" else ["--names", names]  # nvlabs unless told
    assert cli.main(["--export", str(network), "--to", str(to), *flags]) == 0
    out, err = capsys.readouterr()
    heads, row, call = out.splitlines()
    assert heads.split() == list(cli.COLUMNS)
    assert row.startswith(f"{network}  {NAMES[names].family.title}  ")
    assert row.endswith(f"  {to}")
    assert call == f"fits {call_of(load_network(network), names)}"
    assert err == ""
    wanted = read_npz(DATA / f"{names}.npz")
    wanted = {key.removeprefix("g_ema."): array for key, array in wanted.items()}
    assert f" {len(wanted)}  " in row
    got = read_npz(to)
    assert got.keys() == wanted.keys()
    assert_same(got, {key: wanted[key] for key in got})  # the samples' order is free


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give FILE... --out DIR or --pypi --out DIR to convert, or --export"),
        ("a.pt", "give FILE... --out DIR or --pypi"),
        ("--out w", "give FILE... --out DIR or --pypi"),
        ("--export net", "--export alone: give both --export NETWORK and --to FILE"),
        ("--to a.npz", "--to alone: give both"),
        ("--names nvlabs", "--names alone: give both"),
        ("--export net --names nvlabs", "--export and --names alone: give both"),
        ("a.pt --export net --to b.npz", "FILE can't stand with --export and --to: "),
        ("--export net --to b.npz --out w", "--out can't stand with --export and"),
        ("--export net --to b.npz --npz", "--npz can't stand with"),
        ("--export net --to b.npz --dtype float32", "--dtype can't stand with"),
        ("a.pt --out w --names nvlabs", "FILE and --out can't stand with --names: "),
        ("--export net --to b.pth", "--to b.pth: its name has to end in one of .npz, "),
        ("--export net --to b", "--to b: its name has to end in one of"),
    ],
)
def test_options_that_do_not_go_together(
    capsys, monkeypatch, tmp_path, options, message
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(options.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_failures_are_one_line_and_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    names = ("clamped", "mobile", "good")
    clamped, mobile, good = (tmp_path / f"{name}.npz" for name in names)
    save_network(clamped, generator(conv_clamp=256))
    save_network(mobile, tiny.mobile())
    save_network(good, generator())
    (tmp_path / "text.npz").write_text("text")
    there = sorted(tmp_path.iterdir())
    for source, to, message in (
        ("none", "a.npz", "none: no network there"),
        ("text.npz", "a.npz", "text.npz: not a network of guide_jax"),
        ("clamped.npz", "a.npz", "clamped.npz: its conv_clamp is 256"),
        ("mobile.npz", "a.npz", "mobile.npz: a mobilestylegan network; only stylegan2"),
        ("good.npz", "good.npz", "good.npz: a network of guide_jax is there"),
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
