"""Identity encoders: `model_ir_se50.pth` and `CurricularFace_Backbone.pth`."""

import math

import numpy as np

from convert.causes import tface
from convert.rules import ConversionError, Family, Note, Rule, StateDict, size

BATCH_NORM = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}


def config(state: StateDict) -> dict:
    """Reads `IRNet`'s arguments from the shapes.

    Because each stage rounds, the shapes do not fix the input size; it is assumed to be
    a multiple of 2 ** stages, as in all published files (112).

    Raises:
        KeyError: a required tensor is missing.
        ConversionError: a required tensor has too few axes, or the head doesn't fit a
            square feature map.
    """
    units, widths = stages(state)
    dim, inputs = (size(state, "output_layer.3.weight", axis) for axis in (0, 1))
    side = math.isqrt(inputs // widths[-1])
    if side * side * widths[-1] != inputs:
        raise ConversionError(
            f"'output_layer.3.weight' has {inputs} inputs, which is not a square"
            f" feature map of {widths[-1]} channels"
        )
    return {
        "units": units,
        "widths": widths,
        "se": "body.0.res_layer.5.fc1.weight" in state,
        "embedding_dim": dim,
        "input_size": side * 2 ** len(units),
        "head_affine": "output_layer.4.weight" in state,
    }


def stages(state: StateDict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Reads the trunk's `units` and `widths` from the shapes; raises like `config`."""
    units, widths = [], [size(state, "input_layer.0.weight", 0)]
    while (key := f"body.{sum(units)}.res_layer.1.weight") in state:
        block = sum(units)
        width = size(state, key, 0)
        # A stage starts where the width changes, except that the first stage may have
        # the stem's width.
        if not units or f"body.{block}.shortcut_layer.0.weight" in state:
            units.append(0)
            widths.append(width)
        units[-1] += 1
    return tuple(units), tuple(widths)


def prepare(state: StateDict, note: Note) -> StateDict:
    """Reorders the head's inputs, which PyTorch flattens as [C, H, W], to [H, W, C]."""
    state = dict(state)
    key = "output_layer.3.weight"
    if key in state and "output_layer.0.weight" in state:
        inputs = size(state, key, 1)
        channels = size(state, "output_layer.0.weight", 0)
        side = math.isqrt(inputs // channels)
        # A head of another shape is reported by `config` and the rules.
        if np.ndim(state[key]) == 2 and side * side * channels == inputs:
            weight = np.reshape(state[key], (-1, channels, side, side))
            state[key] = weight.transpose(0, 2, 3, 1).reshape(-1, inputs)
    return state


def _norm(source: str, path: str) -> list[Rule]:
    rules = [
        Rule(rf"{source}\.{theirs}", f"{path}.{ours}")
        for theirs, ours in BATCH_NORM.items()
    ]
    return [*rules, Rule(rf"{source}\.num_batches_tracked", None)]


def _linear_1x1(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[:2]).T  # [out, in, 1, 1] -> [in, out]


BODY = r"body\.(\d+)\.res_layer"
SHORTCUT = r"body\.(\d+)\.shortcut_layer"

TRUNK_RULES = [
    Rule(r"input_layer\.0\.weight", "stem.conv.kernel", "conv"),
    *_norm(r"input_layer\.1", "stem.norm"),
    Rule(r"input_layer\.2\.weight", "stem.act.slope"),
    *_norm(rf"{BODY}\.0", r"blocks.\1.norm1"),
    Rule(rf"{BODY}\.1\.weight", r"blocks.\1.conv1.kernel", "conv"),
    Rule(rf"{BODY}\.2\.weight", r"blocks.\1.act.slope"),
    Rule(rf"{BODY}\.3\.weight", r"blocks.\1.conv2.kernel", "conv"),
    *_norm(rf"{BODY}\.4", r"blocks.\1.norm2"),
    Rule(rf"{BODY}\.5\.fc1\.weight", r"blocks.\1.se.squeeze.kernel", _linear_1x1),
    Rule(rf"{BODY}\.5\.fc2\.weight", r"blocks.\1.se.excite.kernel", _linear_1x1),
    Rule(rf"{SHORTCUT}\.0\.weight", r"blocks.\1.shortcut_conv.kernel", "conv"),
    *_norm(rf"{SHORTCUT}\.1", r"blocks.\1.shortcut_norm"),
]

RULES = [
    *TRUNK_RULES,
    *_norm(r"output_layer\.0", "head.norm1"),
    Rule(r"output_layer\.3\.weight", "head.linear.kernel", "linear"),
    Rule(r"output_layer\.3\.bias", "head.linear.bias"),
    *_norm(r"output_layer\.4", "head.norm2"),
]


def _is_ir(state: StateDict) -> bool:
    return "body.0.res_layer.1.weight" in state and "output_layer.3.weight" in state


IR_SE = Family(
    kind="ir",
    title="ArcFace IR-SE identity encoder (model_ir_se50.pth)",
    recognises=lambda state: _is_ir(state) and "body.0.res_layer.5.fc1.weight" in state,
    config=config,
    rules=RULES,
    prepare=prepare,
    causes=[tface],
)

IR = Family(
    kind="ir",
    title="IR identity encoder (CurricularFace_Backbone.pth)",
    recognises=lambda state: (
        _is_ir(state) and "body.0.res_layer.5.fc1.weight" not in state
    ),
    config=config,
    rules=RULES,
    prepare=prepare,
    causes=[tface],
)
