"""Networks in the wrappings that people's checkpoints have."""

import argparse
import pathlib
from collections import Counter

import checkpoint_files as files
import numpy as np
import pytest
import tiny

from convert import __main__ as cli
from convert.contents import find
from convert.export import export
from convert.rules import ConversionError, convert
from convert.state_dict_writer import write
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network


@pytest.fixture(scope="module")
def generator():
    return tiny.random(
        lambda rngs: tiny.StyleGAN2(
            resolution=8, channels=(4, 3), z_dim=5, w_dim=5, mapping_layers=2, rngs=rngs
        )
    )


@pytest.fixture(scope="module")
def state(generator):
    """The generator with rosinality's names, without `latent_avg`."""
    state = export(generator, "rosinality")
    del state["latent_avg"]
    return state


def prefixed(prefix, state):
    return {f"{prefix}{key}": array for key, array in state.items()}


MEAN = np.arange(5, dtype=np.float32)
OTHER = {"convs.0.0.weight": np.ones(2), "final_linear.0.weight": np.ones(2)}


# Each function wraps a state dict; the words are what the note must have.
WRAPPINGS = {
    "alone": (lambda g: g, []),
    "g_ema": (lambda g: {"g_ema": g}, []),
    "iteration": (lambda g: {"g_ema": g, "iter": 5, "args": {}}, ["'iter'", "'args'"]),
    "both": (lambda g: {"g": {k: x + 1 for k, x in g.items()}, "g_ema": g}, ["'g'"]),
    "g, g_ema None": (lambda g: {"g": g, "g_ema": None}, ["no moving average"]),
    "same object": (lambda g: {"g": g, "g_ema": g}, ["left out: 'g'"]),
    "module": (lambda g: {"g_ema": prefixed("module.", g)}, []),
    "stacked": (lambda g: prefixed("_orig_mod.module.generator.", g), []),
    "flat": (
        lambda g: prefixed("G.", g) | prefixed("D.", OTHER) | {"epoch": 3},
        ["'D.*'", "'epoch'", "no moving average"],
    ),
    "lightning": (
        lambda g: {
            "state_dict": prefixed("generator.", g) | prefixed("discriminator.", OTHER),
            "epoch": 3,
            "loops": {"fit": {"state": Counter(a=2)}},
            "hyper_parameters": {"path": "/data"},
        },
        ["'state_dict.discriminator.*'", "'epoch'", "'loops'", "'hyper_parameters'"],
    ),
    "params_ema": (lambda g: {"params": {}, "params_ema": g}, ["'params'"]),
    "tuple": (lambda g: (7, g), ["'0'"]),
    "deep": (lambda g: {"a": {"b": {"model": {"state_dict": g}}}}, []),
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_network_is_found_and_the_rest_is_named(state, name):
    wrap, words = WRAPPINGS[name]
    found = find(wrap(state))
    assert found.kind.kind == "stylegan2"
    assert found.state.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(found.state[key], array)
    notes = " ".join(found.notes)
    assert all(word in notes for word in words)
    assert bool(notes) == bool(words)


@pytest.mark.parametrize(
    "wrap", [lambda g: {"g_ema": g}, lambda g: {"a": {"g_ema": g}}]
)
def test_mean_beside_the_network_is_used(state, wrap):
    found = find(wrap(state) | {"latent_avg": MEAN, "iter": 2})
    np.testing.assert_array_equal(found.state["latent_avg"], MEAN)
    assert "latent_avg" not in " ".join(found.notes)


def test_equally_likely_networks_are_refused_by_name(state):
    with pytest.raises(ConversionError, match=r"several networks \('mine', 'yours'\)"):
        find({"mine": state, "yours": dict(state)})


def converted(found):
    return convert(found.state, found.kind)


SQUEEZE = {"features.0.weight": 0, "features.3.squeeze.weight": 0}
IR = {"body.0.res_layer.1.weight": 0, "output_layer.3.weight": 0}


@pytest.mark.parametrize(
    ("contents", "cause"),
    [
        ({"G_ema": {"synthesis.input.weight": np.ones(2)}}, "StyleGAN3"),
        ({"d": OTHER}, "a discriminator; give the file's generator"),
        ({"mu": np.zeros(8), "sigma": np.eye(8)}, "FID statistics"),
        ({"net.slice1.0.weight": 0, "net.slice7.12.squeeze.weight": 0}, "SqueezeNet"),
        ({"lin0.model.1.weight": 0, **SQUEEZE}, "SqueezeNet"),
        ({"body.0.res_layer.4.weight": np.ones((1, 1, 3, 3)), **IR}, "TFace's layout"),
    ],
)
def test_known_causes_are_named(contents, cause):
    with pytest.raises(ConversionError, match=cause):
        converted(find(contents))


def test_names_are_shortened_and_counted(state):
    extra = {f"extra{i}": i for i in range(30)} | {"x" * 5000: 1}
    (note,) = find({"g_ema": state} | extra).notes
    assert note.count("extra") == 10
    assert note.endswith("and 21 more")


def test_objects_beside_the_network_are_left_out(tmp_path, capsys, state):
    contents = {
        "g_ema": files.state_dict(state),
        "latent_avg": MEAN,
        "args": argparse.Namespace(path=pathlib.PosixPath("/data")),
        "counts": Counter("abca"),
    }
    files.write_zip(tmp_path / "x.pt", contents)
    assert cli.main([str(tmp_path / "x.pt"), "--out", str(tmp_path / "w")]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f"note: {tmp_path / 'x.pt'}: left out: 'args', 'counts'"]


@pytest.mark.parametrize("names", ["nvlabs", "rosinality"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_exports_come_back_bit_for_bit(tmp_path, generator, names, suffix):
    path = tmp_path / f"x{suffix}"
    write(path, export(generator, names))
    assert cli.main([str(path), "--out", str(tmp_path / "w")]) == 0
    ours = flat_leaves(load_network(tmp_path / "w" / "x"))
    for key, leaf in flat_leaves(generator).items():
        assert np.asarray(ours[key]).tobytes() == np.asarray(leaf).tobytes(), key


def test_own_networks_need_no_conversion(tmp_path, capsys, generator):
    path = tmp_path / "own.npz"
    tiny.save_network(path, generator)
    assert cli.main([str(path), "--out", str(tmp_path / "w")]) == 1
    assert "already a network of guide_jax" in capsys.readouterr().err
