"""Converting the published e4e file, which holds an encoder and a generator."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from convert import __main__ as cli
from convert import jobs
from convert.contents import find
from convert.rules import convert
from convert.torch_file import read
from guide_jax import inversion
from guide_jax.models.e4e import E4E
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.storage.network_file import load_network, read_about

DATA = Path(__file__).parents[1] / "data"
OPTS = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": True}


def bundle(**changes):
    """Returns a file's contents: a small encoder and a generator for 8 pixels."""
    decoder = read(DATA / "rosinality.pt")["g_ema"]
    encoder = tiny.e4e_state(num_ws=4, w_dim=8)
    latent_avg = encoder.pop("latent_avg")
    state = {f"encoder.{key}": array for key, array in encoder.items()}
    state |= {f"decoder.{key}": array for key, array in decoder.items()}
    return {"state_dict": state, "latent_avg": latent_avg, "opts": OPTS} | changes


def run_cli(monkeypatch, capsys, tmp_path, data, *more):
    """Converts `e4e.pt` with these contents; returns status, table rows and errors."""
    path = tmp_path / "e4e.pt"
    path.write_bytes(b"-")
    known = {path: data}
    monkeypatch.setattr(jobs, "read", lambda path: known.get(path) or read(path))
    args = [str(path), *map(str, more), "--npz", "--out", str(tmp_path / "w")]
    status = cli.main(args)
    out, err = capsys.readouterr()
    return status, out.splitlines()[1:], err.splitlines()


def test_one_file_gives_an_encoder_and_a_generator(monkeypatch, capsys, tmp_path):
    data = bundle()
    status, rows, errors = run_cli(monkeypatch, capsys, tmp_path, data)
    assert (status, errors) == (0, [])
    for row, title in zip(rows, ("e4e inversion", "StyleGAN2, rosin"), strict=True):
        assert row.startswith(f"{tmp_path / 'e4e.pt'}  {title}")
    encoder = load_network(tmp_path / "w" / "e4e_encoder.npz")
    generator = load_network(tmp_path / "w" / "e4e_generator.npz")
    assert (type(encoder), type(generator)) == (E4E, StyleGAN2)
    np.testing.assert_array_equal(encoder.w_avg[...], data["latent_avg"])
    np.testing.assert_allclose(
        generator.mapping.w_avg[...], data["latent_avg"].mean(0), atol=1e-6
    )
    (source,) = read_about(tmp_path / "w" / "e4e_encoder.npz")["sources"]
    assert source["file"] == "e4e.pt"
    encode = inversion.make_encode(encoder, generator)
    w = encode(np.zeros((1, 16, 16, 3), np.float32))
    assert w.shape == (1, generator.num_ws, generator.w_dim)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            {"encoder_type": "GradualStyleEncoder"},
            "encoder 'GradualStyleEncoder'",
        ),
        ({"lr": 0.1}, "'opts' has no 'encoder_type'"),
        (None, "'opts' has no 'encoder_type'"),
    ],
)
def test_psp_encoders_are_refused_in_one_line(
    monkeypatch, capsys, tmp_path, opts, message
):
    data = bundle(opts=opts)
    status, rows, (error,) = run_cli(monkeypatch, capsys, tmp_path, data)
    assert status == 1
    assert error.startswith(f"error: {tmp_path / 'e4e.pt'}: ")
    assert message in error
    # The file's generator is complete and is converted.
    assert len(rows) == 1
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["e4e_generator.npz"]


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("encoder.latlayer2.bias", None, "no tensor for laterals.1.bias"),
        ("encoder.styles.2.linear.weight", None, "'styles.3.linear.weight' "),
        ("encoder.styles.0.convs.0.weight", None, "'styles.0.convs.0.weight' is miss"),
        ("encoder.body.0.res_layer.1.weight", None, "trunk has 0 stages"),
        ("encoder.styles.1.convs.0.weight", (8, 8), "styles.1.convs.0.kernel needs"),
        ("encoder.styles.3.convs.1.weight", (1,), "unknown tensor 'styles.3.convs.1"),
        ("encoder.latlayer3.bias", (1,), "unknown tensor 'latlayer3.bias' [1]"),
        ("encoder.input_layer.0.weight", (), "'input_layer.0.weight' has shape []"),
    ],
)
def test_faults_of_the_encoder_are_named_and_the_generator_is_kept(
    monkeypatch, capsys, tmp_path, key, shape, message
):
    data = bundle()
    if shape is None:
        del data["state_dict"][key]
    else:
        data["state_dict"][key] = np.zeros(shape, np.float32)
    status, rows, (error,) = run_cli(monkeypatch, capsys, tmp_path, data)
    assert status == 1
    assert error.startswith(f"error: {tmp_path / 'e4e.pt'}: ")
    assert message in error
    assert len(rows) == 1


def test_broken_generator_does_not_stop_the_encoder(monkeypatch, capsys, tmp_path):
    data = bundle()
    del data["state_dict"]["decoder.conv1.activate.bias"]
    status, rows, (_, error) = run_cli(
        monkeypatch, capsys, tmp_path, data, DATA / "nvlabs.pkl"
    )
    assert status == 1
    assert "StyleGAN2, rosinality's names" in error
    assert "no tensor for synthesis.b4.conv1.bias" in error
    assert len(rows) == 2
    names = {path.name for path in (tmp_path / "w").iterdir()}
    assert names == {"e4e_encoder.npz", "nvlabs.npz"}


def test_tensors_of_neither_network_are_named(monkeypatch, capsys, tmp_path):
    data = bundle(w_std=np.ones(8))
    strays = ("ema.input_layer.0.weight", "encoder")
    data["state_dict"] |= dict.fromkeys(strays, np.ones(3))
    status, rows, notes = run_cli(monkeypatch, capsys, tmp_path, data)
    assert (status, len(rows)) == (0, 2)
    title = f"note: {tmp_path / 'e4e.pt'}: left out: "
    assert f"{title}'w_std'" in notes
    assert f"{title}'ema.input_layer.0.weight', 'encoder'" in notes


ROWS = np.arange(32, dtype=np.float32).reshape(4, 8)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"latent_avg": ROWS}, ROWS),
        ({"latent_avg": ROWS[1]}, np.tile(ROWS[1], (4, 1))),
        ({"latent_avg": ROWS[2:3]}, np.tile(ROWS[2], (4, 1))),
        ({"opts": OPTS | {"start_from_latent_avg": False}}, np.zeros((4, 8))),
        (
            {"latent_avg": None, "opts": OPTS | {"start_from_latent_avg": False}},
            np.zeros((4, 8)),
        ),
    ],
)
def test_mean_is_used_as_by_the_published_code(changes, wanted):
    data = {k: x for k, x in bundle(**changes).items() if x is not None}
    found = find(data)
    family, state = found.kind.split(found.state, print)["encoder"]
    np.testing.assert_array_equal(convert(state, family).w_avg[...], wanted)


@pytest.mark.parametrize("mean", [None, np.ones((3, 8)), np.ones(7), np.ones((1, 7))])
def test_missing_and_misshapen_means_are_named(monkeypatch, capsys, tmp_path, mean):
    data = {k: x for k, x in bundle(latent_avg=mean).items() if x is not None}
    *_, error = run_cli(monkeypatch, capsys, tmp_path, data)[2]
    assert error.startswith(f"error: {tmp_path / 'e4e.pt'}: ")
    assert "'latent_avg'" in error
