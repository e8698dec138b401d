"""`e4e_ffhq_encode.pt`: an inversion encoder and the generator it was trained for."""

from collections.abc import Mapping

import numpy as np

from convert.arcface import TRUNK_RULES, stages
from convert.rules import (
    BESIDE,
    Bundle,
    ConversionError,
    Family,
    Rule,
    StateDict,
    check_beside,
    size,
)
from convert.stylegan2 import ROSINALITY

ENCODER_TYPE = "Encoder4Editing"
OPTS = "opts"  # among the encoder's tensors: how it was trained


def prepare(state: StateDict) -> StateDict:
    """Checks in `opts` that this is e4e's encoder, and takes them out.

    pSp's encoder has tensors of the same names and shapes, but puts its outputs
    together in another way. Only `opts` tells the two apart.

    Raises:
        ConversionError: it is another encoder, or nothing says which.
    """
    state = dict(state)
    opts = state.pop(OPTS, None)
    found = opts.get("encoder_type") if isinstance(opts, Mapping) else None
    if found != ENCODER_TYPE:
        raise ConversionError(
            f"its encoder is a {found!r}, not {ENCODER_TYPE!r}"
            if found
            else f"its 'opts' don't say what the encoder is ({ENCODER_TYPE!r}, or"
            " another of the same tensors)"
        )
    if "latent_avg" in state and not opts.get("start_from_latent_avg", True):
        state["latent_avg"] = np.broadcast_to(0.0, np.shape(state["latent_avg"]))
    return state


def config(state: StateDict) -> dict:
    """Reads `E4E`'s arguments from the shapes.

    Raises:
        KeyError: a tensor that they are read from is missing.
        ConversionError: one of them has too few axes, or the trunk too few stages.
    """
    units, widths = stages(state)
    if len(units) < 3:
        raise ConversionError(
            f"the encoder's trunk has {len(units)} stages, less than 3"
        )
    size(state, "styles.0.convs.0.weight", 0)  # or it is missing
    w_dim, num_ws, halvings = size(state, "styles.0.linear.weight", 0), 1, 1
    while f"styles.{num_ws}.linear.weight" in state:
        num_ws += 1
    while f"styles.0.convs.{2 * halvings}.weight" in state:
        halvings += 1
    return {
        "num_ws": num_ws,
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
        # Between the convolutions stand activations, which hold nothing.
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
)


def split(data: Mapping) -> dict[str, tuple[Family, StateDict]]:
    """Takes a file's contents apart into the encoder and the generator.

    Either gets the mean code: what the encoder says is relative to it.

    Raises:
        ConversionError: it holds something that belongs to neither.
    """
    check_beside(data, "state_dict", BESIDE | {"latent_avg"})
    parts = {"encoder": {}, "decoder": {}}
    strays = []
    for key, array in data["state_dict"].items():
        part, dot, name = str(key).partition(".")
        if part in parts and dot:
            parts[part][name] = array
        else:
            strays.append(repr(key))
    if strays:
        raise ConversionError(f"unknown tensor {', '.join(sorted(strays))}")
    apart = {key: data[key] for key in ("latent_avg",) if key in data}
    opts = {key: data[key] for key in (OPTS,) if key in data}
    return {
        "encoder": (ENCODER, parts["encoder"] | apart | opts),
        "generator": (ROSINALITY, parts["decoder"] | apart),
    }


def _recognises(data: Mapping) -> bool:
    state = data.get("state_dict")
    keys = [str(key) for key in state] if isinstance(state, Mapping) else []
    return all(
        any(key.startswith(part) for key in keys) for part in ("encoder.", "decoder.")
    )


BUNDLE = Bundle(
    recognises=_recognises,
    split=split,
)
