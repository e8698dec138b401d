"""The strict rule engine: every source key is used and every target leaf is filled.

A `Family` defines how one kind of file is recognised, which constructor arguments its
tensor shapes imply, and which `Rule` maps each tensor to a leaf of our network.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_dtypes import bfloat16

from guide_jax import models
from guide_jax.models import ops
from guide_jax.models.network import NAMED, fill, leaf_shapes

StateDict = Mapping[str, np.ndarray]
Note = Callable[[str], None]
MEAN_SAMPLES = 4096  # number of mapped z averaged to w_avg if a file has none

# No published network has so many; each takes kilobytes, even if it is empty.
MOST_TENSORS = 20_000

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # OIHW -> HWIO
    "linear": lambda x: x.T,  # [out, in] -> [in, out]
    "flat": lambda x: x.reshape(-1),
    "scalar": lambda x: x.reshape(()),
    "plane": lambda x: x.reshape(x.shape[-2:]),  # [1, 1, H, W] -> [H, W]
    "image": lambda x: x.reshape(x.shape[-3:]).transpose(1, 2, 0),  # [1, C, H, W]
}


class ConversionError(ValueError):
    """A checkpoint does not fit its family; the message names every bad tensor."""


@dataclass(frozen=True)
class Rule:
    """Maps source keys that fully match `pattern` to one leaf of the network.

    Attributes:
        pattern: regular expression for the whole source key.
        path: dotted path of the leaf, with `\\1` for groups, or a function of the
            match; None for keys that are known but not needed.
        layout: a name in `LAYOUTS`, or a function of the array.
    """

    pattern: str
    path: str | Callable[[re.Match], str] | None
    layout: str | Callable[[np.ndarray], np.ndarray] = "same"

    def target(self, match: re.Match) -> str | None:
        """Returns the dotted path for a match, or None for an ignored key."""
        return (
            match.expand(self.path)
            if isinstance(self.path, str)
            else (self.path and self.path(match))
        )

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """Returns the array in our axis order."""
        layout = LAYOUTS[self.layout] if isinstance(self.layout, str) else self.layout
        return layout(array)


@dataclass(frozen=True)
class Family:
    """One kind of published checkpoint.

    Attributes:
        kind: the network's name in `guide_jax.models.NETWORKS`.
        title: human-readable name, for tables and messages.
        recognises: tells from the keys alone whether a state dict is of this family.
        config: reads the network's constructor arguments from the shapes.
        rules: tried in order; the first that matches a key is used.
        prepare: brings a state dict into the form that the rules expect. It may call
            its second argument with a line for the user.
        beside: entries outside of the state dict that belong to the network.
        causes: return why a state dict of this kind cannot be converted, if they know.
        drawn: pattern of leaves that are drawn from a fixed seed if the file has none.
    """

    kind: str
    title: str
    recognises: Callable[[StateDict], bool]
    config: Callable[[StateDict], dict]
    rules: Sequence[Rule]
    prepare: Callable[[StateDict, Note], StateDict] = lambda state, note: state
    beside: Sequence[str] = ()
    causes: Sequence[Callable[[StateDict], str | None]] = ()
    drawn: str | None = None

    def rule_of(self, key: str) -> tuple[Rule, re.Match] | tuple[None, None]:
        """Returns the first rule that matches a key, and the match; else None, None."""
        hits = ((rule, re.fullmatch(rule.pattern, key)) for rule in self.rules)
        return next((hit for hit in hits if hit[1]), (None, None))


@dataclass(frozen=True)
class Bundle:
    """One kind of file that holds several networks.

    Attributes:
        recognises: tells from the keys whether a state dict is of this kind.
        split: splits a state dict into networks: name suffix -> (family, state dict),
            where the suffix is appended to the file's name.
        beside: as for `Family`.
    """

    recognises: Callable[[StateDict], bool]
    split: Callable[[StateDict, Note], dict[str, tuple[Family, StateDict]]]
    beside: Sequence[str] = ()


def size(state: StateDict, key: str, axis: int) -> int:
    """Returns the length of one axis of a tensor, for reading a configuration.

    Raises:
        KeyError: the tensor is missing.
        ConversionError: the tensor has no such axis, or the axis is empty.
    """
    shape = np.shape(state[key])
    if len(shape) <= axis:
        raise ConversionError(f"{key!r} has shape {list(shape)}, with too few axes")
    if not shape[axis]:
        raise ConversionError(f"{key!r} has shape {list(shape)}, with an empty axis")
    return shape[axis]


def mean_w(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns the mean w `[D]` of a mapping network over fixed random z.

    Args:
        layers: effective weight `[out, in]` and bias `[out]` of each layer, with any
            learning-rate gain already applied.
    """
    z = np.random.default_rng(0).standard_normal((MEAN_SAMPLES, layers[0][0].shape[1]))
    x = z.astype(np.float32)
    x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + ops.EPSILON)
    for weight, bias in layers:
        x = x @ weight.T + bias
        x = np.where(x < 0, ops.LEAKY_SLOPE * x, x) * np.float32(math.sqrt(2))
    return x.mean(axis=0)


def listed(names: Iterable[str], separator: str = "; ") -> str:
    """Joins the first ten names, shortened, and says how many there are beyond."""
    names = list(names)
    first = [x if len(x) <= 200 else f"{x[:200]}..." for x in names[:NAMED]]
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return separator.join(first + more)


def convert(
    state: StateDict,
    family: Family,
    note: Note = lambda line: None,
    most_bytes: float = math.inf,
    made: Callable[[np.ndarray], Any] = jnp.array,
) -> nnx.Module:
    """Builds the network that a state dict describes, and fills it.

    Args:
        state: source key -> array, as read from the file.
        family: the kind of checkpoint, which supplies the rules.
        note: called with each line that the user should read.
        most_bytes: size of the largest network that such a file can hold; views can
            claim any size.
        made: makes each leaf from a float32 array, which may be a view of the file.

    Returns:
        The network, with float32 leaves.

    Raises:
        ConversionError: tensors are missing, unknown, or of the wrong shape or type, or
            the network is known not to be supported.
    """
    if len(state) > MOST_TENSORS:
        raise ConversionError(f"holds {len(state):,} tensors, too many for a network")
    try:
        if cause := next(filter(None, (cause(state) for cause in family.causes)), None):
            raise ConversionError(cause)
        state = family.prepare(state, note)
        config = family.config(state)
    except KeyError as e:
        raise ConversionError(
            f"{family.title}: tensor {e.args[0]!r} is missing"
        ) from None
    network_class = models.NETWORKS[family.kind]
    network = nnx.eval_shape(lambda: network_class(**config, rngs=nnx.Rngs(0)))
    shapes = leaf_shapes(network)
    claimed = sum(4 * math.prod(shape) for shape in shapes.values())
    if claimed > most_bytes:
        raise ConversionError(
            f"{family.title}: claims to be a network of {claimed:,} bytes, more than"
            " such a file can hold"
        )
    return fill(network, apply_rules(state, family, shapes, note), made)


def apply_rules(
    state: StateDict,
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    note: Note = lambda line: None,
) -> dict[str, np.ndarray]:
    """Returns an array for every path in `shapes`; raises one error with all faults.

    The arrays are views of those in `state` where the layout allows it.
    """
    leaves: dict[str, np.ndarray] = {}
    taken_from: dict[str, str] = {}
    faults = []
    for key, array in state.items():
        rule, match = family.rule_of(key)
        if rule is None:
            faults.append(f"unknown tensor {key!r} {list(np.shape(array))}")
            continue
        path = rule.target(match)
        if path is None:
            continue
        if path in taken_from:
            faults.append(f"{key!r} and {taken_from[path]!r} both map to {path}")
            continue
        if path not in shapes:
            faults.append(f"{key!r} maps to {path}, which this network lacks")
            continue
        taken_from[path] = key
        try:
            leaf = rule.arrange(np.asarray(array))
        except (ValueError, IndexError):
            leaf = None
        if leaf is None or leaf.shape != shapes[path]:
            faults.append(
                f"{key!r} has shape {list(np.shape(array))},"
                f" {path} needs {list(shapes[path])}"
            )
            continue  # not copied, because a file can claim any size
        if leaf.dtype.kind not in "biuf" and leaf.dtype != bfloat16:
            faults.append(f"{key!r} has dtype {leaf.dtype.name}, not real numbers")
            continue
        leaves[path] = leaf
    missing = [path for path in shapes if path not in taken_from]
    drawn = [
        path for path in shapes if family.drawn and re.fullmatch(family.drawn, path)
    ]
    if drawn and set(drawn) <= set(missing):  # some missing ones are damage
        rng = np.random.default_rng(0)
        leaves |= {
            path: rng.standard_normal(shapes[path], np.float32) for path in drawn
        }
        missing = [path for path in missing if path not in leaves]
        note(f"the file has no noise images; {len(drawn)} were drawn from a fixed seed")
    faults += [f"no tensor for {path}" for path in missing]
    if faults:
        raise ConversionError(f"{family.title}: {listed(faults)}")
    return leaves
