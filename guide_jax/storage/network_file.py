"""Networks on disk: an `.npz` file, as in the demo bundle, or an Orbax folder."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from guide_jax import models
from guide_jax.errors import is_about_a_file
from guide_jax.models.network import fill, flat_leaves
from guide_jax.storage import orbax
from guide_jax.storage.archives import open_npz
from guide_jax.storage.atomic import writing

# An `.npz` entry besides the leaves. Its space keeps it distinct from leaves' paths.
HEADER = "network description"
FORMAT = "guide_jax network"


def save_network(
    path: str | Path,
    network: Any,
    *,
    dtype: np.dtype | type = np.float32,
    mantissa_bits: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network; on an error, `path` is left unchanged.

    Args:
        path: a path that ends in `.npz` becomes one compressed file, any other path an
            Orbax folder. An existing network is replaced; anything else at `path` is an
            error.
        network: a network whose class has a `kind` in `models.NETWORKS`, and which
            keeps its constructor's arguments in `config`.
        dtype: dtype of the leaves on disk, float32 or float16.
        mantissa_bits: number of mantissa bits, of 10, that float16 leaves keep. Zeroed
            bits compress well: keeping 6 bits makes a file a quarter smaller and
            changes a value by less than 0.8 %.
        about: JSON-able metadata, such as the network's origin.

    Raises:
        ValueError: the network's class is unknown, its `config` does not survive JSON,
            a leaf is not finite or does not fit into `dtype`, or something other than a
            network is at `path`.
    """
    path = Path(path).absolute()
    header = _header(network, about or {})
    leaves = {}
    for name, array in flat_leaves(network).items():
        leaf = np.asarray(array)
        if not np.isfinite(leaf).all():
            raise ValueError(f"{name} is not finite; nothing was saved")
        with np.errstate(over="ignore"):
            leaves[name] = leaf.astype(dtype, copy=False)
        if mantissa_bits is not None:
            leaves[name] = _round(leaves[name], mantissa_bits)
        if not np.isfinite(leaves[name]).all():
            raise ValueError(f"{name} does not fit into {np.dtype(dtype).name}")
    if path.exists():
        _read_header(path)  # raises unless it is a network
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, shared=True) as part:
        if path.suffix == ".npz":
            _write_npz(part, {HEADER: np.array(json.dumps(header)), **leaves})
        else:
            orbax.save(part, leaves, header)


def load_network(path: str | Path) -> Any:
    """Reads a network that `save_network` wrote; all leaves are float32.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: `path` holds no network, its kind is unknown, its leaves do not
            match its kind and config, or one is not finite.
        OSError, MemoryError, jax.errors.JaxRuntimeError: something else than the
            network prevents reading it.
    """
    path = Path(path).absolute()
    header = _read_header(path)
    kind, config = header["kind"], _as_tuples(header["config"])
    if kind not in models.NETWORKS:
        known = ", ".join(sorted(models.NETWORKS))
        raise ValueError(f"{path}: unknown kind of network {kind!r} (known: {known})")
    network_class: Any = models.NETWORKS[kind]
    try:
        skeleton = nnx.eval_shape(lambda: network_class(**config, rngs=nnx.Rngs(0)))
        leaves = _read_leaves(path)
        for name, leaf in leaves.items():
            if not np.isfinite(leaf).all():
                raise ValueError(f"{name} is not finite")
        return fill(skeleton, leaves)
    except Exception as error:
        if not is_about_a_file(error):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a valid {kind} network ({reason})") from error


def read_about(path: str | Path) -> dict[str, Any]:
    """Returns a saved network's `about` metadata; raises as `load_network` does."""
    return _read_header(Path(path).absolute())["about"]


def _header(network: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    network_class: Any = models.NETWORKS.get(getattr(network, "kind", ""))
    if network_class is not type(network):
        raise ValueError(f"{type(network).__name__} is not in models.NETWORKS")
    config = dict(network.config)
    try:
        same = _as_tuples(json.loads(json.dumps(config))) == config
    except TypeError:
        same = False
    if not same:
        raise ValueError(f"config of {network.kind} does not survive JSON: {config}")
    return {
        "format": FORMAT,
        "kind": network.kind,
        "config": config,
        "about": json.loads(json.dumps(dict(about))),
    }


def _round(leaf: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """Rounds float16 values, ties away from zero; the largest may become infinite."""
    lost = 10 - mantissa_bits
    half, kept = 1 << lost >> 1, 0xFFFF << lost & 0xFFFF
    bits = leaf.astype(np.float16).view(np.uint16)
    return ((bits + np.uint16(half)) & np.uint16(kept)).view(np.float16)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an `.npz` file with LZMA, a tenth smaller than NumPy writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _as_tuples(thing: Any) -> Any:
    """Returns JSON data with lists converted to tuples, as in networks' configs."""
    if isinstance(thing, dict):
        return {key: _as_tuples(value) for key, value in thing.items()}
    return tuple(map(_as_tuples, thing)) if isinstance(thing, list) else thing


def _read_header(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such network")
    try:
        if path.is_dir():
            header = orbax.read_about(path)
        else:
            with open_npz(path) as archive:
                header = json.loads(str(archive[HEADER]))
        if header["format"] == FORMAT and {"kind", "config", "about"} <= header.keys():
            return header
    # zipfile, numpy and Orbax raise any exception for a damaged file.
    except Exception as error:
        if not is_about_a_file(error):
            raise
        raise ValueError(f"{path}: not a network of guide_jax") from error
    raise ValueError(f"{path}: not a network of guide_jax")


def _read_leaves(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        return orbax.load(path)
    with open_npz(path) as archive:
        return {name: archive[name] for name in archive if name != HEADER}
