"""The test suite's checkpoint writers, compared with files written by PyTorch."""

import argparse
import io
import pickletools
import struct
import zipfile
from pathlib import Path

import checkpoint_files as files
import numpy as np
import pytest

from convert.torch_file import LEGACY_START, read

DATA = Path(__file__).parents[1] / "data"
WRITERS = {"zip": files.write_zip, "legacy": files.write_legacy}


def sample(name):
    """Returns a sample's expected contents: dotted name -> array."""
    return dict(np.load(DATA / f"{name}.npz"))


def operations(file):
    """Returns a pickle's opcodes and arguments, with memo references resolved.

    Storage addresses, which differ between runs, and raw data are left out.
    """
    found, memo = [], {}
    for code, arg, _ in pickletools.genops(file):
        if "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if arg is None else arg] = found[-1]
        elif "GET" in code.name:
            found.append(memo[arg])
        elif isinstance(arg, bytes) and arg.startswith(LEGACY_START):
            found.append((code.name, legacy_operations(arg)))
        elif isinstance(arg, str) and arg.isdigit() and len(arg) == 14:
            found.append((code.name, "an address"))
        elif code.name != "FRAME":
            found.append((code.name, arg))
    return found


def legacy_operations(data):
    """Returns the operations of a legacy file's five pickles, and the bytes left."""
    file = io.BytesIO(data)
    return [operations(file) for _ in range(5)], len(file.read())


def zip_operations(path):
    """Returns the operations of the pickle in a zip file."""
    with zipfile.ZipFile(path) as archive:
        return operations(archive.read(f"{path.stem}/data.pkl"))


def assert_same(got, wanted):
    """Compares nested dicts of arrays and other values."""
    assert type(got) is type(wanted) or isinstance(wanted, dict)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, np.ndarray):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(got, wanted)
    else:
        assert got == wanted


def rosinality(arrays):
    """Returns the sample's nested contents, given its flat arrays."""
    inner = {k.removeprefix("g_ema."): v for k, v in arrays.items() if "g_ema" in k}
    return {"g_ema": inner, "latent_avg": arrays["latent_avg"]}


def nvlabs(arrays):
    """Returns the sample's nested contents, given its flat arrays."""
    source = "raise SystemExit('the embedded source was executed')\n"

    def network(state):
        easy = files.EasyDict
        root = {
            "_init_kwargs": easy(z_dim=8, synthesis_kwargs=easy(channel_max=8)),
            "weight_gain": 1 / np.sqrt(np.float64(8)),
            "output": None,
        }
        return files.network(
            state,
            ("resample_filter", "noise_const", "w_avg"),
            source,
            attributes={"": root},
            names=files.TORCH_2_13,
            trained=True,
        )

    return {
        "training_set_kwargs": files.EasyDict(path="ffhq.zip", max_size=70000),
        "G": network({"weight": np.ones((2, 2), np.float32)}),
        "D": network({"weight": np.ones((2, 2), np.float32)}),
        "G_ema": network(arrays),
        "augment_pipe": None,
    }


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["layers", "mixed", "rosinality", "nvlabs"])
def test_written_files_are_read_back(tmp_path, kind, name):
    arrays = sample(name)
    arrays.pop("dtypes.uint16", None)  # has no storage class
    WRITERS[kind](tmp_path / "x.pt", files.state_dict(arrays))
    assert_same(read(tmp_path / "x.pt"), arrays)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_written_nvlabs_files_are_read_back(tmp_path, protocol):
    arrays = sample("nvlabs")
    files.write_nvlabs(tmp_path / "x.pkl", nvlabs(arrays), protocol)
    got = read(tmp_path / "x.pkl")["G_ema"]
    assert_same({name: got[name] for name in arrays}, arrays)
    assert len(got) == len(arrays)


def test_pickles_match_pytorch(tmp_path):
    contents = {
        "layers.pth": files.state_dict(sample("layers")),
        "rosinality.pt": rosinality(sample("rosinality")),
    }
    for name, data in contents.items():
        files.write_zip(tmp_path / name, data)
        assert zip_operations(tmp_path / name) == zip_operations(DATA / name)
    files.write_legacy(tmp_path / "layers_legacy.pth", contents["layers.pth"])
    name = "layers_legacy.pth"
    files.write_legacy(tmp_path / name, contents["layers.pth"])
    ours, theirs = ((folder / name).read_bytes() for folder in (tmp_path, DATA))
    assert ours.startswith(LEGACY_START)
    assert legacy_operations(ours) == legacy_operations(theirs)
    files.write_nvlabs(tmp_path / "nvlabs.pkl", nvlabs(sample("nvlabs")), 4)
    ours, theirs = ((folder / "nvlabs.pkl").read_bytes() for folder in (tmp_path, DATA))
    assert operations(ours) == operations(theirs)


def records(path):
    """Returns name -> (contents, start offset) for a zip file."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            file.seek(info.header_offset + 26)
            begin = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            found[info.filename] = archive.read(info), begin
    return found


def test_zip_records_match_pytorch(tmp_path):
    files.write_zip(tmp_path / "layers.pth", files.state_dict(sample("layers")))
    ours, theirs = records(tmp_path / "layers.pth"), records(DATA / "layers.pth")
    assert list(ours) == list(theirs)
    for name, (contents, begin) in ours.items():
        if not name.endswith("data.pkl") and not name.endswith("serialization_id"):
            assert contents == theirs[name][0], name
        assert begin % files.ALIGNMENT == theirs[name][1] % files.ALIGNMENT == 0


@pytest.mark.parametrize("kind", WRITERS)
def test_training_checkpoints_are_read_back(tmp_path, kind):
    options = {"encoder_type": "Encoder4Editing", "lr": 1e-4, "device": None}
    state = {"encoder.a.weight": np.ones((2, 3), np.float32), "n": np.array(7)}
    average = np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = {"state_dict": state, "latent_avg": average, "opts": options, "step": 9}
    for opts in (options, argparse.Namespace(**options)):
        data = wanted | {"state_dict": files.state_dict(state), "opts": opts}
        WRITERS[kind](tmp_path / "x.pt", data)
        assert_same(read(tmp_path / "x.pt"), wanted)


def test_views_of_a_storage_are_read_back(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    wanted = {"t": base.T, "part": base[1:, ::2], "none": base[:0], "one": base[1, 2:3]}
    for write in WRITERS.values():
        write(tmp_path / "x.pt", wanted)
        assert_same(read(tmp_path / "x.pt"), wanted)


def test_unsupported_dtypes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no storage class for uint16"):
        files.write_zip(tmp_path / "x.pt", {"a": np.ones(2, np.uint16)})
