"""dlib's face recognition network, read from its `.dat` file without dlib.

The file is C++ template layers that dlib serialised from the outside in. First come the
versions of all layers, the loss first; then the input layer; then each layer's contents
and state, the first convolution first. There are no names, so the layers' order
identifies them. Everything is read and checked, but the settings of training.

- An integer is a byte with its length (and its sign in the top bit), then that many
  bytes, least significant first.
- A float is two integers, mantissa and exponent: mantissa * 2 ** exponent.
- A string is its length and its bytes; a flag is "0" or "1".
- A tensor is a version, four sizes (samples, channels, rows, columns) and raw
  little-endian float32.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.rules import Family, Rule, StateDict, size
from guide_jax.errors import InputError
from guide_jax.models.dlib_resnet import MEAN_RGB, SIZE, UNITS, strides

LOSS = b"loss_metric_2"
START = b"\1\1\1" + bytes([len(LOSS)]) + LOSS  # version 1 and the loss's name
WHOLE = 0  # a pooling window's side in the file, if it is the whole image
CONV_MODE, NO_BIAS = 0, 1  # of an affine layer; of a dense layer


class Layer(NamedTuple):
    """A layer of the file.

    Attributes:
        kind: the name that the file gives it; `tag` and `skip` have none.
        path: prefix of its tensors' names, if it has any.
        side: side of a convolution's kernel, or of a pooling window.
        stride: stride of a convolution or of pooling.
        padding: zeros on each side.
    """

    kind: str
    path: str = ""
    side: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def named(self) -> bool:
        """Whether the file has contents for this layer, after the versions."""
        return self.kind not in ("tag", "skip")


def _unit(path: str, stride: int) -> list[Layer]:
    """Returns the layers of one residual unit, in the order of computation."""
    down = [Layer("tag"), Layer("skip"), Layer("avg_pool_2", "", 2, 2)]
    return [
        Layer("tag"),
        Layer("con_4", f"{path}.conv1", 3, stride, 0 if stride == 2 else 1),
        Layer("affine_", f"{path}.affine1"),
        Layer("relu_"),
        Layer("con_4", f"{path}.conv2", 3, 1, 1),
        Layer("affine_", f"{path}.affine2"),
        *(down if stride == 2 else []),
        Layer("add_prev_"),
        Layer("relu_"),
    ]


LAYERS = (
    Layer("con_4", "stem.conv", 7, 2),
    Layer("affine_", "stem.affine"),
    Layer("relu_"),
    Layer("max_pool_2", "", 3, 2),
    *(x for i, stride in enumerate(strides()) for x in _unit(f"blocks.{i}", stride)),
    Layer("avg_pool_2", "", WHOLE),
    Layer("fc_2", "linear"),
)


def holds_network(path: Path) -> bool:
    """Returns whether a file starts as a network of dlib's metric loss does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(START)) == START


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads `dlib_face_recognition_resnet_model_v1.dat`, or a file of the same layers.

    Returns:
        Flat state dict, float32: of every convolution "filters" [O, I, k, k] and
        "biases" [O], of every affine layer "gamma" and "beta" [O], and
        "linear.weights" [I, E], each after the layer's path, as in "stem.conv.filters".

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is truncated, or is not such a network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        stream = _Stream(path.read_bytes())
        return _network(stream)
    except _UnexpectedError as error:
        raise InputError(
            f"{path}: not dlib's face recognition network, or damaged ({error}); use"
            " dlib_face_recognition_resnet_model_v1.dat"
        ) from None


class _UnexpectedError(Exception):
    """The file's contents differ from what is expected."""


class _Stream:
    """The bytes of a file, read in order. Every method raises `_UnexpectedError`."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        """Returns the next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise _UnexpectedError(
                f"{count} bytes are needed at byte {self.position}, but the file ends"
                f" at byte {len(self.data)}"
            )
        data, self.position = self.data[self.position : end], end
        return data

    def integer(self) -> int:
        """Reads an integer of up to 8 bytes."""
        start = self.position
        head = self.take(1)[0]
        length = head & 0x7F
        if not 1 <= length <= 8:
            raise _UnexpectedError(f"byte {start} does not start an integer")
        value = int.from_bytes(self.take(length), "little")
        return -value if head & 0x80 else value

    def numbers(self, count: int) -> list[np.float32]:
        """Reads `count` floats. Infinities have exponents from 32000 on."""
        found = []
        for _ in range(count):
            start = self.position
            mantissa, exponent = self.integer(), self.integer()
            if not (abs(mantissa) < 2**53 and -200 < exponent < 50):
                raise _UnexpectedError(f"the float at byte {start} is out of range")
            found.append(np.float32(math.ldexp(mantissa, exponent)))
        return found

    def string(self, what: str) -> str:
        """Reads a short name."""
        start, length = self.position, self.integer()
        if not 0 <= length <= 100:
            raise _UnexpectedError(f"byte {start} does not start the name of {what}")
        return self.take(length).decode("ascii", "backslashreplace")

    def tensor(self, what: str) -> np.ndarray:
        """Reads a tensor of four axes."""
        self.expect(2, f"the tensor version of {what}")
        shape = self.shape(what)
        data = self.take(4 * math.prod(shape))
        return np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)

    def alias(self, what: str) -> tuple[int, ...]:
        """Reads the shape of a part of a tensor that is stored elsewhere."""
        self.expect(1, f"the shape version of {what}")
        return self.shape(what)

    def shape(self, what: str) -> tuple[int, ...]:
        """Reads the four sizes of a tensor."""
        shape = tuple(self.integer() for _ in range(4))
        if min(shape) < 0 or max(shape) >= 2**31:
            raise _UnexpectedError(f"{what} has shape {list(shape)}")
        return shape

    def expect(self, wanted: int, what: str) -> None:
        """Reads an integer that must be `wanted`."""
        if (found := self.integer()) != wanted:
            raise _UnexpectedError(f"{what} is {found}, not {wanted}")

    def expect_name(self, wanted: str, what: str) -> None:
        """Reads a string that must be `wanted`."""
        if (found := self.string(what)) != wanted:
            raise _UnexpectedError(f"{what} is {found!r}, not {wanted!r}")


def _network(stream: _Stream) -> dict[str, np.ndarray]:
    stream.expect(1, "the loss layer's version")
    stream.expect_name(LOSS.decode(), "the loss")
    stream.numbers(2)  # the loss's margin and distance
    for i, layer in reversed(list(enumerate(LAYERS))):
        # The layer that reads the input has a version of its own.
        version = 3 if i == 0 else 2 if layer.named else 1
        stream.expect(version, f"the version of {_title(i)}")
    stream.expect_name("input_rgb_image_sized", "the input layer")
    mean = stream.numbers(len(MEAN_RGB))
    if mean != [np.float32(x) for x in MEAN_RGB]:
        raise _UnexpectedError(f"the input's mean is {[float(x) for x in mean]}")
    stream.expect(SIZE, "the input's height")
    stream.expect(SIZE, "the input's width")
    state = {}
    for i, layer in enumerate(LAYERS):
        if not layer.named:
            continue
        title = _title(i)
        stream.expect_name(layer.kind, title)
        tensors = CONTENTS[layer.kind](stream, layer, title)
        state |= {f"{layer.path}.{name}": x for name, x in tensors.items()}
        _training_state(stream, title)
        if i == 0:
            stream.expect(1, "the number of samples per image")
    if rest := len(stream.data) - stream.position:
        raise _UnexpectedError(f"{rest} bytes are left after the last layer")
    return state


def _training_state(stream: _Stream, title: str) -> None:
    """Reads what every layer ends with: three flags and three empty tensors."""
    flags = stream.take(3)
    if flags[:1] != b"1" or not set(flags) <= set(b"01"):
        raise _UnexpectedError(f"the flags of {title} are {flags!r}")
    for what in ("gradient", "output", "parameters' gradient"):
        if (found := stream.tensor(f"the {what} of {title}")).size:
            shape = list(found.shape)
            raise _UnexpectedError(
                f"the {what} of {title} has shape {shape}, not empty"
            )


def _title(i: int) -> str:
    """Names a layer for messages."""
    layer = LAYERS[i]
    name = layer.path or layer.kind.rstrip("_")
    return f"layer {i + 1} of {len(LAYERS)} ({name})"


def _conv(stream: _Stream, layer: Layer, title: str) -> dict[str, np.ndarray]:
    values = stream.tensor(f"the values of {title}").reshape(-1)
    count = stream.integer()
    _window(stream, layer, title)
    filters = stream.alias(f"the filters of {title}")
    biases = stream.alias(f"the biases of {title}")
    stream.numbers(4)  # factors of the learning rate and the weight decay
    inputs = filters[1]
    _check_shape(filters, (count, inputs, layer.side, layer.side), "filters", title)
    _check_shape(biases, (1, count, 1, 1), "biases", title)
    return _parts(values, {"filters": filters, "biases": (count,)}, title)


def _affine(stream: _Stream, layer: Layer, title: str) -> dict[str, np.ndarray]:
    values = stream.tensor(f"the values of {title}").reshape(-1)
    gamma = stream.alias(f"the scales of {title}")
    beta = stream.alias(f"the biases of {title}")
    stream.expect(CONV_MODE, f"the mode of {title}")
    count = gamma[1]
    _check_shape(gamma, (1, count, 1, 1), "scales", title)
    _check_shape(beta, (1, count, 1, 1), "biases", title)
    return _parts(values, {"gamma": (count,), "beta": (count,)}, title)


def _pool(stream: _Stream, layer: Layer, title: str) -> dict[str, np.ndarray]:
    _window(stream, layer, title)
    return {}


def _dense(stream: _Stream, layer: Layer, title: str) -> dict[str, np.ndarray]:
    outputs, inputs = stream.integer(), stream.integer()
    values = stream.tensor(f"the values of {title}").reshape(-1)
    weights = stream.alias(f"the weights of {title}")
    biases = stream.alias(f"the biases of {title}")
    stream.expect(NO_BIAS, f"the bias mode of {title}")
    stream.numbers(4)  # as in a convolution
    _check_shape(weights, (inputs, outputs, 1, 1), "weights", title)
    _check_shape(biases, (0, 0, 0, 0), "biases", title)
    return _parts(values, {"weights": (inputs, outputs)}, title)


def _window(stream: _Stream, layer: Layer, title: str) -> None:
    """Reads the sides, strides and paddings of a convolution or of pooling."""
    for what in ("side", "stride", "padding"):
        for axis in ("vertical", "horizontal"):
            stream.expect(getattr(layer, what), f"the {axis} {what} of {title}")


def _check_shape(
    found: tuple[int, ...], wanted: tuple[int, ...], what: str, title: str
) -> None:
    if found != wanted:
        raise _UnexpectedError(
            f"the {what} of {title} have shape {list(found)}, not {list(wanted)}"
        )


def _parts(
    values: np.ndarray, shapes: Mapping[str, tuple[int, ...]], title: str
) -> dict[str, np.ndarray]:
    """Cuts a layer's values into arrays of the given shapes, in order."""
    counts = [math.prod(shape) for shape in shapes.values()]
    if sum(counts) != len(values):
        raise _UnexpectedError(f"{title} has {len(values)} values, not {sum(counts)}")
    if not np.isfinite(values).all():
        raise _UnexpectedError(f"{title} has values that are not finite")
    parts = np.split(values, np.cumsum(counts)[:-1])
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


CONTENTS: Mapping[str, Callable] = {
    "con_4": _conv,
    "affine_": _affine,
    "max_pool_2": _pool,
    "avg_pool_2": _pool,
    "fc_2": _dense,
    "relu_": lambda stream, layer, title: {},
    "add_prev_": lambda stream, layer, title: {},
}


def _config(state: StateDict) -> dict:
    firsts = np.cumsum((0, *UNITS[:-1]))  # each stage's first residual unit
    return {
        "widths": tuple(size(state, f"blocks.{i}.conv1.filters", 0) for i in firsts),
        "embedding_dim": size(state, "linear.weights", 1),
    }


FAMILY = Family(
    kind="dlib_resnet",
    title="dlib's face recognition network",
    recognises=lambda state: "stem.conv.filters" in state,
    config=_config,
    rules=[
        Rule(r"(.*conv\d?)\.filters", r"\1.kernel", "conv"),
        Rule(r"(.*conv\d?)\.biases", r"\1.bias"),
        Rule(r"(.*affine\d?)\.gamma", r"\1.scale"),
        Rule(r"(.*affine\d?)\.beta", r"\1.bias"),
        Rule(r"linear\.weights", "linear.kernel"),
    ],
)
