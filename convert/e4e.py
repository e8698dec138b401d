"""`e4e_ffhq_encode.pt`: an inversion encoder and the generator it was trained with."""

from collections.abc import Mapping

import numpy as np

from convert.arcface import TRUNK_RULES, stages
from convert.rules import (
    IGNORED_ENTRIES,
    Bundle,
    ConversionError,
    Family,
    Rule,
    StateDict,
    check_entries,
    size,
)
from convert.stylegan2 import ROSINALITY

ENCODER_TYPE = "Encoder4Editing"
OPTS = "opts"  # the training options, stored next to the encoder's tensors


def prepare(state: StateDict) -> StateDict:
    """Checks in `opts` that this is e4e's encoder, and removes `opts`.

    pSp's encoder has the same tensor names and shapes but combines its outputs
    differently. Only `opts` tells the two apart. If it turns `start_from_latent_avg`
    off, `latent_avg` becomes zero.

    Raises:
        ConversionError: this is another encoder, or `opts` doesn't say which.
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
    if "latent_avg" in state and not opts.get("start_from_latent_avg", True):
        state["latent_avg"] = np.broadcast_to(0.0, np.shape(state["latent_avg"]))
    return state


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
)


def split(data: Mapping) -> dict[str, tuple[Family, StateDict]]:
    """Splits a file's contents into the encoder and the generator.

    Both get the mean latent code, because the encoder's output is relative to it.

    Raises:
        ConversionError: the file holds something that belongs to neither.
    """
    check_entries(data, "state_dict", IGNORED_ENTRIES | {"latent_avg"})
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
    latent_avg = {key: data[key] for key in ("latent_avg",) if key in data}
    opts = {key: data[key] for key in (OPTS,) if key in data}
    return {
        "encoder": (ENCODER, parts["encoder"] | latent_avg | opts),
        "generator": (ROSINALITY, parts["decoder"] | latent_avg),
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
