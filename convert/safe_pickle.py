"""A pickle reader that executes nothing and returns arrays and plain containers.

A pickle names classes and functions and has them called. Here every name is looked up
in one table, `ALLOWED`, which maps it to one of our builders, which only records its
arguments. A name that is not in the table stops the reading. After the whole stream
has been read, `plain` turns the records into read-only numpy arrays, dicts, lists,
tuples and numbers.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any

from convert.pickle_records import (
    BFLOAT16,
    Builder,
    Fields,
    Module,
    Namespace,
    NumpyArray,
    NumpyDtype,
    NumpyScalar,
    PlainModule,
    Record,
    Tensor,
    TorchType,
)

# PyTorch's element types, named by storage class and by dtype -> numpy's.
STORAGES = {
    "Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": BFLOAT16,
    "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1",
    "Bool": "?", "ComplexFloat": "<c8", "ComplexDouble": "<c16", "Untyped": "u1",
}  # fmt: skip
DTYPES = {
    "float32": "<f4", "float64": "<f8", "float16": "<f2", "bfloat16": BFLOAT16,
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "i1", "uint8": "u1",
    "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "bool": "?",
    "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip


class UnsafePickleError(ValueError):
    """The file refers to a class that is not allowed; none of its code was executed."""


def _tensor(storage, offset, shape, strides, *_grad_and_hooks):
    return Tensor(storage, offset, shape, strides)


def _tensor_v3(storage, offset, shape, strides, _grad, _hooks, dtype, *_):
    return Tensor(storage, offset, shape, strides, dtype)


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Fields,
    ("collections", "defaultdict"): Builder(lambda *_: Fields()),
    ("argparse", "Namespace"): Namespace,
    ("dnnlib.util", "EasyDict"): Fields,
    # How Python 3 writes b"" in protocols without a bytes opcode.
    ("__builtin__", "bytes"): Builder(lambda: b""),
    ("builtins", "set"): Builder(set),
    ("__builtin__", "set"): Builder(set),
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


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storage_of, extra):
        # latin1 keeps Python 2's byte strings intact.
        super().__init__(file, encoding="latin1")
        self._storage_of = storage_of
        self._allowed = ALLOWED | extra

    def find_class(self, module, name):
        try:
            return self._allowed[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"refers to {f'{module}.{name}'!r}, which is not an allowed class or"
                " function; the file was refused and nothing was executed"
            ) from None

    def persistent_load(self, pid):
        if self._storage_of is None:
            raise ValueError("a persistent id, but this is not a PyTorch file")
        return self._storage_of(pid)


def load(
    file: IO[bytes],
    storage_of: Callable[[tuple], Record] | None = None,
    extra: Mapping[tuple[str, str], Builder] | None = None,
) -> Any:
    """Reads one pickle into records and containers; see `plain`.

    Args:
        file: open at the pickle's first byte; left just after its last byte.
        storage_of: returns the storage for a PyTorch persistent id.
        extra: (module, name) -> builder, in addition to `ALLOWED`.

    Raises:
        UnsafePickleError: the stream names a class that is not allowed.
        Exception: any other exception, if the stream is damaged.
    """
    return _Unpickler(file, storage_of, extra or {}).load()


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
    if item is None or isinstance(item, bool | int | float | complex | str | bytes):
        return item
    if isinstance(item, Record):
        return item.resolve(convert)
    if isinstance(item, dict):
        return {convert(key): convert(value) for key, value in item.items()}
    if isinstance(item, list | tuple | set):
        return type(item)(map(convert, item))
    raise ValueError(f"unexpected {type(item).__name__} in place of data")
