"""Archives that would take far more memory than their file are refused."""

import json
import zipfile

import numpy as np
import pytest

from guide_jax.attacks import codes
from guide_jax.errors import InputError
from guide_jax.metrics import fid_sources
from guide_jax.storage.archives import ALLOWANCE, open_npz
from guide_jax.storage.network_file import FORMAT, HEADER, load_network


@pytest.fixture
def bomb(tmp_path):
    """Returns a small file whose arrays of zeros claim a hundred megabytes."""
    header = {"format": FORMAT, "kind": "lpips", "config": {}, "about": {}}
    zeros = np.zeros(100_000_000, np.uint8)
    path = tmp_path / "bomb.npz"
    text = np.array(json.dumps(header))
    np.savez_compressed(path, zeros=zeros, mu=zeros, **{HEADER: text})
    assert path.stat().st_size < 1_000_000
    return path


def test_no_reader_expands_a_bomb(bomb, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # nothing may be unpacked
    with pytest.raises(ValueError, match="claim 200,0"), open_npz(bomb):
        pass
    with pytest.raises(ValueError, match=r"bomb\.npz: not a network of guide"):
        load_network(bomb)
    with pytest.raises(InputError, match="claim 200,0"):
        codes.read_directions(bomb, 6, 7)
    with pytest.raises(InputError, match="claim 200,0"):
        fid_sources.read_statistics(bomb)


def test_well_compressed_files_are_read(tmp_path):
    zeros = np.zeros(ALLOWANCE // 2, np.uint8)
    np.savez_compressed(tmp_path / "small.npz", zeros=zeros)
    with open_npz(tmp_path / "small.npz") as archive:
        np.testing.assert_array_equal(archive["zeros"], zeros)
    np.savez(tmp_path / "plain.npz", zeros=np.zeros(2 * ALLOWANCE, np.uint8))
    with open_npz(tmp_path / "plain.npz") as archive:
        assert archive["zeros"].shape == (2 * ALLOWANCE,)


def test_members_that_claim_more_than_their_file_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "lying.npz"
    np.savez_compressed(path, zeros=np.zeros(9))
    data = path.read_bytes()
    size = data.index(b"PK\1\2") + 20  # of the compressed member, in the directory
    path.write_bytes(data[:size] + b"\xff\xff\xff\x7f" + data[size + 4 :])
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(ValueError, match="damaged"), open_npz(path):
        pass
