"""MobileStyleGAN from PyPI's `random_face` wheel: OpenVINO IR, read without OpenVINO.

The IR is an XML graph beside a file of raw constants. Most constants keep the name of
the parameter they were; the ready pointwise weights, the noise planes and the mapping
network's weights are known by their order, which the graph's layer list fixes.
"""

import io
import math
import re
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np

from convert.rules import ConversionError, Family, Rule, StateDict

DTYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32}
NETWORKS = ("MappingNetwork", "SynthesisNetwork")
SUFFIXES = (".xml", ".bin")
NAME = "random_face"  # of the converted network; a wheel's own name holds versions
MEAN_SAMPLES = 4096  # w_avg is the mean of so many mapped z, as in the package itself


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads both graphs of a `random_face` wheel, or of the folder it unpacks to.

    Returns:
        Flat state dict: "mapping.0.weight", "synthesis.m.conv1.bias" and so on,
        float32, in the layouts of the IR, with the mapping network's "mapping.w_avg"
        `[D]`.

    Raises:
        ConversionError: the path holds no such graphs.
    """
    state = {}
    for name in NETWORKS:
        xml, blob = _open_pair(Path(path), name)
        constants = _constants(xml, blob)
        state |= _mapping(constants) if name == NETWORKS[0] else _synthesis(constants)
    state["mapping.w_avg"] = _mean_w(state)
    return state


def holds_graphs(path: Path) -> bool:
    """Tells whether `read` is for this path: a folder, or a zip file with a graph."""
    if path.is_dir():
        return True
    try:
        with zipfile.ZipFile(path) as wheel:
            return any(Path(name).stem in NETWORKS for name in wheel.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def files(path: Path) -> list[Path]:
    """Returns what is read of a path: a folder's graph files, or the file itself."""
    if not path.is_dir():
        return [path]
    return [next(path.rglob(name + suffix)) for name in NETWORKS for suffix in SUFFIXES]


def _open_pair(path: Path, name: str) -> tuple[bytes, bytes]:
    if path.is_dir():
        found = [next(path.rglob(name + suffix), None) for suffix in SUFFIXES]
        if all(found):
            return found[0].read_bytes(), found[1].read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            members = {Path(member).name: member for member in wheel.namelist()}
            if all(name + suffix in members for suffix in SUFFIXES):
                pair = (wheel.read(members[name + suffix]) for suffix in SUFFIXES)
                return tuple(pair)
    raise ConversionError(f"{path}: holds no {name}.xml with its {name}.bin")


def _constants(xml: bytes, blob: bytes) -> list[tuple[str, np.ndarray]]:
    """Returns (name, array) of every floating-point constant, in the graph's order."""
    constants = []
    for layer in ET.parse(io.BytesIO(xml)).getroot().find("layers"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data.get("element_type") not in DTYPES:
            continue
        dtype = np.dtype(DTYPES[data.get("element_type")])
        if dtype.kind != "f":
            continue
        shape = [int(n) for n in data.get("shape").split(",") if n.strip()]
        count = int(data.get("size")) // dtype.itemsize
        array = np.frombuffer(blob, dtype, count, int(data.get("offset")))
        constants.append((layer.get("name"), array.reshape(shape)))
    return constants


def _mapping(constants: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    weights = [array for _, array in constants if array.ndim == 2 and array.size > 1]
    biases = [array for _, array in constants if array.ndim == 1 and array.size > 1]
    state = {}
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        state[f"mapping.{i}.weight"] = weight
        state[f"mapping.{i}.bias"] = bias
    return state


def _synthesis(constants: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Names the anonymous constants after the bias that follows them in the graph."""
    state, weight, noise = {}, None, None
    for name, array in constants:
        if re.fullmatch(r"Mul_\d+_copy", name):
            weight = array
        elif name.isdecimal() and array.ndim == 4:
            noise = array
        elif name.startswith("m."):
            state[f"synthesis.{name}"] = array
            if name.endswith(".bias") and array.ndim == 4 and "to_img" not in name:
                layer = f"synthesis.{name.removesuffix('.bias')}"
                state[f"{layer}.weight"], state[f"{layer}.noise"] = weight, noise
    return state


def _mean_w(state: StateDict) -> np.ndarray:
    """Returns the mean w `[D]` over fixed random z, as `../shared/faces` made it."""
    depth = sum(key.startswith("mapping.") for key in state) // 2
    width = state["mapping.0.weight"].shape[1]
    x = np.random.default_rng(0).standard_normal((MEAN_SAMPLES, width))
    x = x.astype(np.float32)
    x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-8)
    for i in range(depth):
        x = x @ state[f"mapping.{i}.weight"].T + state[f"mapping.{i}.bias"]
        x = np.where(x < 0, 0.2 * x, x) * math.sqrt(2)
    return x.mean(axis=0)


def _level(i: str) -> str:
    return f"synthesis.b{8 * 2 ** int(i)}"


def _raw_weight(x: np.ndarray) -> np.ndarray:
    """Undoes the equalised learning rate that our mapping network applies."""
    return x.T * (math.sqrt(x.shape[1]) / 0.01)


def _config(state: StateDict) -> dict:
    levels = {int(n) for n in re.findall(r"layers\.(\d+)\.up", " ".join(state))}
    outputs = [
        state[f"synthesis.m.layers.{i}.conv2.weight"].shape[0] for i in sorted(levels)
    ]
    first = state["synthesis.m.input.input"].shape[1]
    return {
        "channels": (first, *outputs),
        "z_dim": state["mapping.0.weight"].shape[1],
        "w_dim": state["mapping.w_avg"].shape[0],
        "mapping_layers": sum(key.startswith("mapping.") for key in state) // 2,
    }


def _convs() -> list[Rule]:
    """Rules for the stem and for both convolutions of every level."""
    rules = []
    layer = r"synthesis\.m\.layers\.(\d+)\.conv([12])"

    def conv(match: re.Match) -> str:
        return f"{_level(match[1])}.conv{int(match[2]) - 1}"

    leaves = (
        (r"conv\.modulation\.weight", "affine.weight", "linear"),
        (r"conv\.modulation\.bias", "affine.bias", "flat"),
        (r"bias", "bias", "flat"),
        (r"noise", "noise_const", "plane"),
    )
    for source, leaf, layout in leaves:
        stem = rf"synthesis\.m\.conv1\.{source}"
        rules.append(Rule(stem, f"synthesis.b4.{leaf}", layout))
        rules.append(
            Rule(
                rf"{layer}\.{source}", lambda m, leaf=leaf: f"{conv(m)}.{leaf}", layout
            )
        )
    rules += [
        Rule(r"synthesis\.m\.conv1\.weight", "synthesis.b4.weight", "conv"),
        Rule(
            rf"{layer}\.weight",
            lambda m: f"{conv(m)}.pointwise",
            lambda x: x[:, :, 0, 0].T,
        ),
        Rule(
            rf"{layer}\.conv\.weight_dw",
            lambda m: f"{conv(m)}.depthwise",
            lambda x: x[:, 0, 0].transpose(1, 2, 0),
        ),
    ]
    return rules


MOBILESTYLEGAN = Family(
    kind="mobilestylegan",
    title="MobileStyleGAN (random_face)",
    recognises=lambda state: "synthesis.m.layers.0.up.modulation.weight" in state,
    config=_config,
    rules=(
        Rule(r"mapping\.w_avg", "mapping.w_avg"),
        Rule(r"mapping\.(\d+)\.weight", r"mapping.fc\1.weight", _raw_weight),
        Rule(r"mapping\.(\d+)\.bias", r"mapping.fc\1.bias", lambda x: x / 0.01),
        Rule(r"synthesis\.m\.input\.input", "synthesis.b4.const", "image"),
        *_convs(),
        Rule(
            r"synthesis\.m\.layers\.(\d+)\.up\.modulation\.weight",
            lambda m: f"{_level(m[1])}.up.weight",
            "linear",
        ),
        Rule(
            r"synthesis\.m\.layers\.(\d+)\.up\.modulation\.bias",
            lambda m: f"{_level(m[1])}.up.bias",
            "flat",
        ),
        Rule(
            r"synthesis\.m\.layers\.\d+\.to_img\.conv\.modulation\.weight",
            "synthesis.head.affine.weight",
            "linear",
        ),
        Rule(
            r"synthesis\.m\.layers\.\d+\.to_img\.conv\.modulation\.bias",
            "synthesis.head.affine.bias",
            "flat",
        ),
        Rule(
            r"synthesis\.m\.layers\.\d+\.to_img\.conv\.weight",
            "synthesis.head.weight",
            lambda x: x[:, :, 0, 0].T,
        ),
        Rule(r"synthesis\.m\.layers\.\d+\.to_img\.bias", "synthesis.head.bias", "flat"),
    ),
)
