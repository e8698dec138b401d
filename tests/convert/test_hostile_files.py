"""Files that attack the reader: nothing runs, is written, or takes much memory."""

import builtins
import importlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from collections import Counter
from pathlib import Path

import checkpoint_files as files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.jobs import plan
from convert.rules import ConversionError, convert
from convert.stylegan2 import ROSINALITY
from convert.torch_file import LEGACY_MAGIC

DATA = Path(__file__).parents[1] / "data"
# Memory that reading may take: a small multiple of the file, and what Python needs.
MULTIPLE, ALLOWANCE = 8, 2**25

FORBIDDEN = (
    "os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pickle.find_class", "pty.",
    "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip
HARMLESS = {"os.listdir", "os.scandir"}
_events: list | None = None  # what happened while a file was read; None: not recorded


def _audit(event, args):
    if _events is None:
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & (
        os.O_WRONLY | os.O_RDWR | os.O_CREAT
    )  # fmt: skip
    if writes or (event.startswith(FORBIDDEN) and event not in HARMLESS):
        _events.append((event, args))


sys.addaudithook(_audit)


def read_harmlessly(path):
    """Reads a file as the converter does; returns its jobs and errors, after checks."""
    global _events
    _events = []
    tracemalloc.start()
    try:
        jobs, errors = plan([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        happened, _events = _events, None
    assert happened == []
    assert peak <= MULTIPLE * path.stat().st_size + ALLOWANCE
    for error in errors:
        assert error.isprintable()
        assert len(error) < 2000
        assert error.startswith(str(path))
    return jobs, errors


# Calls -------------------------------------------------------------------------------


class Call:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def in_module(name, function):
    """Returns a stand-in function that pickles under a module's name."""
    module = types.ModuleType(name)
    stand_in = type(function, (), {"__module__": name})
    setattr(module, function, stand_in)
    return module, stand_in


HUB, HUB_LOAD = in_module("torch.hub", "load")
CALLS = {
    "system": Call(os.system, "touch OWNED"),
    "popen": Call(subprocess.Popen, ["touch", "OWNED"]),
    "check_output": Call(subprocess.check_output, ["touch", "OWNED"]),
    "eval": Call(eval, "open('OWNED', 'w')"),
    "exec": Call(exec, "open('OWNED', 'w')"),
    "getattr": Call(getattr, os, "system"),
    "import": Call(importlib.import_module, "antigravity"),
    "__import__": Call(builtins.__import__, "os"),
    "open": Call(open, "OWNED", "w"),
    "numpy.load": Call(np.load, "evil.npy"),
    "numpy.memmap": Call(np.memmap, "OWNED", "u1", "w+"),
    "numpy.fromfile": Call(np.fromfile, "/etc/passwd"),
    "numpy.savez": Call(np.savez, "OWNED"),
    "torch.hub": Call(HUB_LOAD, "evil/evil", "evil"),
    "pickle": Call(pickle.loads, pickle.dumps(Call(os.system, "touch OWNED"))),
    "chdir": Call(os.chdir, "/"),
}


def as_file(kind, data, path):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    elif kind == "legacy":
        head = b"".join(pickle.dumps(x, 2) for x in (LEGACY_MAGIC, 1001, {}))
        path.write_bytes(head + data + pickle.dumps([], 2))
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch.hub", HUB)
    for contents in (CALLS[name], {"state_dict": [CALLS[name]], "iter": 3}):
        for protocol in (2, 4):
            try:
                data = pickle.dumps(contents, protocol)
            except TypeError:  # modules cannot be pickled as arguments
                data = pickle.dumps(Call(getattr, "os", "system"), protocol)
            as_file(kind, data, tmp_path / "evil.pt")
            jobs, (error,) = read_harmlessly(tmp_path / "evil.pt")
            assert jobs == []
            assert "nothing was executed" in error
    assert os.listdir(tmp_path) == ["evil.pt"]


# Streams that take memory, time or the stack ------------------------------------------

GLOBAL = b"ccollections\nOrderedDict\n"
MANY = 100_000
STREAMS = {
    "memo far away": b"]r\xff\xff\xff\x7f.",
    "memo, text": b"]p99999999999\n.",
    "huge bytes": b"B\xff\xff\xff\xff.",
    "huge bytes, 8": b"\x8e" + struct.pack("<Q", 2**62) + b".",
    "huge bytearray": b"\x96" + struct.pack("<Q", 2**33) + b".",
    "huge text": b"\x8d" + struct.pack("<Q", 2**40) + b".",
    "huge frame": b"\x95" + struct.pack("<Q", 2**40) + b".",
    "huge integer": b"\x8b\xff\xff\xff\x7f.",
    "many sets": b"(" + b"\x8f" * 4_000_000 + b"l.",
    "many memos": b"]" + b"\x94" * 4_000_000 + b".",
    "deep lists": b"]" * MANY + b"a" * (MANY - 1) + b".",
    "deep tuples": b")" + b"\x85" * MANY + b".",
    "deep tuple as a key": b"}" + b")" + b"\x85" * MANY + b"K\1s.",
    "deep tuple in a set": b"\x8f(" + b")" + b"\x85" * MANY + b"\x90.",
    "deep tuple in a frozenset": b"(" + b")" + b"\x85" * MANY + b"\x91.",
    "deep tuple in a set's call": b"cbuiltins\nset\n](" + b")" + b"\x85" * MANY
    + b"e\x85R.",
    "deep tuple in an OrderedDict's call": GLOBAL + b"](" + b")" + b"\x85" * MANY
    + b"K\1\x86e\x85R.",
    "copies of a dict": b"}q\0(" + b"".join(b"J%bK\1" % struct.pack("<i", i)
    for i in range(20_000)) + b"u0]q\1(" + (GLOBAL + b"h\0\x85R") * 20_000 + b"e.",
    "copies of a text": b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\0]("
    + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 5000 + b"e.",
    "copies of sizes": b"](" + b"K\1" * 20_000 + b"eq\0](" + b"ctorch\nSize\nh\0\x85R"
    * 20_000 + b"e.",
    "long line": b"c" + b"a" * 2**20 + b"\nb\n.",
    "mark without end": b"(" * 100_000,
    "quadratic names": b"}(" + b"".join(b"X\3\0\0\0%03dK\1" % i for i in range(1000))
    + b"u.",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "pickle"])
@pytest.mark.parametrize("name", STREAMS)
def test_streams_take_little_memory(tmp_path, name, kind):
    as_file(kind, b"\x80\x04" + STREAMS[name], tmp_path / "evil.pt")
    jobs, errors = read_harmlessly(tmp_path / "evil.pt")
    assert (jobs, len(errors)) == ([], 1)


def test_shared_dicts_do_not_expand(tmp_path):
    shared = {"a.b": np.ones(1, np.float32)}
    for i in range(60):
        shared = {f"{i}.{name}": 0 for name in "ab"} | {"a": shared, "b": shared}
    wide = {f"{i}.{j}": i for i in range(3000) for j in range(2)}
    for contents in (shared, wide, {"VGG16_0": shared, "NetLinLayer_0": shared}):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(contents, 2))
        assert len(read_harmlessly(tmp_path / "x.pkl")[1]) < 2


def test_networks_larger_than_their_file_are_refused():
    wide = {
        "input.input": np.broadcast_to(np.float32(0), (1, 1000, 4, 4)),
        "conv1.conv.weight": np.broadcast_to(np.float32(0), (1, 1000, 1000, 3, 3)),
        "conv1.conv.modulation.weight": np.broadcast_to(np.float32(0), (1000, 4)),
        "style.1.weight": np.broadcast_to(np.float32(0), (4, 2**20)),
    }
    with pytest.raises(ConversionError, match="more than such a file can hold"):
        convert(wide, ROSINALITY, most_bytes=2**20)
    with pytest.raises(ConversionError, match="too many for a network"):
        convert(wide | {f"x{i}": 0 for i in range(20_000)}, ROSINALITY)


# Zip files ----------------------------------------------------------------------------


def test_zip_bombs_are_refused(tmp_path):
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(2**26, np.uint8))
    for kind, name in ((zipfile.ZIP_DEFLATED, "a.npy"), (zipfile.ZIP_BZIP2, "a.npy")):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", kind) as archive:
            archive.writestr(name, zeros.getvalue())
        _, (error,) = read_harmlessly(tmp_path / "x.npz")
        assert "more than a network's values can" in error
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\2]" + b"0]" * 2**22)
    _, (error,) = read_harmlessly(tmp_path / "x.pt")
    assert "compressed zip file" in error
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MappingNetwork.xml", b" " * 2**26)
        archive.writestr("MappingNetwork.bin", b"")
    _, (error,) = read_harmlessly(tmp_path / "x.whl")
    assert "more than a network's values can" in error
    entities = b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>]><x>&a;</x>"
    with zipfile.ZipFile(tmp_path / "y.whl", "w") as archive:
        archive.writestr("MappingNetwork.xml", entities)
        archive.writestr("MappingNetwork.bin", b"")
    _, (error,) = read_harmlessly(tmp_path / "y.whl")
    assert "not one that OpenVINO writes" in error


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_in_zip_files_are_only_names(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    outside = tmp_path / "in" / "x.pt"
    for names in (
        ["a/data.pkl", "a/data.pkl"],
        ["../../a/data.pkl", "../../a/data/0"],
        ["/etc/a/data.pkl", "/etc/passwd"],
    ):
        with zipfile.ZipFile(outside, "w") as archive:
            for name in names:
                archive.writestr(name, pickle.dumps({"a": 1}, 2))
        _, (error,) = read_harmlessly(outside)
        assert ("two files of one name" in error) == (len(set(names)) < len(names))
    assert [x.name for x in tmp_path.rglob("*")] == ["in", "x.pt"]


# Sizes that lie -----------------------------------------------------------------------


def safetensors(header, data=b"", length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    size = len(text) if length is None else length
    return struct.pack("<Q", size) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "beyond the file": safetensors({"a": entry([4], 0, 16)}, b"1234"),
    "huge shape": safetensors({"a": entry([2**40], 0, 4)}, b"1234"),
    "overflowing shape": safetensors({"a": entry([2**62, 2**62], 0, 4)}, b"1234"),
    "negative shape": safetensors({"a": entry([-1], 0, 4)}, b"1234"),
    "overlap": safetensors({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"),
    "hole": safetensors({"a": entry([1], 4, 8)}, b"12345678"),
    "reversed": safetensors({"a": entry([1], 4, 0)}, b"1234"),
    "unknown type": safetensors({"a": entry([1], 0, 4, "X9")}, b"1234"),
    "huge header": safetensors({}, length=2**62),
    "deep header": safetensors(b'{"a":' + b"[" * 200_000),
    "no JSON": safetensors(b"{" * 100),
    "other JSON": safetensors(b'{"a": 1}', b"1234"),
    "not UTF-8": safetensors(b'{"\xff": 1}', b"1234"),
}


@pytest.mark.parametrize("name", LIES)
def test_lying_safetensors_are_refused(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(LIES[name])
    jobs, errors = read_harmlessly(tmp_path / "x.safetensors")
    assert (jobs, len(errors)) == ([], 1)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': [('a', '<f4')] , 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "__import__('os').system('touch OWNED')",
        "(" * 9000,
    ],
)
def test_lying_npz_headers_are_refused(tmp_path, header):
    text = header.ljust(118).encode() + b"\n"
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + b"1234"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", array)
    jobs, errors = read_harmlessly(tmp_path / "x.npz")
    assert (jobs, len(errors)) == ([], 1)
    assert os.listdir(tmp_path) == ["x.npz"]


# Truncated and changed files ----------------------------------------------------------


def small_files():
    """Returns name -> bytes of a small file in every format."""
    state = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.ones(3, np.float16)}
    folder = Path(os.environ["PYTEST_SMALL_FILES"])
    files.write_zip(folder / "zip.pt", {"g_ema": files.state_dict(state), "iter": 3})
    files.write_legacy(folder / "legacy.pt", files.state_dict(state))
    network = files.network(state, ("bias",), "raise SystemExit\n")
    files.write_nvlabs(folder / "nvlabs.pkl", {"G_ema": network})
    np.save(folder / "dict.npy", state)
    np.savez(folder / "arrays.npz", **state)
    np.savez_compressed(folder / "small.npz", **state)
    header = {"a.weight": entry([2, 3], 0, 24), "a.bias": entry([3], 24, 30, "F16")}
    (folder / "x.safetensors").write_bytes(safetensors(header, bytes(30)))
    (folder / "counter.pkl").write_bytes(pickle.dumps({"n": Counter("abca")}, 4))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_SMALL_FILES", str(tmp_path_factory.mktemp("small")))
        return small_files()


@pytest.mark.slow
def test_files_truncated_at_every_byte_are_refused(tmp_path, small):
    for name, data in small.items():
        path = tmp_path / name
        for length in range(len(data)):
            path.write_bytes(data[:length])
            jobs, errors = read_harmlessly(path)
            assert (jobs, len(errors)) == ([], 1), (name, length)
            # It was cut, so it isn't read as a file without a network.
            assert "no supported network" not in errors[0], (name, length)


PROFILE = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@PROFILE
@given(st.data())
def test_changed_files_are_harmless(tmp_path_factory, small, data):
    name = data.draw(st.sampled_from(sorted(small)))
    changed = bytearray(small[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        cut = data.draw(st.sampled_from([0, 0, 1, 1, 1, 4]))
        changed[at : at + cut] = data.draw(st.binary(max_size=8))
    path = tmp_path_factory.getbasetemp() / f"changed_{name}"
    path.write_bytes(changed)
    read_harmlessly(path)


OPERATIONS = st.sampled_from(
    [bytes([code]) for code in range(256)]
    + [b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]
    + [
        b"ctorch\nFloatStorage\n",
        b"ctorch\nSize\n",
        b"cnumpy\ndtype\n",
        b"cos\nsystem\n",
    ]
    + [b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"]
    + [b"cargparse\nNamespace\n", b"cbuiltins\nset\n", b"c_codecs\nencode\n"]
    + [
        b"X\1\0\0\0a",
        b"K\1",
        b"J\0\0\0\x7f",
        b"h\0",
        b"q\0",
        b"U\2f4",
        b")",
        b"(",
        b"t",
    ]
    + [b"\x85", b"\x86", b"R", b"b", b"}", b"]", b"\x81", b"s", b"u", b"a", b"e", b"Q"]
)


@PROFILE
@given(st.lists(OPERATIONS, max_size=40), st.sampled_from(["zip", "legacy", "pickle"]))
def test_random_streams_are_harmless(tmp_path_factory, operations, kind):
    path = tmp_path_factory.getbasetemp() / f"stream_{kind}"
    as_file(kind, b"\x80\x02" + b"".join(operations) + b".", path)
    read_harmlessly(path)


@PROFILE
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"PK\3\4", b"\x93NUMPY\1\0", b"\x80\2"]),
)
def test_random_bytes_are_harmless(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(start + data)
    read_harmlessly(path)
