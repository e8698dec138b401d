"""Reads checkpoint files into numpy arrays and plain containers, executing nothing.

Seven formats are recognised by their bytes, not their names: PyTorch's zip files,
PyTorch's legacy files, NVIDIA's network pickles (whose embedded source is never read),
plain pickles of numpy arrays, `.npy` files of one pickled object, such as a dict of
arrays, and the formats of `array_files.py`. Arrays are views of the file, which is
mapped into memory, so that reading needs little memory.
"""

import io
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from convert import array_files
from convert.array_files import NotACheckpointError, member
from convert.pickle_records import Builder, Storage, TorchType, TypedStorage
from convert.safe_pickle import Source, UnsafePickleError, load, plain

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# The magic number as protocol 2 pickles it.
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")

UNPACK = "a packed file; unpack it and give the checkpoint that is in it"
WEB_PAGE = "a web page instead of a checkpoint; download it with a browser"
# How files start that are often given instead of a checkpoint, and what they are.
MISTAKEN = {
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` for the file",
    b"<!doctype": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<?xml": WEB_PAGE,
    b"\x1f\x8b": UNPACK,  # gzip
    b"BZh": UNPACK,
    b"\xfd7zXZ": UNPACK,
    b"7z\xbc\xaf": UNPACK,
    b"Rar!": UNPACK,
    b"\x28\xb5\x2f\xfd": UNPACK,  # zstd
    b"\x89HDF": "an HDF5 file (TensorFlow, Keras); only PyTorch's files are read",
}
TAR, TAR_AT = b"ustar", 257


def read(path: str | Path) -> Any:
    """Reads a `.pt`, `.pth`, `.pkl`, `.ckpt`, `.npy`, `.npz` or `.safetensors` file.

    Returns:
        Nested dicts, lists and tuples of read-only arrays and numbers. A Namespace
        becomes a dict, and a network in a `.pkl` its flat state dict. Arrays have the
        file's dtype and byte order, and are valid as long as the file isn't changed.

    Raises:
        FileNotFoundError: the file does not exist.
        UnsafePickleError: the file refers to a class that is not allowed.
        ValueError: the file is truncated, damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        if path.exists():  # opening a pipe would wait for ever
            raise NotACheckpointError(f"{path}: not a regular file")
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise NotACheckpointError(f"{path}: the file is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return plain(_read_raw(path, data))
    except (UnsafePickleError, NotACheckpointError) as error:
        raise type(error)(f"{path}: {error}") from None
    except (OSError, MemoryError):
        raise  # not the file's fault
    # A damaged or hostile stream can make the unpickler raise anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{path}: truncated or damaged ({reason}); download it again"
        ) from None


def _read_raw(path: Path, data: memoryview) -> Any:
    start = bytes(data[: len(LEGACY_START)])
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive, data)
    if start == LEGACY_START:
        return _read_legacy(data)
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return _read_npy(data)
    if start[:1] == b"\x80" and len(start) > 1 and start[1] in range(2, 6):
        nested = Builder(lambda data: _read_legacy(memoryview(data)))
        return load(Source(data), extra={("torch.storage", "_load_from_bytes"): nested})
    if start[8:9] == b"{":
        return array_files.read_safetensors(path)
    raise NotACheckpointError(_why_unknown(data))


def _why_unknown(data: memoryview) -> str:
    """Says what a file is whose format is not read, as far as its bytes show it."""
    start = bytes(data[: len(LEGACY_START)])
    beginning = bytes(data[:64]).lstrip().lower()
    for magic, what in MISTAKEN.items():
        if start.startswith(magic) or beginning.startswith(magic):
            return what
    if bytes(data[TAR_AT : TAR_AT + len(TAR)]) == TAR:
        return UNPACK
    return f"neither a PyTorch file nor a pickle (it starts with {start!r})"


def _read_npy(data: memoryview) -> Any:
    """Reads a dict saved by `numpy.save`, without numpy's own unpickler."""
    head = io.BytesIO(data[: array_files.NPY_HEADER])
    if np.lib.format.read_magic(head) != (1, 0):
        raise NotACheckpointError("unsupported .npy format version")
    _, _, dtype = np.lib.format.read_array_header_1_0(head)
    if not dtype.hasobject:
        raise NotACheckpointError(
            "a .npy file of one unnamed array; a dict of named arrays is needed"
        )
    return load(Source(data, head.tell()))


def _read_zip(archive: zipfile.ZipFile, data: memoryview) -> Any:
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise NotACheckpointError("a zip file that holds two files of one name")
    root = next((n[:-8] for n in names if n.endswith("/data.pkl")), None)
    if root is None:
        if any(name.endswith(".npy") for name in names):
            return array_files.read_npz(archive, data)
        raise NotACheckpointError(
            "a zip file without PyTorch's data.pkl; if a checkpoint is in it, unpack it"
        )
    if f"{root}constants.pkl" in names:
        raise NotACheckpointError(
            "a TorchScript program; save the network's state_dict() instead"
        )
    if any(info.compress_type for info in archive.infolist()):
        raise NotACheckpointError("a compressed zip file, which PyTorch never writes")
    order = f"{root}byteorder"
    big_endian = order in names and member(archive, data, order) == b"big"
    storages: dict[str, Storage] = {}

    def storage_of(pid: tuple) -> TypedStorage:
        kind, storage_type, key, _location, numel = pid
        _check_storage(kind, storage_type, numel)
        if key not in storages:
            stored = member(archive, data, f"{root}data/{key}")
            storages[key] = Storage(stored, big_endian)
        return TypedStorage(storages[key], storage_type.dtype, numel)

    return load(Source(member(archive, data, f"{root}data.pkl")), storage_of)


def _read_legacy(data: memoryview) -> Any:
    """Reads five pickles (magic, protocol, system, data, keys), then raw storages.

    The storages are little-endian on every machine.
    """
    source = Source(data)
    if load(source) != LEGACY_MAGIC or load(source) != LEGACY_PROTOCOL:
        raise NotACheckpointError("unsupported version of PyTorch's legacy format")
    load(source)
    storages: dict[str, Storage] = {}
    item_sizes: dict[str, int] = {}

    def storage_of(pid: tuple) -> TypedStorage:
        kind, storage_type, key, _location, numel, view = pid
        _check_storage(kind, storage_type, numel)
        size = storage_type.dtype.itemsize
        item_sizes.setdefault(key, size)
        storage = storages.setdefault(key, Storage())
        _, first, count = view or (None, 0, numel)
        return TypedStorage(storage, storage_type.dtype, count, first * size)

    contents = load(source, storage_of)
    for key in load(source):
        (count,) = struct.unpack("<q", source.read(8))
        storages[key].data = memoryview(source.read(count * item_sizes[key]))
    return contents


def _check_storage(kind: str, storage_type: Any, numel: Any) -> None:
    if (
        kind != "storage"
        or not isinstance(storage_type, TorchType)
        or not isinstance(numel, int)
    ):
        raise ValueError("a persistent id does not describe a storage")
