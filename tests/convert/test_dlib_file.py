"""Reads dlib's `.dat` files, whole and damaged, and converts them."""

import re

import dlib_rule
import numpy as np
import pytest
from dlib_rule import alias, integer, integers, name, number, tensor

from convert import dlib_file
from convert.__main__ import main
from convert.jobs import plan
from guide_jax.errors import InputError
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network

VALUES = dlib_rule.weights()
FILTERS, BIASES = VALUES["stem.conv.filters"], VALUES["stem.conv.biases"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "face.dat"


def error_of(path):
    """Returns the message of reading a bad file, after checking its form."""
    with pytest.raises(InputError) as caught:
        dlib_file.read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"{path}: not dlib's face recognition network, or damaged"
    )
    return message


def test_every_tensor_is_read(path):
    dlib_rule.write(path, VALUES)
    assert dlib_file.holds_network(path)
    found = dlib_file.read(path)
    assert list(found) == list(VALUES)
    for key, wanted in VALUES.items():
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], wanted)


def test_the_command_converts_the_file(path, tmp_path, capsys):
    dlib_rule.write(path, VALUES)
    assert main([str(path), "--out", str(tmp_path / "weights"), "--npz"]) == 0
    assert "dlib's face recognition network" in capsys.readouterr().out
    network = load_network(tmp_path / "weights" / "face.npz")
    assert network.config == {
        "widths": dlib_rule.WIDTHS,
        "embedding_dim": dlib_rule.EMBEDDING,
    }
    leaves = flat_leaves(network)
    np.testing.assert_array_equal(
        leaves["blocks.3.conv2.kernel"],
        VALUES["blocks.3.conv2.filters"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        leaves["blocks.13.affine2.bias"], VALUES["blocks.13.affine2.beta"]
    )
    np.testing.assert_array_equal(leaves["linear.kernel"], VALUES["linear.weights"])


def test_a_truncated_file_is_one_line(path):
    dlib_rule.write(path, VALUES)
    data = path.read_bytes()
    # All places in the versions, and some in every later part.
    for length in [*range(400), *range(400, len(data), len(data) // 100)]:
        path.write_bytes(data[:length])
        assert f"the file ends at byte {length}" in error_of(path)


@pytest.mark.parametrize("byte", range(0, 700, 7))
def test_a_changed_byte_never_passes_unnoticed(path, byte):
    """The first bytes are versions, the input layer and the first layer's sizes."""
    dlib_rule.write(path, VALUES)
    data = bytearray(path.read_bytes())
    start = data.index(np.float32(FILTERS.flat[0]).tobytes())  # of the free values
    byte = byte * start // 700
    loss = 15 + len(dlib_rule.number(0.04)) + len(dlib_rule.number(0.6)) + 2
    if 17 <= byte < loss:
        return  # the loss's margin and distance, which do not matter
    data[byte] ^= 1
    path.write_bytes(data)
    error_of(path)


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("loss version", integer(2), "the loss layer's version is 2, not 1"),
        ("loss", name("loss_mmod_"), "the loss is 'loss_mmod_', not 'loss_metric_2'"),
        ("loss", b"\x81\x05", "byte 2 does not start the name of the loss"),
        ("loss settings", integers(1, 32000) * 2, "the float at byte 17 is out of"),
        ("version linear", integer(1), "version of layer 130 of 130 (linear) is 1, no"),
        ("version blocks.0.tag", integer(2), "of layer 5 of 130 (tag) is 2, not 1"),
        ("input", name("input_rgb_image"), "the input layer is 'input_rgb_image', not"),
        ("mean", number(128) * 3, "the input's mean is [128.0, 128.0, 128.0]"),
        ("size", integers(150, 112), "the input's width is 112, not 150"),
        ("stem.conv kind", name("con_6"), "(stem.conv) is 'con_6', not 'con_4'"),
        ("stem.conv values", tensor(FILTERS), "has 588 values, not 592"),
        (
            "stem.conv values",
            tensor(FILTERS * np.inf, BIASES),
            "has values that are not finite",
        ),
        (
            "stem.conv values",
            integers(2, 10**9, 10**9, 1, 1),
            "4000000000000000000 bytes are needed",
        ),
        (
            "stem.conv values",
            integers(2, -1, 1, 1, 1),
            "the values of layer 1 of 130 (stem.conv) has shape [-1, 1, 1, 1]",
        ),
        ("stem.conv values", integers(2, 0, 2**62, 2**62, 2**62), "has shape [0, 461"),
        ("stem.conv values", integer(1), "the tensor version of the values of layer 1"),
        ("stem.conv count", integer(5), "have shape [4, 3, 7, 7], not [5, 3, 7, 7]"),
        (
            "blocks.3.conv1 window",
            integers(3, 3, 1, 1, 1, 1),
            "the vertical stride of layer 30 of 130 (blocks.3.conv1) is 1, not 2",
        ),
        ("stem.conv biases", alias(4, 1, 1, 1), "the biases of layer 1 of 130"),
        ("blocks.0.affine1 mode", integer(1), "(blocks.0.affine1) is 1, not 0"),
        ("blocks.0.affine1 beta", alias(1, 3, 1, 1), "have shape [1, 3, 1, 1], not"),
        ("stem.relu flags", b"010", "the flags of layer 3 of 130 (relu) are b'010'"),
        ("stem.relu flags", b"1x0", "the flags of layer 3 of 130 (relu) are b'1x0'"),
        (
            "stem.pool training",
            lambda part: tensor(BIASES) + part[len(part) // 3 :],
            "the gradient of layer 4 of 130 (max_pool_2) has shape [4, 1, 1, 1]",
        ),
        ("samples", integer(2), "the number of samples per image is 2, not 1"),
        ("pool window", integers(2, 2, 2, 2, 0, 0), "(avg_pool_2) is 2, not 0"),
        ("linear mode", integer(0), "the bias mode of layer 130 of 130 (linear) is 0"),
        (
            "linear sizes",
            integers(5, 13),
            "have shape [12, 5, 1, 1], not [13, 5, 1, 1]",
        ),
        (
            "linear training",
            lambda part: part + b"more",
            "4 bytes are left after the last layer",
        ),
    ],
)
def test_an_unexpected_part_is_named(path, part, edit, message):
    dlib_rule.write(path, VALUES, {part: edit})
    assert message in error_of(path)


def test_the_rules_name_layers_that_do_not_fit_together(path, tmp_path, capsys):
    wrong = {
        **VALUES,
        "blocks.4.conv1.filters": VALUES["blocks.4.conv1.filters"][:, 1:],
    }
    dlib_rule.write(path, wrong)
    assert main([str(path), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'blocks.4.conv1.filters' has shape [6, 5, 3, 3]" in error


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" * 9, b"\1\1\1\3abc"])
def test_a_foreign_file_is_not_taken_for_this_network(path, data):
    path.write_bytes(data)
    assert not dlib_file.holds_network(path)
    error_of(path)
    jobs, errors = plan([path])
    assert not jobs
    assert re.fullmatch(rf"{re.escape(str(path))}: [^\n]+", errors[0])


def test_a_damaged_file_is_one_error_of_the_command(path, tmp_path, capsys):
    dlib_rule.write(path, VALUES)
    path.write_bytes(path.read_bytes()[:-1])
    assert main([str(path), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: not dlib's face recognition network")
    assert error.count(str(path)) == error.count("\n") == 1


def test_a_missing_file_is_an_error(path):
    assert not dlib_file.holds_network(path)
    assert not dlib_file.holds_network(path.parent)  # a folder
    with pytest.raises(FileNotFoundError, match=r"face\.dat: no such file"):
        dlib_file.read(path)
