"""Saving, loading and dropping train states."""

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from guide_jax.training.checkpoint import TrainStateStore

STATE = {"step": np.asarray(3), "x": {"y": jnp.arange(4.0)}}
FRESH = {"step": np.asarray(0), "x": {"y": jnp.zeros(4)}}


def test_a_saved_state_is_loaded_only_by_its_owner(tmp_path):
    store = TrainStateStore(tmp_path / "state", "me", 2)
    assert store.load(FRESH) is FRESH
    store.save(STATE)
    found = store.load(FRESH)
    assert int(found["step"]) == 3
    np.testing.assert_array_equal(found["x"]["y"], STATE["x"]["y"])
    assert TrainStateStore(tmp_path / "state", "you", 2).load(FRESH) is FRESH
    store.save(STATE | {"step": np.asarray(5)})
    assert int(store.load(FRESH)["step"]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    store.drop()
    assert list(tmp_path.iterdir()) == []


def test_several_threads_can_save_states_at_once(tmp_path):
    def save_repeatedly(person):
        store = TrainStateStore(tmp_path / person / "state", person, 1)
        for step in range(10):
            store.save(STATE | {"step": np.asarray(step)})
            assert int(store.load(FRESH)["step"]) == step

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(save_repeatedly, "abcd"))


def test_a_full_disk_leaves_the_earlier_state(tmp_path, limited):
    store = TrainStateStore(tmp_path / "state", "me", 2)
    store.save(STATE)
    large = STATE | {"x": {"y": np.random.default_rng(0).standard_normal(99_999)}}
    for most in (0, 300, 30_000):
        with limited(most), pytest.raises(OSError, match="File too large") as caught:
            store.save(large)
        assert caught.value.errno == errno.EFBIG
        assert [path.name for path in tmp_path.iterdir()] == ["state"]
        assert int(store.load(FRESH)["step"]) == 3


def test_a_disk_without_room_is_found_out_before_writing(tmp_path, monkeypatch):
    store = TrainStateStore(tmp_path / "state", "me", 2)
    store.save(STATE)
    none = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: none)
    with pytest.raises(OSError, match="No space left on device"):
        store.save(STATE)
    assert int(store.load(FRESH)["step"]) == 3


def test_a_damaged_state_is_ignored(tmp_path):
    store = TrainStateStore(tmp_path / "state", "me", 2)
    store.save(STATE)
    for file in (tmp_path / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    assert store.load(FRESH) is FRESH


@pytest.mark.parametrize("name", [".state.part", "state.part", "state.old"])
def test_a_state_is_recovered_after_an_interrupted_rename(tmp_path, name):
    store = TrainStateStore(tmp_path / "state", "me", 2)
    store.save(STATE)
    leftover = tmp_path / name
    (tmp_path / "state").rename(leftover)
    found = int(store.load(FRESH)["step"])
    assert found == (0 if name.startswith(".") else 3)
    store.drop()
    assert leftover.exists() == name.startswith(".")
