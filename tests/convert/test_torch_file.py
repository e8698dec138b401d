import gzip
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16

from convert.torch_file import LEGACY_START, read

DATA = Path(__file__).parents[1] / "data"


def arrays(nested, prefix=""):
    """Flattens nested dicts to dotted name -> array."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= arrays(value, f"{prefix}{key}.")
        elif isinstance(value, np.ndarray):
            flat[f"{prefix}{key}"] = value
    return flat


@pytest.mark.parametrize(
    "name",
    [
        "layers.pth",
        "layers_legacy.pth",
        "mixed.pt",
        "mixed_legacy.pt",
        "rosinality.pt",
        "nvlabs.pkl",
    ],
)
def test_files_written_by_pytorch_are_read(name):
    got = read(DATA / name)
    got = arrays(got["G_ema"] if name == "nvlabs.pkl" else got)
    if name.startswith("mixed"):
        np.testing.assert_array_equal(got.pop("numpy"), [[0, 1, 2], [3, 4, 5]])
    wanted = np.load(DATA / (name.split(".")[0].removesuffix("_legacy") + ".npz"))
    assert got.keys() == set(wanted.files)
    for key, array in got.items():
        assert not array.flags.writeable
        # NumPy's own files cannot hold bfloat16.
        if array.dtype != bfloat16:
            assert array.dtype == wanted[key].dtype, key
        array = array.astype(wanted[key].dtype)
        assert array.shape == wanted[key].shape, key
        np.testing.assert_array_equal(array, wanted[key], err_msg=key)


@pytest.mark.parametrize("name", ["mixed.pt", "mixed_legacy.pt"])
def test_plain_objects_are_read(name):
    got = read(DATA / name)
    assert list(got["opts"]) == ["lr", "names", "nested"]
    assert (got["opts"]["lr"], got["opts"]["names"]) == (0.1, ["a", "b"])
    assert got["ordered"] == {"a": 1, "b": None}
    assert got["size"] == (4, 6)
    assert got["device"] == "cpu"
    assert got["dtype"] == "float32"
    assert got["seen"] == {1, 2}
    assert got["pair"] == (True, 2**70)
    assert got["numpy"].dtype == np.int16
    assert got["numpy_scalar"] == 0.1
    assert {type(got), type(got["opts"]), type(got["ordered"])} == {dict}
    assert np.shares_memory(got["shared"]["base"], got["shared"]["part"])


def test_source_embedded_in_nvlabs_pickle_is_not_run():
    # Running it would end the tests with SystemExit.
    assert b"raise SystemExit" in (DATA / "nvlabs.pkl").read_bytes()
    assert "synthesis.b4.const" in read(DATA / "nvlabs.pkl")["G_ema"]


def test_every_network_of_an_nvlabs_pickle_is_read():
    contents = read(DATA / "nvlabs.pkl")
    names = ["G", "D", "G_ema", "training_set_kwargs", "augment_pipe"]
    assert sorted(contents) == sorted(names)
    assert contents["G"].keys() == {"weight"}
    assert "synthesis.b4.const" in contents["G_ema"]


def test_pickles_without_g_ema_keep_their_structure(tmp_path):
    tree = {"VGG16_0": {"Conv_0": {"kernel": np.ones((3, 3), np.float32)}}}
    for protocol in range(2, 6):
        path = tmp_path / f"{protocol}.ckpt"
        path.write_bytes(pickle.dumps(tree, protocol))
        got = read(path)["VGG16_0"]["Conv_0"]["kernel"]
        np.testing.assert_array_equal(got, np.ones((3, 3)))
        assert got.dtype == np.float32


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f4", "<i8", "?", "<c8"])
def test_numpy_arrays_in_pickles_are_read(tmp_path, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3), dtype, order=order)
    for protocol in (2, 5):
        (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"x": array}, protocol))
        got = read(tmp_path / "x.ckpt")["x"]
        np.testing.assert_array_equal(got, array)


def test_npy_file_of_one_dict_is_read(tmp_path):
    state = {"a.weight": np.ones((2, 3), np.float32), "n": 7}
    np.save(tmp_path / "x.npy", state)
    got = read(tmp_path / "x.npy")
    np.testing.assert_array_equal(got["a.weight"], state["a.weight"])
    assert not got["a.weight"].flags.writeable
    assert got["n"] == 7


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.ones(3),
            r"a \.npy file of one unnamed array; a dict of named arrays is needed",
        ),
        (
            np.array([{}, {}]),
            r"truncated or damaged \(unsupported object array\); download it again",
        ),
        (
            np.zeros((0, 1), object),
            r"truncated or damaged \(unsupported object array\); download it again",
        ),
    ],
)
def test_other_npy_files_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"x\.npy: {message}$"):
        read(tmp_path / "x.npy")


def test_damaged_npy_files_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, {"a": np.ones(50, np.float32)})
    whole = path.read_bytes()
    for length in [*range(6, 200, 3), *range(200, len(whole), 20)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npy: truncated or damaged") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:6] + b"\3" + whole[7:])
    with pytest.raises(ValueError, match=r"unsupported \.npy format version"):
        read(path)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_empty_arrays_and_bytes_are_read(tmp_path, protocol):
    contents = {"a": np.zeros((0, 3), np.float32), "b": b"", "c": b"x"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(contents, protocol))
    loaded = read(tmp_path / "x.pkl")
    assert loaded["a"].shape == (0, 3)
    assert (loaded["b"], loaded["c"]) == (b"", b"x")


def test_big_endian_zip_is_read(tmp_path):
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(DATA / "layers.pth") as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in entries.items():
            if name.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in name:  # all tensors are float32, except one scalar counter
                data = np.frombuffer(data, "u8" if len(data) == 8 else "u4")
                data = data.byteswap().tobytes()
            target.writestr(name, data)
    got, wanted = read(path), np.load(DATA / "layers.npz")
    for key in wanted.files:
        np.testing.assert_array_equal(got[key], wanted[key])
        assert got[key].dtype.newbyteorder("=") == wanted[key].dtype


def ints(*numbers):
    """Returns the opcodes of a tuple of integers."""
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"


def zip_with_tensor(path, numel, offset, shape, strides, kind=b"Float"):
    """Writes a handmade zip file with one tensor over 16 bytes of storage."""
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
    body += b"ctorch\n" + kind + b"Storage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    body += b"J" + struct.pack("<i", numel) + b"tQJ" + struct.pack("<i", offset)
    body += ints(*shape) + ints(*strides) + b"\x89}tR."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/data/0", np.arange(4, dtype="<f4").tobytes())


def test_tensor_within_its_storage_is_read(tmp_path):
    zip_with_tensor(tmp_path / "x.pt", 4, 1, (3,), (1,))
    np.testing.assert_array_equal(read(tmp_path / "x.pt"), [1, 2, 3])


@pytest.mark.parametrize(
    "tensor",
    [
        (4, 2, (3,), (1,)),
        (4, 0, (2, 2), (3, 1)),
        (4, -1, (2,), (1,)),
        (4, 3, (2,), (-1,)),
        (4, 0, (-1,), (1,)),
        (4, 0, (2, 2), (1,)),
        (9, 0, (9,), (1,)),
    ],
)
def test_tensor_beyond_its_storage_is_refused(tmp_path, tensor):
    zip_with_tensor(tmp_path / "x.pt", *tensor)
    with pytest.raises(ValueError, match=r"x.pt: truncated or damaged \(a tensor"):
        read(tmp_path / "x.pt")


def test_repeated_elements_are_not_copied(tmp_path):
    zip_with_tensor(tmp_path / "x.pt", 4, 1, (2**10, 2**10), (0, 0))
    got = read(tmp_path / "x.pt")
    assert got.shape == (2**10, 2**10)
    assert got.strides == (0, 0)
    np.testing.assert_array_equal(got, 1)
    zip_with_tensor(tmp_path / "x.pt", 8, 1, (2**10, 2**10), (0, 0), b"BFloat16")
    got = read(tmp_path / "x.pt")
    assert (got.shape, got.strides, got.dtype) == ((2**10, 2**10), (0, 0), bfloat16)


@pytest.mark.parametrize("kind", [b"Float", b"BFloat16"])
@pytest.mark.parametrize("shape", [(2**30, 2**20), (2**20 + 1,)])
def test_huge_tensor_in_a_small_file_is_refused(tmp_path, shape, kind):
    zip_with_tensor(tmp_path / "x.pt", 4, 0, shape, (0,) * len(shape), kind)
    elements, held = np.prod(shape), 4 if kind == b"Float" else 8
    message = rf"x\.pt: .*a tensor has {elements} elements, its storage only {held}\)"
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["layers.pth", "layers_legacy.pth", "nvlabs.pkl"])
def test_truncated_files_are_refused(tmp_path, name):
    whole = (DATA / name).read_bytes()
    path = tmp_path / name
    for length in [*range(1, 40), *range(40, len(whole), len(whole) // 30)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=name) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read(path)


def test_zip_with_a_flipped_bit_is_refused(tmp_path):
    data = bytearray((DATA / "rosinality.pt").read_bytes())
    with zipfile.ZipFile(DATA / "rosinality.pt") as archive:
        tensor = archive.read("rosinality/data/3")
    data[data.index(tensor) + 3] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.pt: truncated or damaged \(Bad CRC"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", "a web page instead of a checkpoint"),
        (b"\n <html lang='en'>", "a web page instead of a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (gzip.compress(b"x"), "a packed file; unpack it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"model.pt".ljust(257, b"\0") + b"ustar", "a packed file; unpack it"),
        (b"cos\nsystem\n(S'x'\ntR.", "neither a PyTorch file nor a pickle"),
        (LEGACY_START, "truncated or damaged"),
    ],
)
def test_files_of_other_formats_are_refused(tmp_path, data, message):
    path = tmp_path / "other.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"other.pt: {message}"):
        read(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "without PyTorch's data.pkl"),
        (["m/data.pkl", "m/constants.pkl", "m/code/a.py"], "TorchScript"),
    ],
)
def test_other_zip_files_are_refused(tmp_path, names, message):
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(ValueError, match=f"other.pt: .*{message}"):
        read(path)


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path, tmp_path / "pipe.pt"):
        with pytest.raises(ValueError, match="not a regular file"):
            read(path)
