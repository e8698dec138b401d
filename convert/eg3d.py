"""EG3D generators as published (`ffhqrebalanced512-128.pkl`, `afhqcats512-128.pkl`).

Such a file also holds how the model is rendered, which becomes part of the converted
network's description. `w_avg_ffhqrebalanced512-128.pt`, GUIDE's mean code, replaces the
mean code of the generator that it is converted with.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.rules import ConversionError, Family, Note, Rule, StateDict, size
from convert.stylegan2 import (
    NVLABS,
    NVLABS_KERNEL,
    nvlabs_block_shapes,
    nvlabs_channels,
)
from guide_jax.models.eg3d import cameras
from guide_jax.models.eg3d.planes import AXES, HIDDEN, PLANES

SUPPORTED = "ffhqrebalanced512-128.pkl and afhqcats512-128.pkl, for example"
# Attributes of the pickled generator that are not tensors.
OPTIONS, ARGUMENTS, RENDER_SIZE = (
    "rendering_kwargs",
    "_init_kwargs",
    "neural_rendering_resolution",
)
PLANE_AXES = "renderer.plane_axes"
W_AVG = "backbone.mapping.w_avg"
MEAN_CODE = "w_avg"  # the contents of GUIDE's file

MODULE = "training.superresolution.SuperresolutionHybrid8XDC"
# Options that the networks have no argument for, with the value that they implement.
REQUIRED = {
    "superresolution_module": MODULE,
    "superresolution_noise_mode": "none",
    "clamp_mode": "softplus",
    "disparity_space_sampling": False,
    "decoder_lr_mul": 1,
    "sr_antialias": True,
    "white_back": False,
    "density_noise": 0,
}
OPTIONAL = ("white_back", "density_noise", "decoder_lr_mul")
READ = {
    "depth_resolution", "depth_resolution_importance", "ray_start", "ray_end",
    "box_warp", "avg_camera_radius", "avg_camera_pivot", "c_scale",
    "c_gen_conditioning_zero",
}  # fmt: skip
IN_TRAINING = {
    "image_resolution", "gpc_reg_prob", "gpc_reg_fade_kimg", "density_reg",
    "density_reg_p_dist", "reg_type",
}  # fmt: skip


def prepare(state: StateDict, note: Note) -> StateDict:
    """Checks the rendering settings, and puts a mean code in its place.

    Raises:
        ConversionError: the file has no rendering settings, or unsupported ones.
    """
    if missing := [
        key for key in (OPTIONS, ARGUMENTS, RENDER_SIZE) if key not in state
    ]:
        raise ConversionError(
            f"this EG3D generator has no {', '.join(missing)}, which say how it is"
            f" rendered; give the published .pkl file ({SUPPORTED})"
        )
    options = dict(state[OPTIONS])
    faults = [
        f"{name} is {options.get(name)!r}"
        for name, wanted in REQUIRED.items()
        if options.get(name, wanted if name in OPTIONAL else None) != wanted
    ]
    faults += [
        f"{name} is {options.get(name)!r}"
        for name in ("ray_start", "ray_end")
        if not isinstance(options.get(name), int | float)
    ]
    faults += [f"{name} is missing" for name in sorted(READ - options.keys())]
    unknown = options.keys() - REQUIRED.keys() - READ - IN_TRAINING
    faults += [f"{name} is unknown" for name in sorted(map(str, unknown))]
    if PLANE_AXES in state and not _has_our_axes(np.asarray(state[PLANE_AXES])):
        faults.append("its planes have other axes")
    if faults:
        raise ConversionError(
            f"unsupported rendering of EG3D: {', '.join(faults)}; supported are models"
            f" like the published 512 px ones ({SUPPORTED})"
        )
    state = dict(NVLABS.prepare(state, note))
    if (mean := state.pop(MEAN_CODE, None)) is not None:
        rows = np.asarray(mean).reshape(-1, np.shape(mean)[-1])  # [L, D]
        if not np.allclose(rows, rows[:1], atol=1e-6):
            raise ConversionError("the rows of the mean code differ, one per layer")
        state[W_AVG] = rows[0]
    return state


def _has_our_axes(axes: np.ndarray) -> bool:
    """Whether plane axes [3, 3, 3] project points as our renderer does."""
    if axes.shape != (PLANES, 3, 3):
        return False
    wanted = np.stack([np.eye(3)[list(pair)].T for pair in AXES])  # [3, 3, 2]
    return np.allclose(np.linalg.inv(axes)[..., :2], wanted)


def config(state: StateDict) -> dict:
    """Reads `EG3D`'s arguments from the shapes and the rendering settings.

    Raises:
        KeyError: a required tensor is missing.
        ConversionError: a required tensor has too few axes.
    """
    options, arguments = state[OPTIONS], state[ARGUMENTS]
    blocks = _numbers(state, r"backbone\.synthesis\.b(\d+)\..*")
    enlarged = _numbers(state, r"superresolution\.block(\d+)\..*")
    last = f"superresolution.block{len(enlarged) - 1}"
    return {
        "resolution": size(state, f"{last}.conv1.noise_const", 0),
        "channels": tuple(
            size(state, f"backbone.synthesis.b{block}.conv1.weight", 0)
            for block in blocks
        ),
        "plane_channels": size(state, "decoder.net.0.weight", 1),
        "sr_channels": tuple(
            size(state, f"superresolution.block{i}.conv1.weight", 0) for i in enlarged
        ),
        "render_size": int(state[RENDER_SIZE]),
        "depth_samples": int(options["depth_resolution"]),
        "importance_samples": int(options["depth_resolution_importance"]),
        "near": float(options["ray_start"]),
        "far": float(options["ray_end"]),
        "box": float(options["box_warp"]),
        "camera_radius": float(options["avg_camera_radius"]),
        "camera_pivot": tuple(map(float, options["avg_camera_pivot"])),
        "camera_scale": float(
            0 if options["c_gen_conditioning_zero"] else options["c_scale"]
        ),
        "z_dim": size(state, "backbone.mapping.fc0.weight", 1)
        - size(state, "backbone.mapping.embed.weight", 0),
        "w_dim": size(state, "backbone.mapping.fc0.weight", 0),
        "mapping_layers": len(_numbers(state, r"backbone\.mapping\.fc(\d+)\..*")),
        "conv_clamp": arguments.get("conv_clamp"),
        # As in the published class, which clamps where it may use half precision.
        "sr_conv_clamp": 256 if arguments.get("sr_num_fp16_res") else None,
    }


def _numbers(state: StateDict, pattern: str) -> list[int]:
    """Returns the numbers that `pattern` captures in keys, in ascending order."""
    matches = (re.fullmatch(pattern, key) for key in state)
    return sorted({int(match[1]) for match in matches if match})


def _layers(source: str, path: str) -> Iterator[Rule]:
    """Returns the rules of a part whose names are StyleGAN2's, in NVlabs' spelling."""
    yield Rule(
        source + r"((?:fc\d+|embed)\.weight|.*\.affine\.weight)", path + r"\1", "linear"
    )
    yield Rule(source + r"(b4\.const)", path + r"\1", "image")
    yield Rule(source + r"(\w+\.(?:conv\d|torgb)\.weight)", path + r"\1", "conv")
    yield Rule(source + r"(.*)", path + r"\1")


EG3D = Family(
    kind="eg3d",
    title="EG3D generator (NVlabs)",
    recognises=lambda state: "backbone.synthesis.b4.const" in state,
    config=config,
    rules=(
        Rule(NVLABS_KERNEL, None),
        Rule("|".join(map(re.escape, (OPTIONS, ARGUMENTS, RENDER_SIZE))), None),
        Rule(re.escape(PLANE_AXES), None),
        *_layers(r"backbone\.mapping\.", "mapping."),
        *_layers(r"backbone\.synthesis\.", "synthesis.backbone."),
        *_layers(r"superresolution\.", "synthesis.superresolution."),
        *(
            Rule(rf"decoder\.net\.{i}\.{leaf}", f"synthesis.decoder.{name}.{leaf}", how)
            for i, name in ((0, "hidden"), (2, "out"))  # 1 is the activation
            for leaf, how in (("weight", "linear"), ("bias", "same"))
        ),
    ),
    prepare=prepare,
)


# Files that are no network of ours ----------------------------------------------------


def is_mean_code(data: Any) -> bool:
    """Whether a file's contents are a mean code `[D]` or `[L, D]`, and nothing else."""
    return isinstance(data, np.ndarray) and data.ndim in (1, 2) and data.size > 0


def with_mean_codes(
    jobs: Sequence[Any], means: Mapping[Path, np.ndarray]
) -> tuple[list[Any], list[str]]:
    """Adds mean codes to the EG3D generator among the jobs.

    Returns:
        The jobs, and one error line for each mean code that belongs to none.
    """
    jobs, errors = list(jobs), []
    places = [i for i, job in enumerate(jobs) if job.family is EG3D]
    for path, mean in means.items():
        if len(places) == len(means) == 1:
            job = jobs[places[0]]
            files, state = (*job.files, path), {**job.state, MEAN_CODE: mean}
            jobs[places[0]] = dataclasses.replace(job, files=files, state=state)
        else:
            errors.append(
                f"{path}: this is a mean code {list(mean.shape)}; give it together with"
                " the one EG3D generator that it belongs to, such as"
                " ffhqrebalanced512-128.pkl"
            )
    return jobs, errors


# Export -------------------------------------------------------------------------------

# What the published class does not take as an argument.
FIXED = {
    "plane_channels": 32, "sr_channels": (256, 128), "w_dim": 512, "resolution": 512,
}  # fmt: skip


def check(config: dict) -> None:
    """Raises ConversionError unless the published class can hold such a network."""
    faults = [
        f"{name} is {config[name]}, not {value}"
        for name, value in FIXED.items()
        if config[name] != value
    ]
    if len(config["channels"]) != 7:
        faults.append(f"the planes have {2 << len(config['channels'])} pixels, not 256")
    if config["sr_conv_clamp"] not in (None, 256):
        faults.append(f"sr_conv_clamp is {config['sr_conv_clamp']}, not 256 or None")
    if faults:
        raise ConversionError(
            f"EG3D's published class has no such network: {', '.join(faults)}"
        )


def shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the key and shape of every tensor, in the order of `state_dict()`."""
    w_dim, channels = config["w_dim"], config["plane_channels"]
    inputs = None
    for i, outputs in enumerate(config["channels"]):
        block, side = f"backbone.synthesis.b{4 << i}", 4 << i
        yield from nvlabs_block_shapes(
            block, inputs, outputs, side, w_dim, PLANES * channels
        )
        inputs = outputs
    yield W_AVG, (w_dim,)
    yield "backbone.mapping.embed.weight", (w_dim, cameras.LENGTH)
    yield "backbone.mapping.embed.bias", (w_dim,)
    for i in range(config["mapping_layers"]):
        fan_in = w_dim if i else config["z_dim"] + w_dim
        yield f"backbone.mapping.fc{i}.weight", (w_dim, fan_in)
        yield f"backbone.mapping.fc{i}.bias", (w_dim,)
    inputs = channels
    for i, outputs in enumerate(config["sr_channels"]):
        side = config["resolution"] >> len(config["sr_channels"]) - 1 - i
        yield from nvlabs_block_shapes(
            f"superresolution.block{i}", inputs, outputs, side, w_dim, 3
        )
        inputs = outputs
    yield "decoder.net.0.weight", (HIDDEN, channels)
    yield "decoder.net.0.bias", (HIDDEN,)
    yield "decoder.net.2.weight", (1 + channels, HIDDEN)
    yield "decoder.net.2.bias", (1 + channels,)


def call(config: dict) -> str:
    """Returns the call of the published class that fits a config."""
    options = REQUIRED | {
        "depth_resolution": config["depth_samples"],
        "depth_resolution_importance": config["importance_samples"],
        "ray_start": config["near"],
        "ray_end": config["far"],
        "box_warp": config["box"],
        "avg_camera_radius": config["camera_radius"],
        "avg_camera_pivot": list(config["camera_pivot"]),
        "c_scale": config["camera_scale"],
        "c_gen_conditioning_zero": False,
    }
    base, maximum, rest = nvlabs_channels(config["channels"])
    return (
        f"training.triplane.TriPlaneGenerator(z_dim={config['z_dim']}, c_dim=25,"
        f" w_dim={config['w_dim']}, img_resolution={config['resolution']},"
        f" img_channels=3, sr_num_fp16_res={4 if config['sr_conv_clamp'] else 0},"
        f" mapping_kwargs={{'num_layers': {config['mapping_layers']}}},"
        f" rendering_kwargs={options}, channel_base={base}, channel_max={maximum},"
        f" num_fp16_res=0, conv_clamp={config['conv_clamp']}){rest},"
        f" and neural_rendering_resolution = {config['render_size']}"
    )
