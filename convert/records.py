"""What the restricted unpickler builds instead of the classes that a file names.

Each record only notes what the stream gave it; `resolve` makes the numpy array or the
plain container of it once the whole stream has been read.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# A tensor may repeat its storage's elements, as `expand` makes it do, up to this many.
REPEATED = 2**20
# numpy has no bfloat16; as a structure its bytes can be viewed, strided and swapped.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])


class Record:
    """Base of what the builders make; a stream cannot set anything on it."""

    __slots__ = ()

    def __setstate__(self, state):
        raise ValueError(f"{type(self).__name__} takes no state")

    def resolve(self, plain: Callable[[Any], Any]) -> Any:
        """Returns the plain object this record stands for."""
        raise ValueError(f"a bare {type(self).__name__} where data should be")


class Builder(Record):
    """A function behind a name in the table. A stream can only call it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args):
        """Calls the function with what the stream gives."""
        return self.function(*args)


class Fields(dict):
    """An OrderedDict, Namespace or EasyDict, as the dict of its items or attributes."""

    __slots__ = ("attributes",)

    def __setstate__(self, state):
        # Kept apart: an OrderedDict's `_metadata` is none of its tensors.
        self.attributes = state


class Namespace(Fields):
    """An object whose attributes are its data."""

    __slots__ = ()

    def __setstate__(self, state):
        self.update(state)


class Storage(Record):
    """A run of bytes holding tensors; older files bring the bytes after the pickle."""

    __slots__ = ("big_endian", "data")

    def __init__(self, data: bytes | None = None, big_endian: bool = False):
        self.data = data
        self.big_endian = big_endian


class TorchType(Record):
    """A storage class or a dtype of PyTorch's; `dtype` is its elements'."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)

    def resolve(self, plain: Callable[[Any], Any]) -> str:
        """Returns the dtype's name, such as "float32"."""
        return "bfloat16" if self.dtype == BFLOAT16 else self.dtype.name


class TypedStorage(Record):
    """`numel` elements of a storage, from its byte `start` on."""

    __slots__ = ("dtype", "numel", "start", "storage")

    def __init__(self, storage: Storage, dtype: np.dtype, numel: int, start: int = 0):
        self.storage, self.dtype, self.numel, self.start = storage, dtype, numel, start

    def resolve(self, plain: Callable[[Any], Any]) -> np.ndarray:
        """Returns all elements `[numel]`."""
        return Tensor(self, 0, (self.numel,), (1,)).resolve(plain)


class Tensor(Record):
    """A strided view of a typed storage; offset and strides count elements."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides, dtype: TorchType | None = None):
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.dtype = dtype.dtype if dtype else storage.dtype

    def resolve(self, plain: Callable[[Any], Any]) -> np.ndarray:
        """Returns a read-only array `shape`; bfloat16 comes as float32."""
        source, size = self.storage.storage, self.dtype.itemsize
        if len(self.shape) != len(self.strides) or any(
            n < 0 for n in (self.offset, self.storage.start, *self.shape, *self.strides)
        ):
            raise ValueError("a tensor of impossible shape")
        extent = math.prod(self.shape) and 1 + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )
        start = self.storage.start + self.offset * size
        raw = memoryview(source.data)[start : start + extent * size]
        if len(raw) != extent * size:
            raise ValueError("a tensor reaches beyond its storage")
        count, held = math.prod(self.shape), len(source.data) // size
        if count > max(held, REPEATED):
            raise ValueError(f"a tensor of {count} elements over a storage of {held}")
        order = self.dtype.newbyteorder(">") if source.big_endian else self.dtype
        flat = np.frombuffer(raw, order) if extent else np.zeros(0, order)
        # Before the strides: what they repeat is not copied.
        if self.dtype == BFLOAT16:  # the upper half of a float32
            flat = (flat["bfloat16"].astype(np.uint32) << np.uint32(16)).view("f4")
        flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
        strides = [step * flat.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides)
        view.flags.writeable = False
        return view


class NumpyDtype(Record):
    """A numpy dtype of plain numbers or of objects, from its code and byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code, *_):
        if not re.fullmatch(r"[<>=|]?(\?|[biufc][0-9]{1,2})|O[48]", str(code)):
            raise ValueError(f"numpy dtype {code!r} holds no plain numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]

    def dtype(self) -> np.dtype:
        """Returns the dtype proper."""
        return np.dtype(self.code).newbyteorder(self.order)

    def resolve(self, plain: Callable[[Any], Any]) -> str:
        """Returns its name, such as "float32"."""
        return self.dtype().name


class NumpyArray(Record):
    """A numpy array's bytes, shape and order."""

    __slots__ = ("dtype", "order", "raw", "shape")

    def __init__(self, raw=b"", dtype=None, shape=(0,), order="C"):
        self.raw, self.dtype, self.shape, self.order = raw, dtype, shape, order

    def __setstate__(self, state):
        _, self.shape, self.dtype, fortran, self.raw = state
        self.order = "F" if fortran else "C"

    def resolve(self, plain: Callable[[Any], Any]) -> Any:
        """Returns the array, read-only, in this machine's byte order.

        Of an array of objects, which has to be of no axes, it is the one object.
        """
        if self.dtype.dtype().hasobject:
            if self.shape != () or not isinstance(self.raw, list):
                raise ValueError("an array of objects")
            (thing,) = self.raw
            return plain(thing)
        # Python 2 wrote bytes as text.
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        dtype = self.dtype.dtype()
        array = np.frombuffer(raw, dtype).reshape(self.shape, order=self.order)
        array = array.astype(dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array


class NumpyScalar(Record):
    """One number of numpy's."""

    __slots__ = ("array",)

    def __init__(self, dtype: NumpyDtype, raw=b""):
        self.array = NumpyArray(raw, dtype, ())

    def resolve(self, plain: Callable[[Any], Any]) -> int | float | complex | bool:
        """Returns the number."""
        return self.array.resolve(plain).item()


class Module(Record):
    """A network of NVIDIA's persistent classes: its state, never its source."""

    __slots__ = ("state",)

    def __init__(self, meta: Mapping):
        self.state = meta["state"]

    def resolve(self, plain: Callable[[Any], Any]) -> dict:
        """Returns the flat state dict; of other objects than networks, the state."""
        if "_parameters" not in self.state:
            return plain(self.state)
        own = {**self.state["_parameters"], **self.state["_buffers"]}
        for name in self.state.get("_non_persistent_buffers_set", ()):
            own.pop(name, None)
        flat = {name: plain(value) for name, value in own.items() if value is not None}
        for child, module in self.state["_modules"].items():
            for name, value in (plain(module) if module is not None else {}).items():
                flat[f"{child}.{name}"] = value
        return flat
