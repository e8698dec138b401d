"""Reads files of named arrays without code: `.npz` and `.safetensors`."""

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy then knows bfloat16, which safetensors may hold)
import numpy as np
from safetensors import safe_open

from guide_jax.storage.archives import check_expansion
from guide_jax.storage.network_file import HEADER

NPY_HEADER = 2**14  # no shorter than any header that numpy accepts


class NotACheckpointError(ValueError):
    """The file is intact but not a supported checkpoint."""


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns name -> array; raises any exception if the file is damaged."""
    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def read_npz(archive: zipfile.ZipFile, data: memoryview) -> dict[str, np.ndarray]:
    """Returns name -> array, as views of the file if they are not compressed.

    Args:
        archive: the opened file.
        data: its bytes.

    Raises:
        NotACheckpointError: it is a network of guide_jax, expands too far, or holds
            something other than arrays of numbers.
        Exception: any other exception, if the file is damaged.
    """
    names = archive.namelist()
    if f"{HEADER}.npy" in names:
        raise NotACheckpointError(
            "already a network of guide_jax, which needs no conversion"
        )
    try:
        check_expansion(archive.infolist(), len(data))
    except ValueError as error:
        raise NotACheckpointError(str(error)) from error
    arrays = {}
    for name in names:
        if not name.endswith(".npy"):
            raise NotACheckpointError(f"a .npz file that holds {name!r}, not an array")
        arrays[name.removesuffix(".npy")] = _array(member(archive, data, name), name)
    return arrays


def _array(data: memoryview, name: str) -> np.ndarray:
    head = io.BytesIO(data[:NPY_HEADER])
    version = np.lib.format.read_magic(head)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran, dtype = readers[version](head)
    if dtype.kind not in "biufc":
        raise NotACheckpointError(f"{name!r} holds {dtype}, not numbers")
    raw = data[head.tell() :]
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{name!r} does not have the size that it claims")
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    array.flags.writeable = False
    return array


def member(archive: zipfile.ZipFile, data: memoryview, name: str) -> memoryview:
    """Returns the bytes of a file in an archive, as a view if it isn't compressed.

    Raises:
        Exception: any exception, if the archive is damaged or has no such file.
    """
    info = archive.getinfo(name)
    if info.compress_type or info.flag_bits & 1:  # compressed or encrypted
        return memoryview(archive.read(info))
    header = bytes(data[info.header_offset : info.header_offset + 30])
    lengths = struct.unpack("<HH", header[26:30])
    start = info.header_offset + len(header) + sum(lengths)
    found = data[start : start + info.file_size]
    if not header.startswith(b"PK\x03\x04") or len(found) != info.file_size:
        raise ValueError(f"{name!r} is not where the archive's directory says")
    if zlib.crc32(found) != info.CRC:
        raise ValueError(f"Bad CRC-32 for file {name!r}")
    return found
