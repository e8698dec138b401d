from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from guide_jax.training.train_state import Keeper

STATE = {"step": np.asarray(3), "x": {"y": jnp.arange(4.0)}}
FRESH = {"step": np.asarray(0), "x": {"y": jnp.zeros(4)}}


def test_a_kept_state_comes_back_to_whom_it_belongs(tmp_path):
    keeper = Keeper(tmp_path / "state", "me", 2)
    assert keeper.load(FRESH) is FRESH
    keeper.save(STATE)
    found = keeper.load(FRESH)
    assert int(found["step"]) == 3
    np.testing.assert_array_equal(found["x"]["y"], STATE["x"]["y"])
    assert Keeper(tmp_path / "state", "you", 2).load(FRESH) is FRESH
    keeper.save(STATE | {"step": np.asarray(5)})
    assert int(keeper.load(FRESH)["step"]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    keeper.drop()
    assert list(tmp_path.iterdir()) == []


def test_states_are_kept_by_several_threads_at_once(tmp_path):
    def keep(person):
        keeper = Keeper(tmp_path / person / "state", person, 1)
        for step in range(10):
            keeper.save(STATE | {"step": np.asarray(step)})
            assert int(keeper.load(FRESH)["step"]) == step

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep, "abcd"))


def test_a_damaged_state_is_passed_over(tmp_path):
    keeper = Keeper(tmp_path / "state", "me", 2)
    keeper.save(STATE)
    for file in (tmp_path / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    assert keeper.load(FRESH) is FRESH


@pytest.mark.parametrize("name", [".state.part", "state.part", "state.old"])
def test_a_state_that_was_being_renamed_is_found(tmp_path, name):
    keeper = Keeper(tmp_path / "state", "me", 2)
    keeper.save(STATE)
    left = tmp_path / name
    (tmp_path / "state").rename(left)
    found = int(keeper.load(FRESH)["step"])
    assert found == (0 if name.startswith(".") else 3)
    keeper.drop()
    assert left.exists() == name.startswith(".")
