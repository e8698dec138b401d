"""Networks on disk: one `.npz` file (the demo bundle) or an Orbax folder."""

import hashlib
import json
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax import models
from guide_jax.storage import orbax
from guide_jax.storage.orbax import put, remove

# Beside the leaves in an `.npz`; no leaf's dotted path has a space.
HEADER = "network description"
FORMAT = "guide_jax network"


def leaf_shapes(network: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns dotted path -> shape of every array in a network (or its skeleton)."""
    return {".".join(map(str, path)): tuple(v.shape) for path, v in _flat(network)}


def flat_leaves(network: nnx.Module) -> dict:
    """Returns dotted path -> array of every parameter and buffer in a network."""
    return {".".join(map(str, path)): v[...] for path, v in _flat(network)}


def _flat(network: nnx.Module) -> list[tuple]:
    return list(nnx.to_flat_state(nnx.state(network)))


def fill(network: nnx.Module, leaves: Mapping[str, np.ndarray]) -> nnx.Module:
    """Returns the network with every leaf set from `leaves`, as float32.

    Args:
        network: a network or its `nnx.eval_shape` skeleton.
        leaves: dotted path -> array; exactly the network's paths and shapes.

    Raises:
        ValueError: paths or shapes differ; the text names them.
    """
    graph, state = nnx.split(network)
    flat = dict(nnx.to_flat_state(state))
    wanted = {".".join(map(str, path)): path for path in flat}
    faults = [f"missing {name}" for name in wanted.keys() - leaves.keys()]
    faults += [f"unknown {name}" for name in leaves.keys() - wanted.keys()]
    faults += [
        f"{name} has shape {list(np.shape(leaves[name]))}, not {list(flat[path].shape)}"
        for name, path in wanted.items()
        if name in leaves and np.shape(leaves[name]) != tuple(flat[path].shape)
    ]
    if faults:
        raise ValueError("; ".join(sorted(faults)))
    filled = {
        path: flat[path].replace(jnp.asarray(np.array(leaves[name], np.float32)))
        for name, path in wanted.items()
    }
    return nnx.merge(graph, nnx.from_flat_state(filled))


def save_network(
    path: str | Path,
    network: nnx.Module,
    *,
    dtype: np.dtype | type = np.float32,
    mantissa_bits: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network so that either the whole of it is at `path` or nothing new is.

    Args:
        path: ending in `.npz` for one compressed file, else an Orbax folder. A network
            that is there already is replaced; anything else is left alone.
        network: its class has a `kind` in `models.NETWORKS`, and it keeps its
            constructor's arguments as `config`.
        dtype: of the leaves on disk, float32 or float16.
        mantissa_bits: to how many bits below the leading one a float16 is rounded; it
            has 10. Zeros in the others' place compress: 6 bits make a file a quarter
            smaller and move a number by less than 0.8 %.
        about: whatever else should stand with it, JSON-able (where it came from, say).

    Raises:
        ValueError: the network's class is unknown, its `config` would not come back
            from JSON as it is, a leaf is not finite or does not fit into `dtype`, or
            something else than a network is at `path`.
    """
    path = Path(path).absolute()
    header = _header(network, about or {})
    leaves = {}
    for name, leaf in flat_leaves(network).items():
        if not np.isfinite(leaf).all():
            raise ValueError(f"{name} is not finite; nothing was saved")
        with np.errstate(over="ignore"):
            leaves[name] = np.asarray(leaf).astype(dtype)
        if mantissa_bits is not None:
            leaves[name] = _round(leaves[name], mantissa_bits)
        if not np.isfinite(leaves[name]).all():
            raise ValueError(f"{name} does not fit into {np.dtype(dtype).name}")
    if path.exists():
        _read_header(path)  # raises unless it is a network
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a name of its own: two runs may write side by side.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if path.suffix == ".npz":
            _write_npz(part, {HEADER: np.array(json.dumps(header)), **leaves})
        else:
            orbax.save(part, leaves, header)
        put(part, path)
    finally:
        remove(part)


def load_network(path: str | Path) -> nnx.Module:
    """Reads a network that `save_network` wrote; all leaves are float32.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: what is there is no network, of an unknown kind, or its leaves are
            not those that its kind and config ask for.
    """
    path = Path(path).absolute()
    header = _read_header(path)
    kind, config = header["kind"], _as_tuples(header["config"])
    if kind not in models.NETWORKS:
        known = ", ".join(sorted(models.NETWORKS))
        raise ValueError(f"{path}: unknown kind of network {kind!r} (known: {known})")
    network_class = models.NETWORKS[kind]
    try:
        skeleton = nnx.eval_shape(lambda: network_class(**config, rngs=nnx.Rngs(0)))
        return fill(skeleton, _read_leaves(path))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a whole {kind} network ({reason})") from error


def read_about(path: str | Path) -> dict[str, Any]:
    """Returns what `save_network` was given as `about`; raises as `load_network`."""
    return _read_header(Path(path).absolute())["about"]


def _header(network: nnx.Module, about: Mapping[str, Any]) -> dict[str, Any]:
    if models.NETWORKS.get(getattr(network, "kind", None)) is not type(network):
        raise ValueError(f"{type(network).__name__} is not in models.NETWORKS")
    config = dict(network.config)
    try:
        same = _as_tuples(json.loads(json.dumps(config))) == config
    except TypeError:
        same = False
    if not same:
        raise ValueError(f"config of {network.kind} is not kept by JSON: {config}")
    return {
        "format": FORMAT,
        "kind": network.kind,
        "config": config,
        "about": json.loads(json.dumps(dict(about))),
    }


def _round(leaf: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """Rounds float16 numbers, half up in size; the largest may become infinite."""
    lost = 10 - mantissa_bits
    half, kept = 1 << lost >> 1, 0xFFFF << lost & 0xFFFF
    bits = leaf.astype(np.float16).view(np.uint16)
    return ((bits + np.uint16(half)) & np.uint16(kept)).view(np.float16)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes what `np.load` reads, compressed by LZMA: a tenth less than NumPy's."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _as_tuples(thing: Any) -> Any:
    """Returns JSON data with every list as a tuple; configs hold no lists."""
    if isinstance(thing, dict):
        return {key: _as_tuples(value) for key, value in thing.items()}
    return tuple(map(_as_tuples, thing)) if isinstance(thing, list) else thing


def _read_header(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no network there")
    try:
        if path.is_dir():
            header = orbax.read_about(path)
        else:
            # Opened here: given a path, numpy leaves a damaged file open.
            with path.open("rb") as file, np.load(file) as archive:
                header = json.loads(str(archive[HEADER]))
        if header["format"] == FORMAT and {"kind", "config", "about"} <= header.keys():
            return header
    # Damaged files make zipfile, numpy and Orbax raise anything.
    except Exception as error:
        raise ValueError(f"{path}: not a network of guide_jax") from error
    raise ValueError(f"{path}: not a network of guide_jax")


def _read_leaves(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        return orbax.load(path)
    with path.open("rb") as file, np.load(file) as archive:
        return {name: archive[name] for name in archive.files if name != HEADER}


def network_hash(network: nnx.Module) -> str:
    """Returns a SHA-256 of a network's kind, configuration and leaves, hexadecimal."""
    found = hashlib.sha256(json.dumps([network.kind, network.config]).encode())
    for name, leaf in sorted(flat_leaves(network).items()):
        found.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()
