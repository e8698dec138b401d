"""Saving and loading networks as `.npz` files and folders, and their hash."""

import errno
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import identity

from guide_jax import models
from guide_jax.models.network import fill, flat_leaves, leaf_shapes, network_hash
from guide_jax.storage.network_file import load_network, read_about, save_network


class Tiny(nnx.Module):
    kind = "tiny"

    def __init__(self, *, widths=(2, 3), gain=None, rngs):
        self.config = {"widths": widths, "gain": gain}
        self.layers = nnx.List(
            nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.norm = nnx.BatchNorm(widths[-1], rngs=rngs)
        self.strength = nnx.Param(jnp.float32(0.1))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "tiny", Tiny)
    network = Tiny(widths=(2, 5, 3), rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    leaves = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in leaf_shapes(network).items()
    }
    # Values that a round trip through text or a wider type would change.
    leaves["norm.bias"] = np.array([-0.0, 1e-42, 3.4e38], np.float32)
    return fill(network, leaves)


def bits(network):
    return {name: np.asarray(x).view("u4") for name, x in flat_leaves(network).items()}


@pytest.mark.parametrize("name", ["net.npz", "net", "net.v2", "new/folder/net"])
def test_round_trip_is_exact(tmp_path, tiny, name):
    save_network(tmp_path / name, tiny, about={"from": ["a.pt"]})
    loaded = load_network(tmp_path / name)
    assert type(loaded) is Tiny
    assert loaded.config == {"widths": (2, 5, 3), "gain": None}
    assert type(loaded.config["widths"]) is tuple
    got, wanted = bits(loaded), bits(tiny)
    assert got.keys() == wanted.keys()
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
    assert read_about(tmp_path / name) == {"from": ["a.pt"]}
    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(tiny.layers[0](x), loaded.layers[0](x))


@pytest.mark.parametrize("name", ["net.npz", "net"])
def test_float16_on_disk_is_float32_in_memory(tmp_path, tiny, name):
    leaves = {k: np.full(v, 0.1) for k, v in leaf_shapes(tiny).items()}
    save_network(tmp_path / name, fill(tiny, leaves), dtype=np.float16)
    for leaf in flat_leaves(load_network(tmp_path / name)).values():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.float32(np.float16(0.1)))
    if name == "net.npz":
        with np.load(tmp_path / name) as archive:
            assert archive["strength"].dtype == np.float16


def test_float16_overflow_is_rejected(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"norm\.bias does not fit into float16"):
        save_network(tmp_path / "net.npz", tiny, dtype=np.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["net.npz", "net"])
def test_non_finite_values_are_not_saved(tmp_path, tiny, name, bad, dtype):
    save_network(tmp_path / name, tiny)
    leaves = {k: np.ones(v, np.float32) for k, v in leaf_shapes(tiny).items()}
    leaves["layers.1.kernel"][2, 1] = bad
    with pytest.raises(ValueError, match=r"^layers\.1\.kernel is not finite; nothing"):
        save_network(tmp_path / name, fill(tiny, leaves), dtype=dtype)
    np.testing.assert_array_equal(
        load_network(tmp_path / name).layers[1].kernel[...], tiny.layers[1].kernel[...]
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["net.npz", "net"])
def test_saving_again_replaces_the_network(tmp_path, tiny, name):
    save_network(tmp_path / name, Tiny(rngs=nnx.Rngs(0)))
    save_network(tmp_path / name, tiny)
    assert load_network(tmp_path / name).config == tiny.config
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["net.npz", "net"])
def test_a_failed_write_leaves_the_old_network(tmp_path, tiny, name, monkeypatch):
    save_network(tmp_path / name, tiny)

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    monkeypatch.setattr(
        "guide_jax.storage.network_file.np.lib.format.write_array", full
    )
    with pytest.raises(OSError, match="no space"):
        save_network(tmp_path / name, Tiny(rngs=nnx.Rngs(0)))
    assert load_network(tmp_path / name).config == tiny.config
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["net.npz", "net"])
@pytest.mark.parametrize("most", [0, 300])
def test_a_full_disk_leaves_the_old_network(tmp_path, tiny, name, most, limited):
    save_network(tmp_path / name, tiny)
    larger = identity()
    with limited(most), pytest.raises(OSError, match="File too large"):
        save_network(tmp_path / name, larger)
    assert load_network(tmp_path / name).config == tiny.config
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_files_are_not_overwritten(tmp_path, tiny):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "me.png").write_bytes(b"x")
    (tmp_path / "other.npz").write_bytes(b"x")
    for path in (folder, tmp_path / "other.npz"):
        with pytest.raises(ValueError, match="not a network of guide_jax"):
            save_network(path, tiny)
    assert (folder / "me.png").exists()


def test_a_missing_network_is_reported(tmp_path):
    for name in ("net", "net.npz"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such network"):
            load_network(tmp_path / name)


def test_files_that_are_not_networks_are_rejected(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_text("")
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    for path in list(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=f"{path.name}: not a network") as caught:
            load_network(path)
        assert "\n" not in str(caught.value)


def rewrite(path, **changes):
    """Changes arrays of an `.npz`; None drops an array."""
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    arrays = {name: x for name, x in arrays.items() if x is not None}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 4 GiB"),
        PermissionError(errno.EACCES, "Permission denied"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"),
    ],
)
@pytest.mark.parametrize("function", ["_read_leaves", "np.load"])
def test_other_failures_are_not_called_a_broken_network(
    tmp_path, tiny, monkeypatch, error, function
):
    save_network(tmp_path / "a.npz", tiny)

    def fail(*_):
        raise error

    monkeypatch.setattr(f"guide_jax.storage.network_file.{function}", fail)
    with pytest.raises(type(error)):
        load_network(tmp_path / "a.npz")


def test_names_that_are_not_utf8_round_trip(tmp_path, tiny):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for name in ("a", "a.npz", os.fsdecode(b"\xe9"), os.fsdecode(b"\xe9")):
        save_network(folder / name, tiny, about={"name": name})
        assert read_about(folder / name) == {"name": name}
        loaded = flat_leaves(load_network(folder / name))
        for leaf, value in flat_leaves(tiny).items():
            np.testing.assert_array_equal(loaded[leaf], value)
    assert len(list(folder.iterdir())) == 3


def test_a_leaf_mismatch_names_every_leaf(tmp_path, tiny):
    path = tmp_path / "net.npz"
    save_network(path, tiny)
    rewrite(
        path,
        extra=np.ones(3),
        strength=None,
        **{"norm.bias": np.ones(4), "layers.0.kernel": np.ones((5, 2))},
    )
    with pytest.raises(ValueError, match="not a valid tiny network") as caught:
        load_network(path)
    for part in (
        str(path),
        "unknown extra",
        "missing strength",
        "norm.bias has shape [4], not [3]",
        "layers.0.kernel has shape [5, 2], not [2, 5]",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_rejected(tmp_path, tiny):
    path = tmp_path / "net.npz"
    save_network(path, tiny)
    rewrite(path, strength=np.float32(np.nan))
    with pytest.raises(ValueError, match=r"tiny network \(strength is not finite\)"):
        load_network(path)


def test_unknown_kinds_and_configs_are_rejected(tmp_path, tiny, monkeypatch):
    save_network(tmp_path / "net", tiny)
    with pytest.raises(ValueError, match="does not survive JSON"):
        save_network(tmp_path / "b", Tiny(widths=[2, 3], rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="does not survive JSON"):
        save_network(tmp_path / "b", Tiny(gain=np.float32(1), rngs=nnx.Rngs(0)))

    class Other(Tiny):
        def __init__(self, *, depth, rngs):
            pass

    monkeypatch.setitem(models.NETWORKS, "tiny", Other)
    with pytest.raises(ValueError, match=r"net: not a valid tiny network \(.*argument"):
        load_network(tmp_path / "net")
    with pytest.raises(ValueError, match=r"Tiny is not in models\.NETWORKS"):
        save_network(tmp_path / "b", tiny)
    monkeypatch.delitem(models.NETWORKS, "tiny")
    with pytest.raises(ValueError, match="unknown kind of network 'tiny'"):
        load_network(tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("mantissa_bits", [10, 6])
def test_mantissas_are_rounded(tmp_path, tiny, mantissa_bits):
    rng = np.random.default_rng(1)
    leaves = {k: rng.standard_normal(v) for k, v in leaf_shapes(tiny).items()}
    path = tmp_path / "net.npz"
    save_network(
        path, fill(tiny, leaves), dtype=np.float16, mantissa_bits=mantissa_bits
    )
    for name, leaf in flat_leaves(load_network(path)).items():
        error = np.abs(leaf - leaves[name])
        assert np.all(error <= 2.0 ** -(mantissa_bits + 1) * np.abs(leaves[name]) * 1.1)
        stored = np.asarray(leaf).astype(np.float16)
        np.testing.assert_array_equal(stored, leaf)
        assert not np.any(stored.view(np.uint16) & (2 ** (10 - mantissa_bits) - 1))


# The hash of a network ---------------------------------------------------------------


def test_the_hash_of_a_network_changes_with_its_weights():
    first = network_hash(identity(0))
    assert first == network_hash(identity(0))
    assert first != network_hash(identity(1))
    changed = identity(0)
    leaf = changed.head.linear.bias
    leaf[...] = leaf[...].at[0].add(1e-6)
    assert first != network_hash(changed)
