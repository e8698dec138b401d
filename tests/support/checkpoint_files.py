"""Writes checkpoint files in their real formats, without torch.

Tensors are given as numpy arrays. Empty stand-ins replace the classes that real files
name while a file is pickled, so pickle itself produces the same streams as `torch.save`
and NVIDIA's training code. Arrays are written one by one, without copies.
"""

import dataclasses
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from unittest import mock

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {
    "protocol_version": PROTOCOL,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
ALIGNMENT = 64
FIRST_KEY = 94_000_000_000_000  # a storage address, as in the legacy format

# torch.nn.Module's attributes, in order; those not used below hold hooks.
TORCH_1_7 = (
    "training", "_parameters", "_buffers", "_non_persistent_buffers_set",
    "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks",
    "_load_state_dict_pre_hooks", "_modules",
)  # fmt: skip
TORCH_2_13 = (
    "training", "_parameters", "_buffers", "_non_persistent_buffers_set",
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_modules",
)  # fmt: skip

_STAND_INS: dict[str, types.ModuleType] = {}


def _stand_in(name: str, base: type = object) -> type:
    """Creates a stand-in class that pickles under a dotted name of a missing module."""
    module, _, last = name.rpartition(".")
    stand_in = type(last, (base,), {"__module__": module})
    for home in (module.partition(".")[0], module):
        _STAND_INS.setdefault(home, types.ModuleType(home))
    setattr(_STAND_INS[module], last, stand_in)
    return stand_in


STORAGES = {
    np.dtype(dtype): _stand_in(f"torch.{name}Storage")
    for name, dtype in {
        "Float": "f4", "Double": "f8", "Half": "f2", "Long": "i8", "Int": "i4",
        "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexFloat": "c8",
    }.items()
}  # fmt: skip
REBUILD_TENSOR = _stand_in("torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = _stand_in("torch._utils._rebuild_parameter")
LOAD_FROM_BYTES = _stand_in("torch.storage._load_from_bytes")
RECONSTRUCT = _stand_in("torch_utils.persistence._reconstruct_persistent_obj")
EasyDict = _stand_in("dnnlib.util.EasyDict", dict)


@dataclasses.dataclass(eq=False)
class Storage:
    """The storage of a tensor: one whole array."""

    array: np.ndarray

    @property
    def type(self) -> type:
        """The stand-in for the storage class."""
        if self.array.dtype not in STORAGES:
            raise ValueError(f"no storage class for {self.array.dtype}")
        return STORAGES[self.array.dtype]

    def bytes(self) -> memoryview:
        """The raw bytes; a view if the array is contiguous."""
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data


@dataclasses.dataclass(eq=False)
class Parameter:
    """An array written as a `torch.nn.Parameter`."""

    array: np.ndarray
    requires_grad: bool


@dataclasses.dataclass(eq=False)
class Module:
    """A network (or submodule) of NVIDIA's persistent classes, as its `__dict__`."""

    state: dict[str, Any]
    source: str


class _Pickler(pickle.Pickler):
    """Pickles arrays as tensors, embedded in the stream if `storage_id` is None."""

    def __init__(
        self, file: IO[bytes], protocol: int, storage_id: Callable | None = None
    ):
        super().__init__(file, protocol)
        self.storage_id = storage_id

    def persistent_id(self, item):
        if self.storage_id and isinstance(item, Storage):
            return self.storage_id(item)
        return None

    def reducer_override(self, item):
        if isinstance(item, np.ndarray):
            shape = item.shape
            sides = [max(n, 1) for n in shape]
            strides = tuple(int(np.prod(sides[i + 1 :])) for i in range(len(sides)))
            return REBUILD_TENSOR, (
                Storage(item), 0, shape, strides, False, OrderedDict()
            )  # fmt: skip
        if isinstance(item, Parameter):
            return REBUILD_PARAMETER, (
                item.array, item.requires_grad, OrderedDict()
            )  # fmt: skip
        if isinstance(item, Module):
            meta = {
                "type": "class",
                "version": 6,
                "module_src": item.source,
                "class_name": "Net",
                "state": item.state,
            }
            return RECONSTRUCT, (meta,)
        if isinstance(item, Storage):
            stream = io.BytesIO()
            _legacy(stream, item)
            return LOAD_FROM_BYTES, (stream.getvalue(),)
        return NotImplemented


def write_zip(path: Path, data: Any) -> None:
    """Writes the format of `torch.save` since PyTorch 1.6.

    Args:
        path: the file to write; its stem names the archive's root folder.
        data: containers, plain objects and arrays; each array becomes a tensor.
    """
    storages: list[Storage] = []

    def storage_id(storage):
        storages.append(storage)
        key = str(len(storages) - 1)
        return "storage", storage.type, key, "cpu", storage.array.size

    stream = io.BytesIO()
    with mock.patch.dict(sys.modules, _STAND_INS):
        _Pickler(stream, 2, storage_id).dump(data)
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:

        def record(name, contents):
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            # Padding in the header aligns the data to a multiple of 64 bytes.
            end = file.tell() + 30 + len(info.filename) + 4
            padding = -end % ALIGNMENT
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, contents)

        record("data.pkl", stream.getvalue())
        record(".format_version", b"1")
        record(".storage_alignment", str(ALIGNMENT).encode())
        record("byteorder", b"little")
        for i, storage in enumerate(storages):
            record(f"data/{i}", storage.bytes())
        record("version", b"3\n")
        record(".data/serialization_id", b"0" * 40)


def write_legacy(path: Path, data: Any) -> None:
    """Writes the format of `torch.save` before 1.6, with `data` as in `write_zip`."""
    with path.open("wb") as file:
        _legacy(file, data)


def _legacy(file: IO[bytes], data: Any) -> None:
    storages: dict[str, Storage] = {}

    def storage_id(storage):
        key = str(FIRST_KEY + ALIGNMENT * len(storages))
        storages[key] = storage
        return "storage", storage.type, key, "cpu", storage.array.size, None

    for head in (MAGIC, PROTOCOL, SYSTEM):
        pickle.dump(head, file, 2)
    with mock.patch.dict(sys.modules, _STAND_INS):
        _Pickler(file, 2, storage_id).dump(data)
    pickle.dump(sorted(storages), file, 2)
    for _, storage in sorted(storages.items()):
        file.write(struct.pack("<q", storage.array.size))
        file.write(storage.bytes())


def write_nvlabs(path: Path, data: Any, protocol: int = 3) -> None:
    """Writes a pickle like NVIDIA's training code; `network` builds the networks.

    Args:
        path: the file to write.
        data: as in `write_zip`, plus `Module`, `Parameter` and `EasyDict` objects.
        protocol: the pickle protocol; 3 was the default in Python 3.7.
    """
    with mock.patch.dict(sys.modules, _STAND_INS), path.open("wb") as file:
        _Pickler(file, protocol).dump(data)


def state_dict(arrays: Mapping[str, np.ndarray]) -> OrderedDict:
    """Returns arrays as a network's `state_dict()`, including the layer versions."""
    state = OrderedDict(arrays)
    paths = [name.split(".")[:-1] for name in arrays]
    layers = {".".join(p[:n]): 1 for p in paths for n in range(len(p) + 1)}
    norms = {n.rpartition(".")[0]: 2 for n in arrays if n.endswith(".running_mean")}
    state._metadata = OrderedDict(
        (name, {"version": version}) for name, version in (layers | norms).items()
    )
    return state


def network(
    state: Mapping[str, np.ndarray],
    buffers: Sequence[str],
    source: str,
    *,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    names: Sequence[str] = TORCH_1_7,
    trained: bool = False,
    plain: Mapping[str, str] | None = None,
) -> Module:
    """Returns nested modules with `state` as their state dict.

    Args:
        state: dotted name -> array.
        buffers: last name components of the arrays that are buffers, not parameters.
        source: the Python source that NVIDIA embeds.
        attributes: dotted module name ("" is the root) -> additional attributes.
        names: the attributes of every module in a given PyTorch version.
        trained: whether the parameters require gradients.
        plain: dotted module name -> dotted name of its class, for modules of ordinary
            classes, whose source is not embedded; some have no tensors.
    """

    def module():
        kind = OrderedDict if names is TORCH_1_7 else dict
        values = dict.fromkeys(("_parameters", "_buffers", "_modules"), kind)
        values |= {"_non_persistent_buffers_set": set, "training": lambda: trained}
        values["_is_full_backward_hook"] = lambda: None
        return Module({n: values.get(n, OrderedDict)() for n in names}, source)

    root = module()
    modules = {"": root}
    for name in (*state, *(f"{name}." for name in plain or {})):
        path = name.split(".")[:-1]
        for n, part in enumerate(path, 1):
            parent, here = ".".join(path[: n - 1]), ".".join(path[:n])
            if here not in modules:
                modules[here] = module()
                modules[parent].state["_modules"][part] = modules[here]
    for name, array in state.items():
        *path, leaf = name.split(".")
        own = modules[".".join(path)].state
        if leaf in buffers:
            own["_buffers"][leaf] = array
        else:
            own["_parameters"][leaf] = Parameter(array, trained)
    for name, values in (attributes or {}).items():
        modules[name].state |= values
    for name, kind in (plain or {}).items():
        parent, _, part = name.rpartition(".")
        ordinary = _stand_in(kind)()
        ordinary.__dict__ = modules[name].state
        modules[parent].state["_modules"][part] = ordinary
    return root
