"""A pickle reader that executes nothing and returns arrays and plain containers.

A pickle names classes and functions and has them called. Here every name is looked up
in one table, `ALLOWED`, which maps it to one of our builders, which only records its
arguments. Objects of the packages in `FOREIGN` are dropped. Any other name stops the
reading. After the whole stream has been read, `plain` turns the records into read-only
numpy arrays, dicts, lists, tuples and numbers.

Reading takes a small multiple of the file's size in memory. Large byte strings are
views of the file; the number of operations, and of elements that they copy, is limited.
This is why the standard library's unpickler in Python is used, not the one in C, which
allocates what a file claims.
"""

import pickle
import re
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from convert.pickle_records import (
    Builder,
    Fields,
    Foreign,
    Module,
    Namespace,
    NumpyArray,
    NumpyDtype,
    NumpyScalar,
    PlainModule,
    Record,
    Tensor,
    TorchType,
    check_keys,
)

# PyTorch's element types, named by storage class and by dtype -> numpy's.
STORAGES = {
    "Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": bfloat16,
    "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1",
    "Bool": "?", "ComplexFloat": "<c8", "ComplexDouble": "<c16", "Untyped": "u1",
}  # fmt: skip
DTYPES = {
    "float32": "<f4", "float64": "<f8", "float16": "<f2", "bfloat16": bfloat16,
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "i1", "uint8": "u1",
    "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "bool": "?",
    "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip


class UnsafePickleError(ValueError):
    """The file refers to a class that is not allowed; none of its code was executed."""


def _set(items=()):
    check_keys(items)
    return set(items)


def _tensor(storage, offset, shape, strides, *_grad_and_hooks):
    return Tensor(storage, offset, shape, strides)


def _tensor_v3(storage, offset, shape, strides, _grad, _hooks, dtype, *_):
    return Tensor(storage, offset, shape, strides, dtype)


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Fields,
    ("collections", "defaultdict"): Builder(lambda *_: Fields()),
    ("argparse", "Namespace"): Namespace,
    ("dnnlib.util", "EasyDict"): Fields,
    ("easydict", "EasyDict"): Fields,
    ("collections", "Counter"): Fields,
    # How Python 3 writes b"" in protocols without a bytes opcode.
    ("__builtin__", "bytes"): Builder(lambda: b""),
    ("builtins", "set"): Builder(_set),
    ("__builtin__", "set"): Builder(_set),
    ("_codecs", "encode"): Builder(lambda text, _: text.encode("latin1")),
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): Builder(NumpyDtype),
    ("torch", "Size"): Builder(tuple),
    ("torch", "device"): Builder(lambda *parts: ":".join(map(str, parts))),
    ("torch._utils", "_rebuild_tensor"): Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Builder(_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Builder(lambda data, *_: data),
    ("torch.nn.parameter", "Parameter"): Builder(lambda data, *_: data),
    ("torch.storage", "UntypedStorage"): TorchType("u1"),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Builder(Module),
}
# Classes of EG3D's and torch's modules whose source is not in the file.
for _class in (
    "training.triplane.OSGDecoder",
    "training.volumetric_rendering.renderer.ImportanceRenderer",
    "training.volumetric_rendering.ray_marcher.MipRayMarcher2",
    "training.volumetric_rendering.ray_sampler.RaySampler",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.Softplus",
):
    _module, _, _name = _class.rpartition(".")
    ALLOWED[_module, _name] = PlainModule
for _core in ("numpy.core", "numpy._core"):
    ALLOWED[f"{_core}.multiarray", "_reconstruct"] = Builder(lambda *_: NumpyArray())
    ALLOWED[f"{_core}.multiarray", "scalar"] = Builder(NumpyScalar)
    ALLOWED[f"{_core}.numeric", "_frombuffer"] = Builder(NumpyArray)
for _name, _dtype in STORAGES.items():
    for _module in ("torch", "torch.cuda"):
        ALLOWED[_module, f"{_name}Storage"] = TorchType(_dtype)
for _name, _dtype in DTYPES.items():
    ALLOWED["torch", _name] = TorchType(_dtype)


for _version in ("", "._local"):
    for _name in (
        "Path",
        "PurePosixPath",
        "PosixPath",
        "PureWindowsPath",
        "WindowsPath",
    ):
        ALLOWED[f"pathlib{_version}", _name] = Builder(lambda *parts: "/".join(parts))
for _name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
    ALLOWED[f"{_name}.utilities.parsing", "AttributeDict"] = Fields

# Packages whose objects stand beside networks in checkpoints.
FOREIGN = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf|torch\.optim|datetime"
    r"|enum|numpy\.random|wandb|yacs|ml_collections)(\..*)?"
)

# Classes of files that cannot be read: pattern of the full name -> cause and cure.
CAUSES = {
    r"dnnlib\.tflib\..*": "it is a TensorFlow network of StyleGAN or StyleGAN2; convert"
    " it with legacy.py of NVlabs/stylegan2-ada-pytorch",
    r"torch\.jit\..*|torch\.ScriptObject": "it is a TorchScript program; save the"
    " network's state_dict() instead",
    r"torch\.nn\..*": "it is a whole network (torch.save(network)); save"
    " network.state_dict() instead",
}

LARGE = 2**12  # byte strings of this length are views of the file
LINE = 2**16  # the longest argument of an operation that is a line of text
# Operations that no checkpoint needs: protocol 0's dicts and objects, registered
# extensions, and buffers outside of the stream.
UNSUPPORTED = (
    pickle.DICT, pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4,
    pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
)  # fmt: skip


class Source:
    """A file's bytes, read in order.

    Attributes:
        data: all bytes.
        position: where the next read starts.
    """

    def __init__(self, data: memoryview, position: int = 0):
        self.data, self.position = data, position

    def read(self, count: int) -> bytes | memoryview:
        """Returns the next bytes, as a view if there are many; raises EOFError."""
        end = self.position + count
        if not self.position <= end <= len(self.data):
            raise EOFError(f"it ends at byte {len(self.data)}, {end} are needed")
        part = self.data[self.position : end]
        self.position = end
        return part if count >= LARGE else bytes(part)

    def readline(self) -> bytes:
        """Returns the bytes up to the next line feed; raises EOFError."""
        head = bytes(self.data[self.position : self.position + LINE])
        length = head.find(b"\n") + 1
        if not length:
            raise EOFError(f"no line ends after byte {self.position}")
        self.position += length
        return head[:length]


class _Operations(dict):
    """Code -> operation; counts the operations that are run."""

    def __init__(self, most: int):
        super().__init__(_OPERATIONS)
        self.most = self.left = most

    def __getitem__(self, code):
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"a file of this size has at most {self.most} operations")
        return super().__getitem__(code)

    def __missing__(self, code):
        raise ValueError(f"unsupported operation {bytes([code])!r}")


class _Unpickler(pickle._Unpickler):
    def __init__(self, source, storage_of, extra):
        # latin1 keeps Python 2's byte strings intact.
        super().__init__(source, encoding="latin1")
        size = len(source.data)
        self.dispatch = _Operations(2**17 + size // 64)
        # An operation adds one element at most, so only reuse exceeds these.
        self._elements_left = 2 * self.dispatch.most
        self._characters_left = 2**20 + 4 * size
        self._storage_of = storage_of
        self._allowed = ALLOWED | extra
        self._is_first = True

    def find_class(self, module, name):
        is_first, self._is_first = self._is_first, False
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        full = f"{module}.{name}"
        if FOREIGN.fullmatch(module):
            return Foreign(full)
        causes = [
            text for pattern, text in CAUSES.items() if re.fullmatch(pattern, full)
        ]
        known = sys.stdlib_module_names | {"torch", "numpy"}
        if is_first and not causes and module.partition(".")[0] not in known:
            causes = ["if it is a whole network, save its state_dict() instead"]
        raise UnsafePickleError(
            f"refers to {full!r}, which is not an allowed class or function; the file"
            " was refused and nothing was executed"
            + "".join(f"; {cause}" for cause in causes)
        )

    def persistent_load(self, pid):
        if self._storage_of is None:
            raise ValueError("a persistent id, but this is not a PyTorch file")
        return self._storage_of(pid)

    def count_copies(self, things):
        """Counts the parts of what a builder gets, and maybe copies."""
        parts = things if isinstance(things, list | tuple) else ()
        for part in (things, *parts):
            if isinstance(part, str):
                self._characters_left -= len(part)
            elif isinstance(part, list | tuple | dict | set | frozenset):
                self._elements_left -= len(part)
        if min(self._elements_left, self._characters_left) < 0:
            raise ValueError("its parts are used too often for a file of its size")

    def load_reduce(self):
        self.count_copies(self.stack[-1])
        super().load_reduce()

    def load_build(self):
        self.count_copies(self.stack[-1])
        super().load_build()

    def load_newobj(self):
        if isinstance(self.stack[-2], Foreign):
            del self.stack[-1]
        else:
            super().load_newobj()

    def load_newobj_ex(self):
        if isinstance(self.stack[-3], Foreign):
            del self.stack[-2:]
        else:
            super().load_newobj_ex()

    def load_setitem(self):
        check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        check_keys(self.stack[::2])  # those since the last mark
        super().load_setitems()

    def load_additems(self):
        check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self):
        check_keys(self.stack)
        super().load_frozenset()

    def load_binstring(self):
        # Python 2's byte string: text if it is short, otherwise an array's data.
        (length,) = struct.unpack("<i", self.read(4))
        data = self.read(length)
        self.append(data.decode("latin1") if isinstance(data, bytes) else data)

    def load_bytearray8(self):
        # Not copied into a bytearray, which would be allocated first.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))


# The base class looks operations up by code, so overriding a method is not enough.
_OPERATIONS = {
    code: getattr(_Unpickler, operation.__name__, operation)
    for code, operation in pickle._Unpickler.dispatch.items()
    if bytes([code]) not in UNSUPPORTED
}


def load(
    source: Source,
    storage_of: Callable[[tuple], Record] | None = None,
    extra: Mapping[tuple[str, str], Builder] | None = None,
) -> Any:
    """Reads one pickle into records and containers; see `plain`.

    Args:
        source: at the pickle's first byte; left just after its last byte.
        storage_of: returns the storage for a PyTorch persistent id.
        extra: (module, name) -> builder, in addition to `ALLOWED`.

    Raises:
        UnsafePickleError: the stream names a class that is not allowed.
        Exception: any other exception, if the stream is damaged.
    """
    return _Unpickler(source, storage_of, extra or {}).load()


def plain(data: Any) -> Any:
    """Turns what `load` returns into arrays, dicts, lists, tuples, sets and numbers."""
    # Each object is converted once: sharing is kept, and a small file whose objects
    # contain each other many times cannot expand into huge data.
    done: dict[int, tuple] = {}

    def convert(item):
        if id(item) not in done:
            done[id(item)] = item, _plain(item, convert)
        return done[id(item)][1]

    return convert(data)


def _plain(item, convert):
    if item is None or isinstance(item, bool | int | float | complex | str):
        return item
    if isinstance(item, bytes | memoryview | np.ndarray):
        return item
    if isinstance(item, Record):
        return item.resolve(convert)
    if isinstance(item, dict):
        return {convert(key): convert(value) for key, value in item.items()}
    if isinstance(item, list | tuple | set | frozenset):
        return type(item)(map(convert, item))
    raise ValueError(f"unexpected {type(item).__name__} in place of data")
