"""Writes checkpoint files in their true formats, without torch.

A numpy array stands for a tensor. The classes that real files name are posed by empty
ones while a file is pickled, so the streams are pickle's own, as `torch.save` and
NVIDIA's training make them. Arrays go to the disk one by one and are not copied.
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
FIRST_KEY = 94_000_000_000_000  # an address, in the older format

# torch.nn.Module's attributes in their order; those not named below are for hooks.
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

_POSED: dict[str, types.ModuleType] = {}


def _pose(name: str, base: type = object) -> type:
    """Makes a class that pickles by a dotted name which no module here has."""
    module, _, last = name.rpartition(".")
    posed = type(last, (base,), {"__module__": module})
    for home in (module.partition(".")[0], module):
        _POSED.setdefault(home, types.ModuleType(home))
    setattr(_POSED[module], last, posed)
    return posed


STORAGES = {
    np.dtype(dtype): _pose(f"torch.{name}Storage")
    for name, dtype in {
        "Float": "f4", "Double": "f8", "Half": "f2", "Long": "i8", "Int": "i4",
        "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexFloat": "c8",
    }.items()
}  # fmt: skip
REBUILD_TENSOR = _pose("torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = _pose("torch._utils._rebuild_parameter")
LOAD_FROM_BYTES = _pose("torch.storage._load_from_bytes")
RECONSTRUCT = _pose("torch_utils.persistence._reconstruct_persistent_obj")
EasyDict = _pose("dnnlib.util.EasyDict", dict)


@dataclasses.dataclass(eq=False)
class Storage:
    """What a tensor's numbers stand in: the whole of one array."""

    array: np.ndarray

    @property
    def type(self) -> type:
        """The posed storage class."""
        if self.array.dtype not in STORAGES:
            raise ValueError(f"no storage class for {self.array.dtype}")
        return STORAGES[self.array.dtype]

    def bytes(self) -> memoryview:
        """The raw numbers; a view, where the array is contiguous."""
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data


@dataclasses.dataclass(eq=False)
class Parameter:
    """A tensor that is a `torch.nn.Parameter`."""

    array: np.ndarray
    requires_grad: bool


@dataclasses.dataclass(eq=False)
class Module:
    """A network of NVIDIA's persistent classes, or a node of one: its `__dict__`."""

    state: dict[str, Any]
    source: str


class _Pickler(pickle.Pickler):
    """Pickles arrays as tensors; `storage_id` of None embeds them in the stream."""

    def __init__(
        self, file: IO[bytes], protocol: int, storage_id: Callable | None = None
    ):
        super().__init__(file, protocol)
        self.storage_id = storage_id

    def persistent_id(self, thing):
        if self.storage_id and isinstance(thing, Storage):
            return self.storage_id(thing)
        return None

    def reducer_override(self, thing):
        if isinstance(thing, np.ndarray):
            shape = thing.shape
            sides = [max(n, 1) for n in shape]
            strides = tuple(int(np.prod(sides[i + 1 :])) for i in range(len(sides)))
            return REBUILD_TENSOR, (
                Storage(thing), 0, shape, strides, False, OrderedDict()
            )  # fmt: skip
        if isinstance(thing, Parameter):
            return REBUILD_PARAMETER, (
                thing.array, thing.requires_grad, OrderedDict()
            )  # fmt: skip
        if isinstance(thing, Module):
            meta = {
                "type": "class",
                "version": 6,
                "module_src": thing.source,
                "class_name": "Net",
                "state": thing.state,
            }
            return RECONSTRUCT, (meta,)
        if isinstance(thing, Storage):
            stream = io.BytesIO()
            _legacy(stream, thing)
            return LOAD_FROM_BYTES, (stream.getvalue(),)
        return NotImplemented


def write_zip(path: Path, data: Any) -> None:
    """Writes what `torch.save` has written since 1.6.

    Args:
        path: the file; its stem is the archive's folder.
        data: containers, plain objects and arrays, each a tensor.
    """
    storages: list[Storage] = []

    def storage_id(storage):
        storages.append(storage)
        key = str(len(storages) - 1)
        return "storage", storage.type, key, "cpu", storage.array.size

    stream = io.BytesIO()
    with mock.patch.dict(sys.modules, _POSED):
        _Pickler(stream, 2, storage_id).dump(data)
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:

        def record(name, contents):
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            # Numbers begin at a multiple of 64, after padding in the header.
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
    """Writes what `torch.save` wrote before 1.6; `data` as in `write_zip`."""
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
    with mock.patch.dict(sys.modules, _POSED):
        _Pickler(file, 2, storage_id).dump(data)
    pickle.dump(sorted(storages), file, 2)
    for _, storage in sorted(storages.items()):
        file.write(struct.pack("<q", storage.array.size))
        file.write(storage.bytes())


def write_nvlabs(path: Path, data: Any, protocol: int = 3) -> None:
    """Writes what NVIDIA's training pickles, networks as `network` makes them.

    Args:
        path: the file.
        data: as in `write_zip`, and `Module`, `Parameter` and `EasyDict` objects.
        protocol: pickle's; 3 was Python 3.7's own.
    """
    with mock.patch.dict(sys.modules, _POSED), path.open("wb") as file:
        _Pickler(file, protocol).dump(data)


def state_dict(arrays: Mapping[str, np.ndarray]) -> OrderedDict:
    """Returns what a network's `state_dict()` is: with the layers' versions."""
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
) -> Module:
    """Returns nested modules whose state dict is `state`.

    Args:
        state: dotted name -> array.
        buffers: last parts of the names that are no parameters.
        source: the Python text that NVIDIA embeds.
        attributes: dotted name of a module ("" is the root) -> what else it holds.
        names: the attributes of every module, as a PyTorch version has them.
        trained: whether the parameters require gradients.
    """

    def module():
        kind = OrderedDict if names is TORCH_1_7 else dict
        values = dict.fromkeys(("_parameters", "_buffers", "_modules"), kind)
        values |= {"_non_persistent_buffers_set": set, "training": lambda: trained}
        values["_is_full_backward_hook"] = lambda: None
        return Module({n: values.get(n, OrderedDict)() for n in names}, source)

    root = module()
    modules = {"": root}
    for name, array in state.items():
        *path, leaf = name.split(".")
        for n, part in enumerate(path, 1):
            parent, here = ".".join(path[: n - 1]), ".".join(path[:n])
            if here not in modules:
                modules[here] = module()
                modules[parent].state["_modules"][part] = modules[here]
        own = modules[".".join(path)].state
        if leaf in buffers:
            own["_buffers"][leaf] = array
        else:
            own["_parameters"][leaf] = Parameter(array, trained)
    for name, values in (attributes or {}).items():
        modules[name].state |= values
    return root
