import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from convert import torch_file
from convert.torch_file import LEGACY_START, read

DATA = Path(__file__).parents[1] / "data"


def arrays(thing, prefix=""):
    """Returns dotted name -> array of nested dicts."""
    flat = {}
    for key, value in thing.items():
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
def test_reads_what_pytorch_wrote(name):
    got = arrays(read(DATA / name))
    if name.startswith("mixed"):
        np.testing.assert_array_equal(got.pop("numpy"), [[0, 1, 2], [3, 4, 5]])
    wanted = np.load(DATA / (name.split(".")[0].removesuffix("_legacy") + ".npz"))
    assert got.keys() == set(wanted.files)
    for key, array in got.items():
        assert array.dtype == wanted[key].dtype, key
        assert array.shape == wanted[key].shape, key
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, wanted[key], err_msg=key)


@pytest.mark.parametrize("name", ["mixed.pt", "mixed_legacy.pt"])
def test_plain_contents(name):
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


def test_embedded_source_of_nvlabs_pickle_is_there_and_not_run():
    # Running it would end the tests with SystemExit.
    assert b"raise SystemExit" in (DATA / "nvlabs.pkl").read_bytes()
    assert "synthesis.b4.const" in read(DATA / "nvlabs.pkl")


def test_unknown_parts_beside_g_ema_are_named(monkeypatch):
    known = {"G", "D", "training_set_kwargs", "augment_pipe"}
    assert known == torch_file.NVLABS_BESIDE  # the sample holds all of them
    monkeypatch.setattr(torch_file, "NVLABS_BESIDE", known - {"D", "augment_pipe"})
    message = r"nvlabs\.pkl: beside 'G_ema' it holds unknown 'D', 'augment_pipe'$"
    with pytest.raises(ValueError, match=message):
        read(DATA / "nvlabs.pkl")


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
def test_numpy_arrays(tmp_path, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3), dtype, order=order)
    for protocol in (2, 5):
        (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"x": array}, protocol))
        got = read(tmp_path / "x.ckpt")["x"]
        np.testing.assert_array_equal(got, array)
        assert got.dtype.isnative


def test_numpy_files_of_one_dict(tmp_path):
    state = {"a.weight": np.ones((2, 3), np.float32), "n": 7}
    np.save(tmp_path / "x.npy", state)
    got = read(tmp_path / "x.npy")
    np.testing.assert_array_equal(got["a.weight"], state["a.weight"])
    assert not got["a.weight"].flags.writeable
    assert got["n"] == 7


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3), "a numpy file of one array; named ones are needed"),
        (np.array([{}, {}]), r"cut short or damaged \(an array of objects\)"),
        (np.zeros((0, 1), object), r"cut short or damaged \(an array of objects\)"),
    ],
)
def test_other_numpy_files(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"x\.npy: {message}$"):
        read(tmp_path / "x.npy")


def test_damaged_numpy_files(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, {"a": np.ones(50, np.float32)})
    whole = path.read_bytes()
    for length in [*range(6, 200, 3), *range(200, len(whole), 20)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npy: cut short or damaged") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:6] + b"\3" + whole[7:])
    with pytest.raises(ValueError, match="a numpy file of an unknown version"):
        read(path)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_empty_arrays_and_bytes(tmp_path, protocol):
    contents = {"a": np.zeros((0, 3), np.float32), "b": b"", "c": b"x"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(contents, protocol))
    loaded = read(tmp_path / "x.pkl")
    assert loaded["a"].shape == (0, 3)
    assert (loaded["b"], loaded["c"]) == (b"", b"x")


def test_big_endian_zip(tmp_path):
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(DATA / "layers.pth") as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in entries.items():
            if name.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in name:  # all but one scalar counter are float32
                data = np.frombuffer(data, "u8" if len(data) == 8 else "u4")
                data = data.byteswap().tobytes()
            target.writestr(name, data)
    got, wanted = read(path), np.load(DATA / "layers.npz")
    for key in wanted.files:
        np.testing.assert_array_equal(got[key], wanted[key])
        assert got[key].dtype == wanted[key].dtype


def ints(*numbers):
    """Returns the opcodes of a tuple of numbers."""
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"


def zip_with_tensor(path, numel, offset, shape, strides, kind=b"Float"):
    """Writes a zip file of one tensor, made by hand, over 16 bytes."""
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
    body += b"ctorch\n" + kind + b"Storage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    body += b"J" + struct.pack("<i", numel) + b"tQJ" + struct.pack("<i", offset)
    body += ints(*shape) + ints(*strides) + b"\x89}tR."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/data/0", np.arange(4, dtype="<f4").tobytes())


def test_tensor_within_its_storage(tmp_path):
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
def test_tensor_beyond_its_storage(tmp_path, tensor):
    zip_with_tensor(tmp_path / "x.pt", *tensor)
    with pytest.raises(ValueError, match=r"x.pt: cut short or damaged \(a tensor"):
        read(tmp_path / "x.pt")


def test_repeated_elements_are_read_and_not_copied(tmp_path):
    zip_with_tensor(tmp_path / "x.pt", 4, 1, (2**10, 2**10), (0, 0))
    got = read(tmp_path / "x.pt")
    assert got.shape == (2**10, 2**10)
    assert got.strides == (0, 0)
    np.testing.assert_array_equal(got, 1)
    zip_with_tensor(tmp_path / "x.pt", 8, 1, (2**10, 2**10), (0, 0), b"BFloat16")
    got = read(tmp_path / "x.pt")
    assert (got.shape, got.strides, got.dtype) == ((2**10, 2**10), (0, 0), np.float32)


@pytest.mark.parametrize("kind", [b"Float", b"BFloat16"])
@pytest.mark.parametrize("shape", [(2**30, 2**20), (2**20 + 1,)])
def test_small_file_of_a_huge_tensor(tmp_path, shape, kind):
    zip_with_tensor(tmp_path / "x.pt", 4, 0, shape, (0,) * len(shape), kind)
    elements, held = np.prod(shape), 4 if kind == b"Float" else 8
    message = rf"x\.pt: .*a tensor of {elements} elements over a storage of {held}\)"
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["layers.pth", "layers_legacy.pth", "nvlabs.pkl"])
def test_truncated_files(tmp_path, name):
    whole = (DATA / name).read_bytes()
    path = tmp_path / name
    for length in [*range(1, 40), *range(40, len(whole), len(whole) // 30)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=name) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cut short or damaged"):
        read(path)


def test_zip_with_a_flipped_bit(tmp_path):
    data = bytearray((DATA / "rosinality.pt").read_bytes())
    with zipfile.ZipFile(DATA / "rosinality.pt") as archive:
        tensor = archive.read("rosinality/data/3")
    data[data.index(tensor) + 3] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.pt: cut short or damaged \(Bad CRC"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", "neither a PyTorch file nor a pickle"),
        (b"version https://git-lfs", "neither a PyTorch file nor a pickle"),
        (b"cos\nsystem\n(S'x'\ntR.", "neither a PyTorch file nor a pickle"),
        (LEGACY_START, "cut short or damaged"),
    ],
)
def test_other_files(tmp_path, data, message):
    path = tmp_path / "other.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"other.pt: {message}"):
        read(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "data.pkl is not in it"),
        (["m/data.pkl", "m/constants.pkl", "m/code/a.py"], "TorchScript"),
    ],
)
def test_other_zip_files(tmp_path, names, message):
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(ValueError, match=f"other.pt: .*{message}"):
        read(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(path)
