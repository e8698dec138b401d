"""Converting GOAE's encoder: recognition, constants and faults."""

import checkpoint_files
import numpy as np
import pytest
import tiny

from convert import __main__ as cli
from convert import goae
from convert.registry import family_of
from convert.rules import ConversionError, convert
from guide_jax.models.goae import GOAE
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network

BLOCK = "swin_model.layers.0.blocks.1"


def run_cli(capsys, tmp_path, state):
    """Converts a file with this state dict; returns status, rows and errors."""
    path = tmp_path / "encoder_FFHQ.pt"
    checkpoint_files.write_zip(path, checkpoint_files.state_dict(state))
    status = cli.main([str(path), "--npz", "--out", str(tmp_path / "w")])
    out, err = capsys.readouterr()
    return status, out.splitlines()[1:], err.splitlines()


def test_the_file_becomes_one_encoder(capsys, tmp_path):
    state = tiny.goae_state()
    status, (row,), errors = run_cli(capsys, tmp_path, state)
    assert (status, errors) == (0, [])
    assert "GOAE inversion encoder (encoder_FFHQ.pt)" in row
    encoder = load_network(tmp_path / "w" / "encoder_FFHQ.npz")
    assert type(encoder) is GOAE
    # All values are kept, except for the constants, which are computed.
    constants = [key for key in state if "relative_" in key or "attn_mask" in key]
    assert len(constants) == 5 * 2 + 1
    kept = [x for key, x in state.items() if key not in constants]
    leaves = [np.asarray(x) for x in flat_leaves(encoder).values()]
    np.testing.assert_array_equal(
        np.sort(np.concatenate([x.ravel() for x in leaves])),
        np.sort(np.concatenate([x.ravel() for x in kept])),
    )


def test_other_families_do_not_claim_the_file():
    assert family_of(tiny.goae_state()) is goae.GOAE


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("swin_model.norm.bias", None, "no tensor for trunk.norm_out.bias"),
        ("mapper_fine_channel.2.weight", None, "no tensor for channels.2.layers.1.k"),
        ("mapper_base_channel.2.weight", None, "'mapper_base_channel.2.weight' is m"),
        ("mapper_base_spatial.0.weight", (5, 5), "reads 5 tokens, which is not a sq"),
        ("cross_att_mid.linear1.bias", (9,), r"attentions.1.expand.bias needs \[16\]"),
        ("cross_att_mid.multihead_attn.in_proj_bias", (25,), "unknown tensor 'cross"),
        ("swin_model.layers.1.blocks.0.attn.tau", (1,), "unknown tensor 'swin_model"),
        (f"{BLOCK}.attn_mask", None, f"tensor '{BLOCK}.attn_mask' is missing"),
        ("swin_model.layers.2.blocks.0.attn_mask", (1, 16, 16), "unknown tensor 'swi"),
        (f"{BLOCK}.attn_mask", (16, 16, 16), f"'{BLOCK}.attn_mask' does not hold the"),
        (f"{BLOCK}.attn.relative_position_index", (16, 16), "does not hold the publ"),
        (f"{BLOCK}.attn.relative_coords_table", (1, 7, 7, 2), "does not hold the pu"),
        (f"{BLOCK}.attn.relative_coords_table", (1, 9, 9, 2), "does not hold the pu"),
    ],
)
def test_faults_are_named(key, shape, message):
    state = tiny.goae_state()
    if shape is None:
        del state[key]
    else:
        state[key] = np.zeros(shape, np.float32)
    with pytest.raises(ConversionError, match=message):
        convert(state, goae.GOAE)


def test_a_fault_is_reported_in_one_line(capsys, tmp_path):
    state = tiny.goae_state()
    del state["swin_model.norm.bias"]
    status, rows, (error,) = run_cli(capsys, tmp_path, state)
    assert (status, rows) == (1, [])
    assert error.startswith(f"error: {tmp_path / 'encoder_FFHQ.pt'}: GOAE inversion")
