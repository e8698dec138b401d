import builtins
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from convert.pickle_records import Builder, Fields
from convert.safe_pickle import ALLOWED, UnsafePickleError
from convert.torch_file import LEGACY_MAGIC, read

RECORDS = "convert.pickle_records"


class Call:
    """Pickles as a call to `function(*args)`."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


class Foreign:
    pass


ATTACKS = {
    "system": Call(os.system, "touch OWNED"),
    "eval": Call(eval, "open('OWNED', 'w')"),
    "exec": Call(exec, "open('OWNED', 'w')"),
    "open": Call(open, "OWNED", "w"),
    "getattr": Call(getattr, Fields, "__init__"),
    "import": Call(builtins.__import__, "os"),
    "nested": {"state_dict": [Call(os.popen, "touch OWNED")]},
    "object": Foreign(),
    "class": Foreign,
    "numpy file": Call(np.load, "OWNED"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("form", ["pickle", "npy", "zip", "legacy", "inside nvlabs"])
def test_foreign_classes_are_refused(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(ATTACKS[name], 2)
    path = tmp_path / "evil.pt"
    if form == "pickle":
        path.write_bytes(evil)
    elif form == "npy":
        with path.open("wb") as file:
            np.save(file, ATTACKS[name])
    elif form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", evil)
    else:
        legacy = b"".join(pickle.dumps(x, 2) for x in (LEGACY_MAGIC, 1001, {}))
        legacy += evil + pickle.dumps([], 2)
        if form == "inside nvlabs":
            # c: GLOBAL, then the legacy file's bytes, TUPLE1, REDUCE, STOP
            size = struct.pack("<I", len(legacy))
            head = b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + size
            legacy = head + legacy + b"\x85R."
        path.write_bytes(legacy)
    with pytest.raises(UnsafePickleError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: refers to '")
    assert "nothing was executed" in text
    assert "\n" not in text
    assert not (tmp_path / "OWNED").exists()


# Streams that no pickler writes. Opcodes: c GLOBAL, ) EMPTY_TUPLE, R REDUCE, b BUILD,
# \x81 NEWOBJ, \x85 TUPLE1, \x86 TUPLE2, i INST, o OBJ, Q BINPERSID, } EMPTY_DICT.
STREAMS = {
    "reconstructor": b"\x80\x02ccopyreg\n_reconstructor\n.",
    "python 2 name": b"\x80\x02c__builtin__\neval\n.",
    "INST": b"\x80\x02(S'touch OWNED'\nios\nsystem\n.",
    "dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    "dotted module": b"\x80\x02ctorch.os\nsystem\n.",
    "extension": b"\x80\x02\x82\x01.",
    "state on a class": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "state on a builder": b"\x80\x02ctorch\nSize\n}X\x08\x00\x00\x00function"
    b"cnumpy\nndarray\nsb.",
    "slots on a builder": b"\x80\x02ctorch\nSize\nN}X\x08\x00\x00\x00function"
    b"cnumpy\nndarray\ns\x86b.",
    "slots on a class": b"\x80\x02ccollections\nOrderedDict\nN}X\x0c\x00\x00\x00"
    b"__setstate__ctorch\nSize\ns\x86b.",
    "state on a dtype": b"\x80\x02ctorch\nFloatStorage\n}b.",
    "call of a dtype": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "new builder": b"\x80\x02ctorch\nSize\n)\x81.",
    "bare class": b"\x80\x02ccollections\nOrderedDict\n.",
    "bare builder": b"\x80\x02ctorch\nSize\n.",
    "persistent id": b"\x80\x02U\x01xQ.",
    "object dtype": b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
    "endless list": b"\x80\x02]q\x00h\x00a.",
    "endless dict": b"\x80\x02}q\x00K\x01h\x00s.",
    "huge string": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "empty stack": b"\x80\x02.",
    "module without state": b"\x80\x02ctorch_utils.persistence\n"
    b"_reconstruct_persistent_obj\n}\x85R.",
}


@pytest.mark.parametrize("name", STREAMS)
def test_crafted_streams_give_a_one_line_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(STREAMS[name])
    before = {key: getattr(b, "function", b) for key, b in ALLOWED.items()}
    with pytest.raises(ValueError, match=r"evil\.pkl") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["evil.pkl"]
    assert before == {key: getattr(b, "function", b) for key, b in ALLOWED.items()}
    assert Fields.__setstate__.__module__ == RECORDS


def test_allowed_names_map_only_to_our_builders():
    for key, builder in ALLOWED.items():
        module = type(builder).__module__
        ours = isinstance(builder, str) or module == "convert.pickle_records"
        ours |= (
            isinstance(builder, type) and builder.__module__ == "convert.pickle_records"
        )
        assert ours, key
    called = {b.function for b in ALLOWED.values() if isinstance(b, Builder)}
    assert {f for f in called if getattr(f, "__module__", "") == "builtins"} == {tuple}


def test_nested_references_do_not_expand(tmp_path):
    nested = []
    for _ in range(200):
        nested = [nested, nested]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(nested, 2))
    got = read(tmp_path / "x.pkl")
    assert got[0] is got[1]
