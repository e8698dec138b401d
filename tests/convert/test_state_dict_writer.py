import json
import pickle
import sys
import types

import numpy as np
import pytest
import tiny

from convert.state_dict_writer import write
from guide_jax.storage.network_file import save_network


@pytest.fixture
def state():
    """Tensors of every rank, with values that a cast to another type would change."""
    rng = np.random.default_rng(0)
    shapes = {"b.weight": (1, 3, 2, 5, 5), "b.noise": (), "a.bias": (3,), "c": (2, 3)}
    state = {k: rng.standard_normal(v, np.float32) for k, v in shapes.items()}
    state["b.noise"] = np.array(0.1, np.float32)  # an array, as `export` returns it
    state["a.bias"][:] = -0.0, 1e-42, 1 + 2**-23
    return state


def assert_same(got, wanted):
    """Checks for the same keys and bit-identical arrays."""
    assert got.keys() == wanted.keys()
    for key, array in wanted.items():
        assert got[key].dtype == np.float32, key
        assert got[key].shape == array.shape, key
        assert got[key].tobytes() == array.tobytes(), key


def read_safetensors(path):
    """Reads the format as described in its README."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    header, numbers = json.loads(data[8 : 8 + size]), data[8 + size :]
    assert header.pop("__metadata__") == {"format": "pt"}
    state, end = {}, 0
    for key, entry in header.items():
        assert entry["dtype"] == "F32"
        start, stop = entry["data_offsets"]
        assert start == end  # no holes
        end = stop
        array = np.frombuffer(numbers[start:stop], "<f4")
        state[key] = array.reshape(entry["shape"])
    assert end == len(numbers)
    return state


def read_npz(path):
    with np.load(path) as archive:
        return dict(archive)


@pytest.mark.parametrize(
    ("suffix", "read"), [(".npz", read_npz), (".safetensors", read_safetensors)]
)
def test_file_holds_the_state_dict(tmp_path, state, suffix, read):
    path = tmp_path / "new" / f"state{suffix}"
    write(path, {"x": np.zeros(3, np.float32)})
    write(path, state)  # replaces the older file
    assert_same(read(path), state)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def fake_torch(monkeypatch):
    """Replaces PyTorch by a module whose tensors are arrays, saved with pickle."""

    def from_numpy(array):
        assert type(array) is np.ndarray
        assert array.flags.writeable  # PyTorch warns about read-only arrays
        return array

    torch = types.SimpleNamespace(from_numpy=from_numpy, save=pickle.dump)
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.parametrize("rosinality", [False, True])
def test_pt_has_the_published_layout(tmp_path, state, rosinality, monkeypatch):
    fake_torch(monkeypatch)
    if rosinality:
        state["latent_avg"] = np.ones(7, np.float32)
    write(tmp_path / "state.pt", state)
    got = pickle.loads((tmp_path / "state.pt").read_bytes())
    if rosinality:
        assert list(got) == ["g_ema", "latent_avg"]
        got = got["g_ema"] | {"latent_avg": got["latent_avg"]}
    assert_same(got, state)


def test_pt_without_pytorch_is_refused(tmp_path, state, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install torch, or choose \.npz or"):
        write(tmp_path / "state.pt", state)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_older_file(tmp_path):
    path = tmp_path / "state.safetensors"
    write(path, {"x": np.zeros(3, np.float32)})
    before = path.read_bytes()
    with pytest.raises(AttributeError, match="dtype"):
        write(path, {"x": np.ones(3, np.float32), "y": None})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_networks_and_folders_are_not_overwritten(tmp_path, state):
    network = tmp_path / "network.npz"
    save_network(network, tiny.generator())
    save_network(tmp_path / "orbax", tiny.generator())
    (tmp_path / "orbax").rename(tmp_path / "orbax.npz")
    before = network.read_bytes()
    with pytest.raises(ValueError, match="is a guide_jax network"):
        write(network, state)
    assert network.read_bytes() == before
    with pytest.raises(ValueError, match="is a folder"):
        write(tmp_path / "orbax.npz", state)
    with pytest.raises(ValueError, match=r"unsupported suffix, use one of \.npz, "):
        write(tmp_path / "state.bin", state)
