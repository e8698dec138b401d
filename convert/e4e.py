"""`e4e_ffhq_encode.pt`: an inversion encoder and the generator it was trained with."""

from collections.abc import Mapping

import numpy as np

from convert.arcface import TRUNK_RULES, stages
from convert.rules import (
    Bundle,
    ConversionError,
    Family,
    Note,
    Rule,
    StateDict,
    listed,
    size,
)
from convert.stylegan2 import ROSINALITY

ENCODER_TYPE = "Encoder4Editing"
OPTS = "opts"  # the training options, stored next to the encoder's tensors


def prepare(state: StateDict, note: Note) -> StateDict:
    """Checks in `opts` that this is e4e's encoder, and gives `latent_avg` [L, D].

    pSp's encoder has the same tensor names and shapes but combines its outputs
    differently. Only `opts` tells the two apart. The published code adds `latent_avg`
    [L, D], or [D] and [1, D] to all layers, unless `opts` turns `start_from_latent_avg`
    off; then `latent_avg` becomes zero.

    Raises:
        ConversionError: this is another encoder, `opts` doesn't say which, or
            `latent_avg` is missing.
    """
    state = dict(state)
    opts = state.pop(OPTS, None)
    found = opts.get("encoder_type") if isinstance(opts, Mapping) else None
    if found != ENCODER_TYPE:
        raise ConversionError(
            f"unsupported encoder {found!r}; only {ENCODER_TYPE!r} can be converted"
            if found
            else "'opts' has no 'encoder_type', which is needed to tell"
            f" {ENCODER_TYPE!r} from other encoders with the same tensors"
        )
    mean = state.get("latent_avg")
    if not opts.get("start_from_latent_avg", True):
        mean = 0.0
        note("'opts' turns start_from_latent_avg off, so codes are relative to zero")
    elif mean is None:
        raise ConversionError(
            "'latent_avg' is missing, but 'opts' does not turn start_from_latent_avg"
            " off; use the file that training saved"
        )
    if np.ndim(mean) < 2 or len(mean) == 1:
        shape = _num_ws(state), size(state, "styles.0.linear.weight", 0)
        if np.ndim(mean) == 0 or np.shape(mean)[-1] == shape[1]:
            mean = np.broadcast_to(mean, shape)
    return state | {"latent_avg": mean}


def _num_ws(state: StateDict) -> int:
    count = 1
    while f"styles.{count}.linear.weight" in state:
        count += 1
    return count


def config(state: StateDict) -> dict:
    """Reads `E4E`'s arguments from the shapes.

    Raises:
        KeyError: a required tensor is missing.
        ConversionError: a required tensor has too few axes, or the trunk has too few
            stages.
    """
    units, widths = stages(state)
    if len(units) < 3:
        raise ConversionError(
            f"the encoder's trunk has {len(units)} stages; at least 3 are needed"
        )
    size(state, "styles.0.convs.0.weight", 0)  # raises KeyError if missing
    w_dim, halvings = size(state, "styles.0.linear.weight", 0), 1
    while f"styles.0.convs.{2 * halvings}.weight" in state:
        halvings += 1
    return {
        "num_ws": _num_ws(state),
        "w_dim": w_dim,
        "input_size": 2 ** (len(units) + halvings),
        "units": units,
        "widths": widths,
    }


ENCODER = Family(
    kind="e4e",
    title="e4e inversion encoder (e4e_ffhq_encode.pt)",
    recognises=lambda state: "styles.0.linear.weight" in state,
    config=config,
    rules=(
        *TRUNK_RULES,
        *(
            rule
            for i in (0, 1)
            for rule in (
                Rule(rf"latlayer{i + 1}\.weight", f"laterals.{i}.kernel", "conv"),
                Rule(rf"latlayer{i + 1}\.bias", f"laterals.{i}.bias"),
            )
        ),
        # Odd indices are activations, which have no tensors.
        Rule(
            r"styles\.(\d+)\.convs\.(\d*[02468])\.weight",
            lambda match: f"styles.{match[1]}.convs.{int(match[2]) // 2}.kernel",
            "conv",
        ),
        Rule(
            r"styles\.(\d+)\.convs\.(\d*[02468])\.bias",
            lambda match: f"styles.{match[1]}.convs.{int(match[2]) // 2}.bias",
        ),
        Rule(r"(styles\.\d+\.linear\.weight)", r"\1", "linear"),
        Rule(r"(styles\.\d+\.linear\.bias)", r"\1"),
        Rule(r"latent_avg", "w_avg"),
    ),
    prepare=prepare,
    beside=["latent_avg", OPTS],
)


def split(state: StateDict, note: Note) -> dict[str, tuple[Family, StateDict]]:
    """Splits a file's state dict into the encoder and the generator.

    Both get the mean latent code, because the encoder's output is relative to it.
    """
    parts = {"encoder": {}, "decoder": {}}
    beside = {key: state[key] for key in ("latent_avg", OPTS) if key in state}
    strays = []
    for key, array in state.items():
        part, dot, name = key.partition(".")
        if part in parts and dot:
            parts[part][name] = array
        elif key not in beside:
            strays.append(repr(key))
    if strays:
        note(f"left out: {listed(strays, ', ')}")
    mean = {key: beside[key] for key in beside if key != OPTS}
    return {
        "encoder": (ENCODER, parts["encoder"] | beside),
        "generator": (ROSINALITY, parts["decoder"] | mean),
    }


BUNDLE = Bundle(
    recognises=lambda state: all(
        any(key.startswith(part) for key in state) for part in ("encoder.", "decoder.")
    ),
    split=split,
    beside=["latent_avg", OPTS],
)
