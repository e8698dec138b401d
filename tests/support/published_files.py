"""Writes published files in the container formats of the public code behind them.

`write_*` functions take all of a file's arrays by name, write the file into a folder
and return the paths. `with_*` functions complete a golden fixture's arrays with the
tensors that the published file also contains.
"""

from collections.abc import Callable
from pathlib import Path

import checkpoint_files
import numpy as np

# Would abort the tests if executed. About as long as NVIDIA's source.
SOURCE = "raise SystemExit('the embedded source was executed')\n" * 700
BUFFERS = ("resample_filter", "noise_const", "w_avg")
E4E_OPTS = {
    "encoder_type": "Encoder4Editing",
    "stylegan_size": 1024,
    "start_from_latent_avg": True,
    "device": "cuda:0",
    "checkpoint_path": None,
    "learning_rate": 0.0001,
}
Arrays = dict[str, np.ndarray]


def draw(*shape):
    """Returns random float32 values, seeded by the shape."""
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def discriminator() -> Arrays:
    """Returns NVlabs' 1024 px discriminator, stored next to the generators."""
    state, inputs = {}, 32
    for side in (1024, 512, 256, 128, 64, 32, 16, 8):
        outputs, block = min(32768 // (side // 2), 512), f"b{side}"
        shapes = {"conv0": (inputs, inputs, 3, 3), "conv1": (outputs, inputs, 3, 3)}
        if side == 1024:
            shapes["fromrgb"] = (inputs, 3, 1, 1)
        for layer, shape in shapes.items():
            state[f"{block}.{layer}.weight"] = draw(*shape)
            state[f"{block}.{layer}.bias"] = draw(shape[0])
        state[f"{block}.skip.weight"] = draw(outputs, inputs, 1, 1)
        inputs = outputs
    for layer, shape in {
        "conv": (512, 513, 3, 3), "fc": (512, 8192), "out": (1, 512)
    }.items():  # fmt: skip
        state[f"b4.{layer}.weight"] = draw(*shape)
        state[f"b4.{layer}.bias"] = draw(shape[0])
    return state


def write_nvlabs(arrays: Arrays, folder: Path) -> list[Path]:
    easy, path = checkpoint_files.EasyDict, folder / "ffhq.pkl"
    gains = {
        f"mapping.fc{i}": {"weight_gain": 0.01 / np.sqrt(np.float64(512))}
        for i in range(8)
    }
    root = {"z_dim": 512, "_init_kwargs": easy(z_dim=512, mapping_kwargs=easy())}

    def network(state, attributes=None):
        return checkpoint_files.network(state, BUFFERS, SOURCE, attributes=attributes)

    # G, the generator without averaging: valid, but with other values than G_ema.
    last = {n: x if n.endswith("_filter") else -x for n, x in arrays.items()}
    data = {
        "G": network(last, gains | {"": root}),
        "D": network(discriminator()),
        "G_ema": network(arrays, gains | {"": root}),
        "training_set_kwargs": easy(class_name="training.dataset.ImageFolderDataset"),
        "augment_pipe": None,
    }
    checkpoint_files.write_nvlabs(path, data)
    return [path]


# As in the published file: the third plane's rows are z, x and y.
PLANE_AXES = np.array([np.eye(3), np.eye(3)[[0, 2, 1]], np.eye(3)[[2, 0, 1]]], "f4")


def write_eg3d(arrays: Arrays, folder: Path) -> list[Path]:
    """Writes arrays, next to which `arrays` also holds the rendering settings."""
    easy, path = checkpoint_files.EasyDict, folder / "ffhqrebalanced512-128.pkl"
    arrays = dict(arrays)
    names = "rendering_kwargs", "_init_kwargs", "neural_rendering_resolution"
    options, arguments, size = (arrays.pop(name) for name in names)
    root = dict(zip(names, (easy(options), easy(arguments), size), strict=True))
    plain = {
        "decoder": "training.triplane.OSGDecoder",
        "decoder.net": "torch.nn.modules.container.Sequential",
        "decoder.net.1": "torch.nn.modules.activation.Softplus",
        "renderer": "training.volumetric_rendering.renderer.ImportanceRenderer",
        "renderer.ray_marcher": "training.volumetric_rendering.ray_marcher"
        ".MipRayMarcher2",
        "ray_sampler": "training.volumetric_rendering.ray_sampler.RaySampler",
    }
    network = checkpoint_files.network(
        arrays,
        BUFFERS,
        SOURCE,
        attributes={
            "": root | {"_init_args": (), "_last_planes": None, "z_dim": 512},
            "renderer": {"plane_axes": PLANE_AXES},
        },
        plain=plain,
    )
    checkpoint_files.write_nvlabs(path, {"G_ema": network, "G": network})
    return [path]


def write_rosinality(arrays: Arrays, folder: Path) -> list[Path]:
    path = folder / "stylegan2-ffhq-config-f.pt"
    arrays = dict(arrays)
    average = arrays.pop("latent_avg")
    g_ema = checkpoint_files.state_dict(arrays)
    checkpoint_files.write_zip(path, {"g_ema": g_ema, "latent_avg": average})
    return [path]


def write_e4e(arrays: Arrays, folder: Path) -> list[Path]:
    path = folder / "e4e_ffhq_encode.pt"
    arrays = dict(arrays)
    average = arrays.pop("latent_avg")
    data = {
        "state_dict": checkpoint_files.state_dict(arrays),
        "latent_avg": average,
        "opts": E4E_OPTS,
    }
    checkpoint_files.write_zip(path, data)
    return [path]


def write_legacy(name: str) -> Callable[[Arrays, Path], list[Path]]:
    """Returns a function that writes a bare state dict in PyTorch's legacy format."""

    def write(arrays, folder):
        state = checkpoint_files.state_dict(arrays)
        checkpoint_files.write_legacy(folder / name, state)
        return [folder / name]

    return write


def write_goae(arrays: Arrays, folder: Path) -> list[Path]:
    path = folder / "encoder_FFHQ.pt"
    checkpoint_files.write_zip(path, checkpoint_files.state_dict(arrays))
    return [path]


def write_lpips(arrays: Arrays, folder: Path) -> list[Path]:
    heads = {name: array for name, array in arrays.items() if name.startswith("lin")}
    rest = {name: array for name, array in arrays.items() if name not in heads}
    return [
        *write_legacy("vgg16-397923af.pth")(rest, folder),
        *write_legacy("vgg.pth")(heads, folder),
    ]


def with_average(golden) -> Arrays:
    return golden.weights() | {"latent_avg": draw(512)}


def with_extras(golden) -> Arrays:
    return golden.weights() | golden.weights("extra_entries")


def with_heads(golden) -> Arrays:
    heads = {name: x for name, x in golden.stored.items() if name.startswith("lin")}
    unused = golden.info["also_in_real_checkpoint_unused"]
    classifier = {entry["name"]: draw(*entry["shape"]) for entry in unused}
    return golden.weights() | classifier | heads
