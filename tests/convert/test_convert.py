import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from convert import __main__ as cli
from convert import arcface, jobs
from convert.registry import FAMILIES
from convert.rules import (
    LAYOUTS,
    ConversionError,
    Family,
    Rule,
    apply_rules,
    convert,
)
from guide_jax import models
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network, read_about

DATA = Path(__file__).parents[1] / "data"


class Dense(nnx.Module):
    kind = "dense"

    def __init__(self, *, inputs, outputs, rngs):
        self.config = {"inputs": inputs, "outputs": outputs}
        self.dense = nnx.Linear(inputs, outputs, rngs=rngs)
        self.conv = nnx.Conv(inputs, outputs, (1, 3), use_bias=False, rngs=rngs)


def dense_config(state):
    outputs, inputs = state["fc.weight"].shape
    return {"inputs": inputs, "outputs": outputs}


DENSE = Family(
    kind="dense",
    title="test network",
    recognises=lambda state: "fc.weight" in state,
    config=dense_config,
    rules=(
        Rule(r"(?:fc|twin)\.weight", "dense.kernel", "linear"),
        Rule(r"fc\.(bias)", lambda match: f"dense.{match[1]}"),
        Rule(r"conv\.weight", "conv.kernel", "conv"),
        Rule(r"fc\.counter", None),
        Rule(r"stray\.(\w+)", r"dense.\1"),
    ),
)


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    shapes = {"fc.weight": (3, 2), "fc.bias": (3,), "conv.weight": (3, 2, 1, 3)}
    state = {name: rng.standard_normal(s) for name, s in shapes.items()}
    return state | {"fc.counter": np.int64(7)}


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "dense", Dense)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = cli._parse(["~/a.pt", "--out", "~/w"])
    assert (args.files, args.out) == ([tmp_path / "a.pt"], tmp_path / "w")
    args = cli._parse(["--export", "~/w/a", "--to", "~/b.pt"])
    assert (args.export, args.to) == (tmp_path / "w" / "a", tmp_path / "b.pt")


def test_rules_fill_every_leaf_in_our_axis_order(state):
    leaves = flat_leaves(convert(state, DENSE))
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype("float32")}
    wanted = {
        "dense.kernel": state["fc.weight"].T,
        "dense.bias": state["fc.bias"],
        "conv.kernel": state["conv.weight"].transpose(2, 3, 1, 0),
    }
    assert leaves.keys() == wanted.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, wanted[name].astype(np.float32))


def test_one_error_lists_all_faults(state):
    del state["fc.bias"]  # missing
    state["extra.weight"] = np.ones((4, 5))  # unknown
    state["twin.weight"] = np.ones((3, 2))  # maps to a leaf that is already filled
    state["stray.gain"] = np.ones(3)  # has a rule, but the network lacks the leaf
    state["conv.weight"] = np.ones((3, 2, 1, 1))  # misshapen
    with pytest.raises(ConversionError) as caught:
        convert(state, DENSE)
    text = str(caught.value)
    assert text.startswith("test network: ")
    assert "\n" not in text
    for part in (
        "no tensor for dense.bias",
        "unknown tensor 'extra.weight' [4, 5]",
        "'twin.weight' and 'fc.weight' both map to dense.kernel",
        "'stray.gain' maps to dense.gain, which this network lacks",
        "'conv.weight' has shape [3, 2, 1, 1], conv.kernel needs [1, 3, 2, 3]",
    ):
        assert part in text
    assert text.count(";") == 4


def test_missing_tensor_needed_for_the_config_is_named(state):
    del state["fc.weight"]
    with pytest.raises(ConversionError, match=r"tensor 'fc\.weight' is missing"):
        convert(state, DENSE)


def test_wrong_number_of_axes_is_a_shape_error(state):
    shapes = {"conv.kernel": (1, 3, 2, 3)}
    with pytest.raises(ConversionError, match=r"'conv.weight' has shape \[6\]"):
        apply_rules({"conv.weight": np.ones(6)}, DENSE, shapes)


@pytest.mark.parametrize("shape", [(), (6,), (3, 2, 1)])
@pytest.mark.parametrize(
    "layout", [*LAYOUTS, lambda x: x[:, :, 0, 0].T, lambda x: x * x.shape[1]]
)
def test_every_layout_names_a_tensor_of_the_wrong_shape(layout, shape):
    family = dataclasses.replace(DENSE, rules=[Rule("a", "b", layout)])
    with pytest.raises(ConversionError) as caught:
        apply_rules({"a": np.ones(shape)}, family, {"b": (7, 5)})
    fault = f"test network: 'a' has shape {list(shape)}, b needs [7, 5]"
    assert str(caught.value) == fault  # only once, without an extra "no tensor for b"


def test_tensors_of_the_wrong_shape_are_not_copied():
    huge = np.broadcast_to(np.float64(1), (2**30, 2**20))
    family = dataclasses.replace(DENSE, rules=[Rule("a", "b")])
    with pytest.raises(ConversionError, match=r"b needs \[2\]"):
        apply_rules({"a": huge}, family, {"b": (2,)})


@pytest.mark.parametrize("value", [np.array(["x", "y"]), np.ones(2, complex)])
def test_tensors_without_real_numbers_are_named(value):
    family = dataclasses.replace(DENSE, rules=[Rule("a", "b")])
    with pytest.raises(ConversionError, match=r"'a' has dtype .*, not real numbers"):
        apply_rules({"a": value}, family, {"b": (2,)})


IR_STATE = {
    "input_layer.0.weight": np.zeros((4, 3, 3, 3)),
    "body.0.res_layer.1.weight": np.zeros((4, 4, 3, 3)),
    "output_layer.0.weight": np.zeros(4),
    "output_layer.3.weight": np.zeros((8, 4)),
}


@pytest.mark.parametrize("family", [arcface.IR, arcface.IR_SE])
@pytest.mark.parametrize(
    ("key", "shape"),
    [(key, ()) for key in IR_STATE]
    + [(key, (0, 0)) for key in IR_STATE]
    + [("output_layer.3.weight", (8,)), ("output_layer.3.weight", (8, 4, 1))],
)
def test_identity_encoder_tensors_of_the_wrong_shape_are_named(family, key, shape):
    with pytest.raises(ConversionError, match=f"'{key}' has shape"):
        convert(IR_STATE | {key: np.zeros(shape)}, family)


# The command line ---------------------------------------------------------------------


@pytest.mark.parametrize("npz", [False, True])
def test_stylegan2_files_are_converted(tmp_path, capsys, npz):
    files = [DATA / "nvlabs.pkl", DATA / "rosinality.pt"]
    flags = ["--npz"] if npz else []
    assert cli.main([*map(str, files), "--out", str(tmp_path / "w"), *flags]) == 0
    out, err = capsys.readouterr()
    suffix = ".npz" if npz else ""
    nv, rosinality = (tmp_path / "w" / (f.stem + suffix) for f in files)
    lines = out.splitlines()
    assert lines[0].split() == list(cli.COLUMNS)
    assert len(lines) == 3
    assert err == (
        f"note: {files[0]}: left out: 'training_set_kwargs', 'G', 'D', 'augment_pipe'\n"
    )
    for line, file, path in zip(lines[1:], files, (nv, rosinality), strict=True):
        assert line.startswith(f"{file}  ")
        assert "  StyleGAN2" in line
        assert line.endswith(f"  {path}")

    leaves, wanted = flat_leaves(load_network(nv)), np.load(DATA / "nvlabs.npz")
    for name, theirs in {
        "mapping.fc1.weight": wanted["mapping.fc1.weight"].T,
        "mapping.w_avg": wanted["mapping.w_avg"],
        "synthesis.b8.conv0.weight": wanted["synthesis.b8.conv0.weight"].transpose(
            2, 3, 1, 0
        ),
        "synthesis.b8.conv1.noise_const": wanted["synthesis.b8.conv1.noise_const"],
    }.items():
        np.testing.assert_array_equal(leaves[name], theirs, err_msg=name)
    parameters = sum(leaf.size for leaf in leaves.values())
    assert f" {len(leaves)}  {parameters:>10,}  " in lines[1]
    (source,) = read_about(nv)["sources"]
    assert source["file"] == "nvlabs.pkl"
    assert len(source["sha256"]) == 64

    leaves = flat_leaves(load_network(rosinality))
    wanted = np.load(DATA / "rosinality.npz")
    np.testing.assert_array_equal(leaves["mapping.w_avg"], wanted["latent_avg"])
    np.testing.assert_array_equal(
        leaves["synthesis.b8.conv1.noise_const"], wanted["g_ema.noises.noise_2"][0, 0]
    )


def test_one_bad_file_does_not_stop_the_rest(tmp_path, capsys):
    html = tmp_path / "page.pt"
    html.write_bytes(b"<!DOCTYPE html>")
    pipe, long = tmp_path / "pipe.pt", tmp_path / f"{'n' * 300}.pt"
    os.mkfifo(pipe)
    files = [html, DATA / "nvlabs.pkl", tmp_path / "none.pt", DATA / "mixed.pt"]
    files += [pipe, long]
    assert cli.main([*map(str, files), "--out", str(tmp_path / "w")]) == 1
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5
    assert errors[3:] == [
        f"error: {pipe}: not a regular file",
        f"error: {long}: File name too long",
    ]
    assert errors[0].startswith(f"error: {html}: a web page instead of a checkpoint")
    assert errors[1] == f"error: {tmp_path / 'none.pt'}: no such file"
    assert errors[2].startswith(
        f"error: {DATA / 'mixed.pt'}: no supported network found"
    )
    assert all(family.title in errors[2] for family in FAMILIES)
    assert len(out.splitlines()) == 2
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["nvlabs"]


def test_malicious_file_gives_a_one_line_error(tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.")
    assert cli.main([str(path), "--out", str(tmp_path / "w")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {path}: refers to 'os.system'")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def fake_read(tmp_path, monkeypatch, contents):
    """Makes `read` return contents by file name, relative to `tmp_path`."""
    for name in contents:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "read", lambda path: contents[Path(path).name])


def test_incomplete_network_writes_nothing(tmp_path, capsys, monkeypatch):
    state = dict(jobs.read(DATA / "nvlabs.pkl")["G_ema"])
    del state["synthesis.b8.conv1.bias"]
    state["synthesis.b8.conv1.surplus"] = np.ones(2)
    fake_read(tmp_path, monkeypatch, {"a.pkl": state})
    assert cli.main(["a.pkl", "--out", str(tmp_path / "w")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a.pkl: StyleGAN2")
    assert "no tensor for synthesis.b8.conv1.bias" in line
    assert "synthesis.b8.conv1.surplus" in line
    assert not (tmp_path / "w").exists()


def test_second_file_with_the_same_output_is_refused(tmp_path, capsys, monkeypatch):
    state = jobs.read(DATA / "nvlabs.pkl")["G_ema"]
    fake_read(tmp_path, monkeypatch, {"a.pkl": state, "a.pt": state})
    assert cli.main(["a.pkl", "a.pt", "--out", "w"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    output = Path("w/a")
    assert err == (
        f"error: a.pt: its output {output} is already taken by a.pkl; rename one of the"
        " files\n"
    )


BACKBONE = {"features.0.weight": np.zeros((64, 3, 3, 3))}
HEADS = {"lin0.model.1.weight": np.zeros((1, 64, 1, 1))}


@pytest.mark.parametrize(
    ("name", "missing"),
    [("vgg16.pth", "the lpips package's heads"), ("vgg.pth", "torchvision's network")],
)
def test_lpips_needs_both_files(tmp_path, capsys, monkeypatch, name, missing):
    fake_read(tmp_path, monkeypatch, {"vgg16.pth": BACKBONE, "vgg.pth": HEADS})
    assert cli.main([name, "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name}: this is ")
    assert f"LPIPS also needs {missing}" in line
    assert "give both files together" in line


@pytest.mark.parametrize("files", [["vgg16.pth", "vgg.pth"], ["vgg.pth", "vgg16.pth"]])
def test_lpips_files_are_merged(tmp_path, monkeypatch, files):
    fake_read(tmp_path, monkeypatch, {"vgg16.pth": BACKBONE, "vgg.pth": HEADS})
    (job,), errors = jobs.plan([Path(file) for file in files])
    assert errors == []
    assert job.title == "vgg16.pth + vgg.pth"
    assert (job.family.kind, job.name) == ("lpips", "lpips")
    assert job.state.keys() == BACKBONE.keys() | HEADS.keys()


@pytest.mark.parametrize(
    "contents", [[1], {1: 2}, None, {}, {"g_ema": None}, {"body.0": 1}, {"G_ema": {}}]
)
def test_other_contents_give_a_one_line_error(tmp_path, capsys, monkeypatch, contents):
    fake_read(tmp_path, monkeypatch, {"x.pt": contents})
    assert cli.main(["x.pt", "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: x.pt: ")


def test_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "convert", DATA / "nvlabs.pkl", "--out", tmp_path],
        capture_output=True,
        text=True,
        cwd=Path(cli.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "nvlabs").is_dir()
    assert "nvlabs.pkl" in done.stdout
    usage = subprocess.run(
        [sys.executable, "-m", "convert"],
        capture_output=True,
        text=True,
        cwd=Path(cli.__file__).parents[1],
    )
    assert usage.returncode == 2
    assert usage.stdout == ""
