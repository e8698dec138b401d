"""Reads checkpoint files into numpy arrays and plain containers, executing nothing.

Five formats are recognised by their bytes, not their names: PyTorch's zip files,
PyTorch's legacy files, NVIDIA's network pickles (whose embedded source is never read),
plain pickles of numpy arrays, and `.npy` files of one pickled object, such as a dict of
arrays.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from convert.pickle_records import Builder, Module, Storage, TorchType, TypedStorage
from convert.safe_pickle import UnsafePickleError, load, plain

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# The magic number as protocol 2 pickles it.
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")

# Entries that NVIDIA's training stores next to `G_ema` and conversion ignores.
NVLABS_IGNORED = {"G", "D", "training_set_kwargs", "augment_pipe"}


def read(path: str | Path) -> Any:
    """Reads a `.pt`, `.pth`, `.pkl`, `.ckpt` or `.npy` file.

    Returns:
        Nested dicts, lists and tuples of read-only arrays and numbers. bfloat16 becomes
        float32, a Namespace becomes a dict, and a network in a `.pkl` becomes its flat
        state dict. For {"G": ..., "D": ..., "G_ema": ...} only G_ema's state dict is
        returned; entries in `NVLABS_IGNORED` are dropped.

    Raises:
        FileNotFoundError: the file does not exist.
        UnsafePickleError: the file refers to a class that is not allowed.
        ValueError: the file is truncated, damaged or not a checkpoint, or has unknown
            entries next to G_ema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            raw = _read_raw(file)
            if isinstance(raw, dict) and isinstance(raw.get("G_ema"), Module):
                if unknown := raw.keys() - NVLABS_IGNORED - {"G_ema"}:
                    names = ", ".join(sorted(map(repr, unknown)))
                    raise NotACheckpointError(
                        f"unknown entries next to 'G_ema': {names}"
                    )
                raw = raw["G_ema"]
            return plain(raw)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except NotACheckpointError as error:
        raise NotACheckpointError(f"{path}: {error}") from None
    # A damaged or hostile stream can make the unpickler raise anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: truncated or damaged ({reason}); download it again"
        ) from None


class NotACheckpointError(ValueError):
    """The file is intact but not a supported checkpoint."""


def _read_raw(file: IO[bytes]) -> Any:
    start = file.read(len(LEGACY_START))
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if start == LEGACY_START:
        return _read_legacy(file)
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return _read_npy(file)
    if start[:1] == b"\x80" and len(start) > 1 and start[1] in range(2, 6):
        nested = Builder(lambda data: _read_legacy(io.BytesIO(data)))
        return load(file, extra={("torch.storage", "_load_from_bytes"): nested})
    raise NotACheckpointError(
        f"neither a PyTorch file nor a pickle (it starts with {start!r})"
        if start
        else "the file is empty"
    )


def _read_npy(file: IO[bytes]) -> Any:
    """Reads a dict saved by `numpy.save`, without numpy's own unpickler."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise NotACheckpointError("unsupported .npy format version")
    _, _, dtype = np.lib.format.read_array_header_1_0(file)
    if not dtype.hasobject:
        raise NotACheckpointError(
            "a .npy file of one unnamed array; a dict of named arrays is needed"
        )
    return load(file)


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        root = next((n[:-8] for n in names if n.endswith("/data.pkl")), None)
        if root is None:
            raise NotACheckpointError("a zip file without PyTorch's data.pkl")
        if f"{root}constants.pkl" in names:
            raise NotACheckpointError(
                "a TorchScript program; save the network's state_dict() instead"
            )
        if any(info.compress_type for info in archive.infolist()):
            raise NotACheckpointError(
                "a compressed zip file, which PyTorch never writes"
            )
        order = f"{root}byteorder"
        big_endian = order in names and archive.read(order) == b"big"
        storages: dict[str, Storage] = {}

        def storage_of(pid: tuple) -> TypedStorage:
            kind, storage_type, key, _location, numel = pid
            _check_storage(kind, storage_type, numel)
            if key not in storages:
                data = archive.read(f"{root}data/{key}")
                storages[key] = Storage(data, big_endian)
            return TypedStorage(storages[key], storage_type.dtype, numel)

        return load(io.BytesIO(archive.read(f"{root}data.pkl")), storage_of)


def _read_legacy(file: IO[bytes]) -> Any:
    """Reads five pickles (magic, protocol, system, data, keys), then raw storages.

    The storages are little-endian on every machine.
    """
    if load(file) != LEGACY_MAGIC or load(file) != LEGACY_PROTOCOL:
        raise NotACheckpointError("unsupported version of PyTorch's legacy format")
    load(file)
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

    data = load(file, storage_of)
    for key in load(file):
        (count,) = struct.unpack("<q", file.read(8))
        storages[key].data = file.read(max(0, count) * item_sizes[key])
    return data


def _check_storage(kind: str, storage_type: Any, numel: Any) -> None:
    if (
        kind != "storage"
        or not isinstance(storage_type, TorchType)
        or not isinstance(numel, int)
    ):
        raise ValueError("a persistent id does not describe a storage")
