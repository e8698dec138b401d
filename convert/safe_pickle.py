"""A pickle reader that executes nothing: arrays and plain containers come out.

A pickle names classes and asks for them to be called. Here every name goes through
one table, `ALLOWED`; behind each stands a builder of ours that only notes what it was
given. Whatever is not in the table ends the reading. When the stream is through,
`plain` turns the notes into read-only numpy arrays, dicts, lists, tuples and numbers.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any

from convert.records import (
    BFLOAT16,
    Builder,
    Fields,
    Module,
    Namespace,
    NumpyArray,
    NumpyDtype,
    NumpyScalar,
    Record,
    Tensor,
    TorchType,
)

# PyTorch's names for element types -> ours, as storage classes and as dtypes.
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
    """The file asks for a class that is not on the list; nothing of it was executed."""


def _tensor(storage, offset, shape, strides, *_grad_and_hooks):
    return Tensor(storage, offset, shape, strides)


def _tensor_v3(storage, offset, shape, strides, _grad, _hooks, dtype, *_):
    return Tensor(storage, offset, shape, strides, dtype)


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Fields,
    ("collections", "defaultdict"): Builder(lambda *_: Fields()),
    ("argparse", "Namespace"): Namespace,
    ("dnnlib.util", "EasyDict"): Fields,
    # Python 3's way to write b"" in a protocol that has no bytes.
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
        # latin1: Python 2's byte strings survive it.
        super().__init__(file, encoding="latin1")
        self._storage_of = storage_of
        self._allowed = ALLOWED | extra

    def find_class(self, module, name):
        try:
            return self._allowed[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"asks for {f'{module}.{name}'!r}, which is not on the list of harmless"
                " classes; refused, and nothing was executed"
            ) from None

    def persistent_load(self, pid):
        if self._storage_of is None:
            raise ValueError("a persistent id outside a PyTorch file")
        return self._storage_of(pid)


def load(
    file: IO[bytes],
    storage_of: Callable[[tuple], Record] | None = None,
    extra: Mapping[tuple[str, str], Builder] | None = None,
) -> Any:
    """Reads one pickle into records and containers; see `plain`.

    Args:
        file: open at the pickle's first byte; left after its last.
        storage_of: gives the storage for a PyTorch persistent id.
        extra: (module, name) -> builder, on top of `ALLOWED`.

    Raises:
        UnsafePickleError: the stream names a class that is not allowed.
        Exception: of any kind, if the stream is damaged.
    """
    return _Unpickler(file, storage_of, extra or {}).load()


def plain(thing: Any) -> Any:
    """Turns what `load` gave into arrays, dicts, lists, tuples, sets and numbers."""
    # Each thing once: sharing stays, and a small file cannot unfold into a huge one.
    done: dict[int, tuple] = {}

    def turn(thing):
        if id(thing) not in done:
            done[id(thing)] = thing, _plain(thing, turn)
        return done[id(thing)][1]

    return turn(thing)


def _plain(thing, turn):
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes):
        return thing
    if isinstance(thing, Record):
        return thing.resolve(turn)
    if isinstance(thing, dict):
        return {turn(key): turn(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set):
        return type(thing)(map(turn, thing))
    raise ValueError(f"a bare {type(thing).__name__} where data should be")
