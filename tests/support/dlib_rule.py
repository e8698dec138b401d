"""Writes dlib's face recognition network as a `.dat` file, with generated weights.

The file is as dlib writes it, except for its smaller layers, and dlib reads it:
`tests/data/record_dlib.py` has dlib compute the embeddings that the tests compare with.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

UNITS = (3, 4, 3, 3, 1)  # residual units per stage
# Each stage's channels. The last is narrower than the one before, so that one residual
# sum pads the convolutions' channels rather than the shortcut's.
WIDTHS, EMBEDDING = (4, 6, 8, 12, 10), 5
MEAN = (122.782, 117.001, 104.298)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns generated tensors, in dlib's layouts, in the file's order."""
    rng = np.random.default_rng(seed)
    state = {}

    def draw(*shape: int, mean: float = 0.0, std: float = 0.1) -> np.ndarray:
        return (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def layer(conv: str, affine: str, inputs: int, outputs: int, side: int) -> None:
        std = math.sqrt(2 / (inputs * side * side))
        state[f"{conv}.filters"] = draw(outputs, inputs, side, side, std=std)
        state[f"{conv}.biases"] = draw(outputs)
        state[f"{affine}.gamma"] = draw(outputs, mean=0.7)
        state[f"{affine}.beta"] = draw(outputs)

    layer("stem.conv", "stem.affine", 3, WIDTHS[0], 7)
    channels = WIDTHS[0]
    outputs = [width for width, n in zip(WIDTHS, UNITS, strict=True) for _ in range(n)]
    for i, width in enumerate(outputs):
        path = f"blocks.{i}"
        layer(f"{path}.conv1", f"{path}.affine1", channels, width, 3)
        layer(f"{path}.conv2", f"{path}.affine2", width, width, 3)
        channels = max(channels, width)
    state["linear.weights"] = draw(channels, EMBEDDING, std=1.0)
    return state


def write(
    path: Path,
    state: Mapping[str, np.ndarray],
    edits: Mapping[str, bytes | Callable[[bytes], bytes]] | None = None,
) -> list[str]:
    """Writes the tensors as dlib does.

    Args:
        path: the file to write.
        state: tensors as `weights` returns them.
        edits: name of a part of the file -> what to write instead.

    Returns:
        The names of the parts, in order.
    """
    edits, names, data = dict(edits or {}), [], []
    for name, part in _parts(state):
        if edit := edits.pop(name, None):
            part = edit(part) if callable(edit) else edit
        names.append(name)
        data.append(part)
    assert not edits, f"no such parts: {list(edits)}"
    path.write_bytes(b"".join(data))
    return names


def integer(value: int) -> bytes:
    """Writes an integer: its length and sign, then its bytes."""
    length = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([length | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(
        length, "little"
    )


def integers(*values: int) -> bytes:
    return b"".join(map(integer, values))


def name(text: str) -> bytes:
    return integer(len(text)) + text.encode()


def number(value: float) -> bytes:
    """Writes a float32 as a mantissa and an exponent."""
    fraction, exponent = math.frexp(float(np.float32(value)))
    mantissa, exponent = int(fraction * 2**24), exponent - 24
    while mantissa and mantissa % 256 == 0:
        mantissa, exponent = mantissa >> 8, exponent + 8
    return integers(mantissa, exponent)


def tensor(*arrays: np.ndarray, shape: tuple[int, ...] = ()) -> bytes:
    """Writes arrays as one tensor, by default of a value per sample."""
    values = [np.ravel(x).astype("<f4") for x in arrays]
    shape = shape or (sum(map(len, values)), 1, 1, 1)
    return integers(2, *shape) + b"".join(x.tobytes() for x in values)


def alias(*shape: int) -> bytes:
    """Writes the shape of a part of a tensor."""
    return integers(1, *shape)


EMPTY = integers(2, 0, 0, 0, 0)
FACTORS = b"".join(map(number, (1, 1, 1, 0)))  # of the learning rate, the weight decay


def _parts(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    layers = list(_layers(state))
    yield "loss version", integer(1)
    yield "loss", name("loss_metric_2")
    yield "loss settings", number(0.04) + number(0.6)
    for i, (path, contents) in reversed(list(enumerate(layers))):
        yield f"version {path}", integer(3 if i == 0 else 2 if contents else 1)
    yield "input", name("input_rgb_image_sized")
    yield "mean", b"".join(map(number, MEAN))
    yield "size", integers(150, 150)
    for i, (path, contents) in enumerate(layers):
        if contents:
            for part, data in contents.items():
                yield f"{path} {part}", data
            # An output that the next layer overwrites is switched off.
            yield f"{path} flags", b"111" if path.endswith("affine1") else b"110"
            yield f"{path} training", EMPTY * 3
        if i == 0:
            yield "samples", integer(1)


def _layers(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields name and contents of each layer, in the order of computation."""

    def conv(path: str, stride: int, padding: int) -> tuple[str, dict[str, bytes]]:
        filters, biases = state[f"{path}.filters"], state[f"{path}.biases"]
        side = filters.shape[-1]
        return path, {
            "kind": name("con_4"),
            "values": tensor(filters, biases),
            "count": integer(len(filters)),
            "window": integers(side, side, stride, stride, padding, padding),
            "filters": alias(*filters.shape),
            "biases": alias(1, len(biases), 1, 1),
            "factors": FACTORS,
        }

    def affine(path: str) -> tuple[str, dict[str, bytes]]:
        gamma, beta = state[f"{path}.gamma"], state[f"{path}.beta"]
        return path, {
            "kind": name("affine_"),
            "values": tensor(gamma, beta),
            "gamma": alias(1, len(gamma), 1, 1),
            "beta": alias(1, len(beta), 1, 1),
            "mode": integer(0),
        }

    yield conv("stem.conv", 2, 0)
    yield affine("stem.affine")
    yield "stem.relu", {"kind": name("relu_")}
    window = integers(3, 3, 2, 2, 0, 0)
    yield "stem.pool", {"kind": name("max_pool_2"), "window": window}
    firsts = np.cumsum(UNITS)[:-1]  # the units with stride 2
    for i in range(sum(UNITS)):
        path, down = f"blocks.{i}", i in firsts
        yield f"{path}.tag", {}
        yield conv(f"{path}.conv1", 2, 0) if down else conv(f"{path}.conv1", 1, 1)
        yield affine(f"{path}.affine1")
        yield f"{path}.relu1", {"kind": name("relu_")}
        yield conv(f"{path}.conv2", 1, 1)
        yield affine(f"{path}.affine2")
        if down:
            yield f"{path}.tag2", {}
            yield f"{path}.skip", {}
            window = integers(2, 2, 2, 2, 0, 0)
            yield f"{path}.pool", {"kind": name("avg_pool_2"), "window": window}
        yield f"{path}.sum", {"kind": name("add_prev_")}
        yield f"{path}.relu2", {"kind": name("relu_")}
    window = integers(0, 0, 1, 1, 0, 0)
    yield "pool", {"kind": name("avg_pool_2"), "window": window}
    inputs, outputs = state["linear.weights"].shape
    yield (
        "linear",
        {
            "kind": name("fc_2"),
            "sizes": integers(outputs, inputs),
            "values": tensor(state["linear.weights"], shape=(inputs, outputs, 1, 1)),
            "weights": alias(inputs, outputs, 1, 1),
            "biases": alias(0, 0, 0, 0),
            "mode": integer(1),
            "factors": FACTORS,
        },
    )
