"""Records that the restricted unpickler builds in place of the classes in a file.

A record only stores what the stream passes to it. Once the whole stream has been read,
`resolve` turns the record into a numpy array or a plain container.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

# Largest size of a tensor that repeats its storage's elements (as from `expand`).
MAX_REPEATED = 2**20


def check_keys(keys: Iterable) -> None:
    """Raises ValueError for a nested tuple: hashing a deep one overflows C's stack."""
    for key in keys:
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise ValueError("a nested tuple is used as a key")


# Attributes of EG3D's modules that are no tensors of the network, but are needed.
SETTINGS = {"rendering_kwargs", "neural_rendering_resolution", "plane_axes"}


class Record:
    """Base class of the records; a stream cannot set attributes on it."""

    __slots__ = ()

    def __setstate__(self, state):
        raise ValueError(f"a {type(self).__name__} cannot take state")

    def resolve(self, plain: Callable[[Any], Any]) -> Any:
        """Returns the plain object that this record represents."""
        raise ValueError(f"unexpected {type(self).__name__} in place of data")


class Builder(Record):
    """A function that replaces an allowed name; the stream can only call it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args):
        """Calls the function with the stream's arguments."""
        return self.function(*args)


class Foreign(Record):
    """A class that means nothing here, or an object of it: what it gets is dropped."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *args, **kwargs):
        """Returns an object of this class."""
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        """Drops what the stream appends."""

    add = extend = append

    def resolve(self, plain: Callable[[Any], Any]) -> str:
        """Returns the class's name in angle brackets."""
        return f"<{self.name}>"


class Fields(dict):
    """An OrderedDict, Namespace or EasyDict, as a dict of its items or attributes."""

    __slots__ = ("attributes",)

    def __init__(self, items=()):
        if not isinstance(items, dict):
            items = list(items)
            check_keys(key for key, _ in items)
        super().__init__(items)

    def __setstate__(self, state):
        # Stored separately: an OrderedDict's `_metadata` is not one of its tensors.
        self.attributes = state


class Namespace(Fields):
    """An object whose attributes are its data."""

    __slots__ = ()

    def __setstate__(self, state):
        self.update(Fields(state))


class Storage(Record):
    """The bytes of one or more tensors; in legacy files they follow the pickle."""

    __slots__ = ("big_endian", "data")

    def __init__(self, data: memoryview | None = None, big_endian: bool = False):
        self.data = data
        self.big_endian = big_endian


class TorchType(Record):
    """A PyTorch storage class or dtype; `dtype` is the element type."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)

    def resolve(self, plain: Callable[[Any], Any]) -> str:
        """Returns the dtype's name, such as "float32"."""
        return self.dtype.name


class TypedStorage(Record):
    """`numel` elements of a storage, starting at byte `start`."""

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
        """Returns a read-only view of the storage, of shape `shape`."""
        source, size = self.storage.storage, self.dtype.itemsize
        if len(self.shape) != len(self.strides) or any(
            n < 0 for n in (self.offset, self.storage.start, *self.shape, *self.strides)
        ):
            raise ValueError("a tensor has an invalid shape or stride")
        extent = math.prod(self.shape) and 1 + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )
        start = self.storage.start + self.offset * size
        raw = memoryview(source.data)[start : start + extent * size]
        if len(raw) != extent * size:
            raise ValueError("a tensor extends beyond its storage")
        count, held = math.prod(self.shape), len(source.data) // size
        if count > max(held, MAX_REPEATED):
            raise ValueError(f"a tensor has {count} elements, its storage only {held}")
        if source.big_endian and self.dtype == bfloat16:
            raise ValueError("a big-endian bfloat16 tensor, which is not supported")
        order = self.dtype.newbyteorder(">") if source.big_endian else self.dtype
        flat = np.frombuffer(raw, order) if extent else np.zeros(0, order)
        strides = [step * flat.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides)
        view.flags.writeable = False
        return view


class NumpyDtype(Record):
    """A numpy dtype, of numbers or objects, given by its code and byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code, *_):
        if not re.fullmatch(r"[<>=|]?(\?|[biufc][0-9]{1,2})|O[48]", str(code)):
            raise ValueError(f"unsupported numpy dtype {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]

    def dtype(self) -> np.dtype:
        """Returns the numpy dtype."""
        return np.dtype(self.code).newbyteorder(self.order)

    def resolve(self, plain: Callable[[Any], Any]) -> str:
        """Returns the name, such as "float32"."""
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
        """Returns a read-only array, which is a view of the bytes.

        For an object array, which must have no axes, returns its single object.
        """
        if self.dtype.dtype().hasobject:
            if self.shape != () or not isinstance(self.raw, list):
                raise ValueError("unsupported object array")
            (value,) = self.raw
            return plain(value)
        # Python 2 pickles store bytes as text.
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        array = np.frombuffer(raw, self.dtype.dtype())
        array = array.reshape(self.shape, order=self.order)
        array.flags.writeable = False
        return array


class NumpyScalar(Record):
    """A numpy scalar."""

    __slots__ = ("array",)

    def __init__(self, dtype: NumpyDtype, raw=b""):
        self.array = NumpyArray(raw, dtype, ())

    def resolve(self, plain: Callable[[Any], Any]) -> int | float | complex | bool:
        """Returns a Python number."""
        return self.array.resolve(plain).item()


class Module(Record):
    """A network of NVIDIA's persistent classes: only its state, never its source."""

    __slots__ = ("state",)

    def __init__(self, meta: Mapping):
        self.state = meta["state"]

    def resolve(self, plain: Callable[[Any], Any]) -> dict:
        """Returns a network's flat state dict, or the state of any other object."""
        if "_parameters" not in self.state:
            return plain(self.state)
        own = {**self.state["_parameters"], **self.state["_buffers"]}
        for name in self.state.get("_non_persistent_buffers_set", ()):
            own.pop(name, None)
        flat = {name: plain(value) for name, value in own.items() if value is not None}
        flat |= {name: plain(self.state[name]) for name in SETTINGS & self.state.keys()}
        # All of NVIDIA's modules have this, but only these need it.
        if "rendering_kwargs" in flat and "_init_kwargs" in self.state:
            flat["_init_kwargs"] = plain(self.state["_init_kwargs"])
        for child, module in self.state["_modules"].items():
            for name, value in (plain(module) if module is not None else {}).items():
                flat[f"{child}.{name}"] = value
        return flat


class PlainModule(Module):
    """A network of an ordinary class, which a file refers to by name."""

    __slots__ = ()

    def __init__(self):
        super().__init__({"state": {}})

    def __setstate__(self, state):
        self.state = state
