"""`encoder_FFHQ.pt`: GOAE's inversion encoder for EG3D."""

import math
import re
from collections.abc import Iterator

import numpy as np

from convert.rules import ConversionError, Family, Note, Rule, StateDict, size
from guide_jax.models.goae import STAGES
from guide_jax.models.swin import PATCH, coordinates, offsets, regions, sides

GROUPS = ("coarse", "mid", "fine")
TRUNK = "swin_model.layers"
TABLE, INDEX, MASK = (
    "attn.relative_coords_table",
    "attn.relative_position_index",
    "attn_mask",
)
APART = -100.0  # the mask's value for tokens that must not see each other
IN_PROJECTION = re.compile(r"(cross_att_\w+\.multihead_attn)\.in_proj_(weight|bias)")


def prepare(state: StateDict, note: Note) -> StateDict:
    """Splits the stacked projections of the cross attention."""
    del note
    found = {}
    for key, array in state.items():
        match = IN_PROJECTION.fullmatch(key)
        # Other shapes keep their name and are reported as unknown.
        if match and np.ndim(array) and not len(array) % 3:
            parts = np.split(np.asarray(array), 3)
            for part, values in zip(("query", "key", "value"), parts, strict=True):
                found[f"{match[1]}.{part}.{match[2]}"] = values
        else:
            found[key] = array
    return found


def config(state: StateDict) -> dict:
    """Reads `GOAE`'s arguments from the shapes, and checks the file's constants.

    Raises:
        KeyError: a required tensor is missing.
        ConversionError: a required tensor has too few axes or an impossible size, or
            the coordinates, indices or masks are not those of the published encoder.
    """
    tokens = size(state, "mapper_base_spatial.0.weight", 1)
    if math.isqrt(tokens) ** 2 != tokens:
        raise ConversionError(
            f"'mapper_base_spatial.0.weight' reads {tokens} tokens, which is not a"
            " square feature map"
        )
    blocks = [f"{TRUNK}.{stage}.blocks" for stage in range(STAGES)]
    tables = [
        (size(state, f"{key}.0.{TABLE}", 1), np.asarray(state[f"{key}.0.{TABLE}"]))
        for key in blocks
    ]
    windows = [(length + 1) // 2 for length, _ in tables]
    found = {
        "groups": tuple(
            size(state, f"mapper_query_spatial_{group}.2.weight", 0) for group in GROUPS
        ),
        "w_dim": size(state, "mapper_base_channel.2.weight", 0),
        "input_size": math.isqrt(tokens) * PATCH << (STAGES - 1),
        "width": size(state, "swin_model.patch_embed.proj.weight", 0),
        "depths": tuple(_depth(state, key) for key in blocks),
        "heads": tuple(size(state, f"{key}.0.attn.logit_scale", 0) for key in blocks),
        "window": max(windows),
        "pretrained_windows": tuple(
            _pretrained(window, float(np.max(table)))
            for window, (_, table) in zip(windows, tables, strict=True)
        ),
    }
    _check_constants(state, found)
    return found


def _depth(state: StateDict, key: str) -> int:
    """Returns how many blocks a stage has."""
    depth = 0
    while f"{key}.{depth}.attn.qkv.weight" in state:
        depth += 1
    return depth


def _pretrained(window: int, largest: float) -> int:
    """Returns the side in pre-training that gives the largest coordinate."""
    farthest = 8**largest - 1  # see `coordinates`
    return round(8 * (window - 1) / farthest) + 1 if farthest > 0 else window


def _check_constants(state: StateDict, config: dict) -> None:
    """Raises ConversionError unless the file's constants are those that we compute."""
    wanted = dict(_constants(config))
    pattern = "|".join(map(re.escape, (TABLE, INDEX, MASK)))
    held = {key for key in state if re.fullmatch(rf".*\.(?:{pattern})", key)}
    faults = [f"tensor {key!r} is missing" for key in wanted.keys() - held]
    faults += [f"unknown tensor {key!r}" for key in held - wanted.keys()]
    for key in held & wanted.keys():
        theirs, ours = np.asarray(state[key]), wanted[key]
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=1e-5):
            faults.append(f"{key!r} does not hold the published encoder's values")
    if faults:
        raise ConversionError("; ".join(sorted(faults)))


def _constants(config: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the value of each constant in a file."""
    for stage, side in enumerate(sides(config["input_size"], STAGES)):
        window = min(config["window"], side)
        table = coordinates(window, config["pretrained_windows"][stage])[None]
        mask = None
        if side > window and not side % window:
            region = regions(side, window, window // 2)
            mask = np.where(region[:, None] == region[:, :, None], 0.0, APART)
        for block in range(config["depths"][stage]):
            key = f"{TRUNK}.{stage}.blocks.{block}"
            yield f"{key}.{TABLE}", table
            yield f"{key}.{INDEX}", offsets(window)
            if block % 2 and mask is not None:
                yield f"{key}.{MASK}", mask


def _affine(source: str, path: str, weight: str = "kernel") -> list[Rule]:
    """Returns the rules of a dense layer, or of a norm with the weight "scale"."""
    return [
        Rule(
            rf"{source}\.weight",
            f"{path}.{weight}",
            "linear" if weight == "kernel" else "same",
        ),
        Rule(rf"{source}\.bias", f"{path}.bias"),
    ]


def _mlp(source: str, path: str) -> list[Rule]:
    """Returns the rules of an MLP, whose odd layers are activations."""
    return [
        rule
        for layer in (0, 1)
        for rule in _affine(rf"{source}\.{2 * layer}", f"{path}.layers.{layer}")
    ]


def _heads() -> Iterator[Rule]:
    for name, path in (
        ("base", "base"),
        *((f"query_{{}}_{group}", f"queries.{i}") for i, group in enumerate(GROUPS)),
    ):
        for part in ("spatial", "channel"):
            source = name.format(part) if "{" in name else f"{name}_{part}"
            yield from _mlp(f"mapper_{source}", f"{path}.{part}")
    for i, group in enumerate(GROUPS):
        yield from _mlp(f"mapper_{group}_channel", f"channels.{i}")
        attention, path = f"cross_att_{group}", f"attentions.{i}"
        for part in ("query", "key", "value"):
            yield from _affine(
                rf"{attention}\.multihead_attn\.{part}", f"{path}.{part}"
            )
        yield from _affine(rf"{attention}\.multihead_attn\.out_proj", f"{path}.out")
        yield from _affine(rf"{attention}\.linear1", f"{path}.expand")
        yield from _affine(rf"{attention}\.linear2", f"{path}.contract")
    for i, name in enumerate(("coarse_to_mid", "mid_to_fine")):
        yield from _mlp(f"mapper_{name}_spatial", f"enlarge.{i}")


BLOCK, OURS = r"swin_model\.layers\.(\d+)\.blocks\.(\d+)", r"trunk.blocks.\1.\2"
MERGE = r"swin_model\.layers\.(\d+)\.downsample"

GOAE = Family(
    kind="goae",
    title="GOAE inversion encoder (encoder_FFHQ.pt)",
    recognises=lambda state: "mapper_base_spatial.0.weight" in state,
    config=config,
    rules=(
        Rule(r"swin_model\.patch_embed\.proj\.weight", "trunk.embed.kernel", "conv"),
        Rule(r"swin_model\.patch_embed\.proj\.bias", "trunk.embed.bias"),
        *_affine(r"swin_model\.patch_embed\.norm", "trunk.norm_in", "scale"),
        *_affine(r"swin_model\.norm", "trunk.norm_out", "scale"),
        *_affine(rf"{BLOCK}\.norm([12])", rf"{OURS}.norm\3", "scale"),
        *_affine(rf"{BLOCK}\.mlp\.fc1", f"{OURS}.expand"),
        *_affine(rf"{BLOCK}\.mlp\.fc2", f"{OURS}.contract"),
        Rule(rf"{BLOCK}\.attn\.logit_scale", f"{OURS}.attention.log_scale", "flat"),
        Rule(rf"{BLOCK}\.attn\.q_bias", f"{OURS}.attention.query_bias"),
        Rule(rf"{BLOCK}\.attn\.v_bias", f"{OURS}.attention.value_bias"),
        Rule(rf"{BLOCK}\.attn\.qkv\.weight", f"{OURS}.attention.qkv.kernel", "linear"),
        *_affine(rf"{BLOCK}\.attn\.proj", f"{OURS}.attention.out"),
        *_affine(rf"{BLOCK}\.attn\.cpb_mlp\.0", f"{OURS}.attention.bias_hidden"),
        Rule(
            rf"{BLOCK}\.attn\.cpb_mlp\.2\.weight",
            f"{OURS}.attention.bias_out.kernel",
            "linear",
        ),
        Rule(
            rf"{MERGE}\.reduction\.weight", r"trunk.merges.\1.linear.kernel", "linear"
        ),
        *_affine(rf"{MERGE}\.norm", r"trunk.merges.\1.norm", "scale"),
        # Compared with our own by `config`.
        Rule(rf"{BLOCK}\.(attn_mask|attn\.relative_\w+)", None),
        *_heads(),
    ),
    prepare=prepare,
)
