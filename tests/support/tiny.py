"""Tiny random networks, built without slow eager construction (which takes seconds)."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from guide_jax.config import load_config
from guide_jax.models.arcface import IRNet
from guide_jax.models.dlib_resnet import DlibResNet
from guide_jax.models.eg3d.generator import EG3D
from guide_jax.models.inception import Inception
from guide_jax.models.lpips import LPIPS
from guide_jax.models.mobilestylegan import MobileStyleGAN
from guide_jax.models.network import fill, flat_leaves, leaf_shapes, network_hash
from guide_jax.models.network import jitted as make_jitted
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.models.w_encoder import WEncoder
from guide_jax.storage.locate import Networks
from guide_jax.storage.network_file import save_network
from guide_jax.training.losses import LossNetworks


def random(build, seed=0):
    """Returns the network from `build(rngs=...)`, with all leaves drawn by NumPy."""
    skeleton = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, shape in leaf_shapes(skeleton).items():
        leaf = rng.standard_normal(shape)
        if path.endswith("kernel"):
            leaf /= np.sqrt(np.prod(shape[:-1]))
        elif path.endswith((".var", "heads.0", "heads.1")):
            leaf = 0.5 + np.abs(leaf)  # these are never negative in real networks
        leaves[path] = leaf
    return fill(skeleton, leaves)


def generator(resolution=16, seed=0):
    """Returns a StyleGAN2 with noise, Z = 8 and D = 7; L = 6 at 16 pixels."""
    levels = int(np.log2(resolution)) - 1
    return random(
        lambda rngs: StyleGAN2(
            resolution=resolution,
            channels=(6, 5, 4, 4)[:levels],
            z_dim=8,
            w_dim=7,
            mapping_layers=2,
            rngs=rngs,
        ),
        seed,
    )


def mobile(seed=0, channels=(8, 8, 6)):
    """Returns a MobileStyleGAN with D = 7; by default 32 pixels and L = 8."""
    return random(
        lambda rngs: MobileStyleGAN(
            channels=channels, z_dim=8, w_dim=7, mapping_layers=2, rngs=rngs
        ),
        seed,
    )


def eg3d(seed=0, **changes):
    """Returns an EG3D with planes of 16 and images of 32 pixels; D = 7 and L = 6."""
    config = {
        "resolution": 32,
        "channels": (6, 5, 4),
        "plane_channels": 4,
        "sr_channels": (5, 4),
        "render_size": 8,
        "depth_samples": 6,
        "importance_samples": 5,
        "z_dim": 8,
        "w_dim": 7,
    }
    return random(lambda rngs: EG3D(**config | changes, rngs=rngs), seed)


def identity(seed=0):
    """Returns an IR-SE network for 8 pixel crops, E = 5."""
    return random(
        lambda rngs: IRNet((1,), (4, 6), True, 5, 8, rngs=rngs),
        seed,
    )


def encoder(num_ws=6, seed=0):
    """Returns an encoder for 8 x 8 pixel images; D = 7."""
    return random(
        lambda rngs: WEncoder(
            num_ws=num_ws, w_dim=7, input_size=8, units=(1,), widths=(4, 6), rngs=rngs
        ),
        seed,
    )


E4E_UNITS, E4E_WIDTHS = (1, 2, 1), (4, 4, 6, 8)


def e4e_state(num_ws=8, w_dim=7, seed=0) -> dict[str, np.ndarray]:
    """Returns a small e4e's state dict with PyTorch's names, including `latent_avg`.

    The input is 16 pixels; the trunk has three stages, with 8, 4 and 2 pixel maps.
    """
    rng = np.random.default_rng(seed)
    state = {}

    def draw(key, *shape):
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
        state[key] = (rng.standard_normal(shape) / fan_in**0.5).astype(np.float32)

    def norm(key, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            draw(f"{key}.{leaf}", channels)
        state[f"{key}.running_var"] = 0.5 + np.abs(state[f"{key}.running_var"])
        state[f"{key}.num_batches_tracked"] = np.array(7)

    draw("input_layer.0.weight", E4E_WIDTHS[0], 3, 3, 3)
    norm("input_layer.1", E4E_WIDTHS[0])
    draw("input_layer.2.weight", E4E_WIDTHS[0])
    unit, inputs = 0, E4E_WIDTHS[0]
    for count, outputs in zip(E4E_UNITS, E4E_WIDTHS[1:], strict=True):
        for _ in range(count):
            body = f"body.{unit}.res_layer"
            norm(f"{body}.0", inputs)
            draw(f"{body}.1.weight", outputs, inputs, 3, 3)
            draw(f"{body}.2.weight", outputs)
            draw(f"{body}.3.weight", outputs, outputs, 3, 3)
            norm(f"{body}.4", outputs)
            draw(f"{body}.5.fc1.weight", 1, outputs, 1, 1)
            draw(f"{body}.5.fc2.weight", outputs, 1, 1, 1)
            if inputs != outputs:
                draw(f"body.{unit}.shortcut_layer.0.weight", outputs, inputs, 1, 1)
                norm(f"body.{unit}.shortcut_layer.1", outputs)
            unit, inputs = unit + 1, outputs
    for i in range(num_ws):
        for conv in range(1 + (i >= 3) + (i >= 7)):
            channels = w_dim if conv else E4E_WIDTHS[-1]
            draw(f"styles.{i}.convs.{2 * conv}.weight", w_dim, channels, 3, 3)
            draw(f"styles.{i}.convs.{2 * conv}.bias", w_dim)
        draw(f"styles.{i}.linear.weight", w_dim, w_dim)
        draw(f"styles.{i}.linear.bias", w_dim)
    for i, width in ((1, E4E_WIDTHS[-2]), (2, E4E_WIDTHS[-3])):
        draw(f"latlayer{i}.weight", E4E_WIDTHS[-1], width, 1, 1)
        draw(f"latlayer{i}.bias", E4E_WIDTHS[-1])
    draw("latent_avg", num_ws, w_dim)
    return state


GOAE_SETTINGS = {
    "groups": (1, 2, 1),
    "w_dim": 8,
    "input_size": 64,
    "width": 4,
    "depths": (2, 1, 1, 1),
    "heads": (1, 1, 2, 2),
    "window": 4,
    "pretrained_windows": (3, 3, 6, 2),
}


def goae_state(seed=0) -> dict[str, np.ndarray]:
    """Returns the state dict of a small GOAE with PyTorch's names.

    Its stages' maps have 16, 8, 4 and 2 pixels; the first two have shifted windows, of
    which only the first has a block with them.
    """
    rng = np.random.default_rng(seed)
    state = {}

    def affine(key, *shape, bias=True):
        weight = rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5
        state[f"{key}.weight"] = weight.astype(np.float32)
        if bias:
            state[f"{key}.bias"] = rng.standard_normal(shape[0]).astype(np.float32)

    def mlp(key, *widths):
        for i, shape in enumerate(zip(widths[1:], widths, strict=False)):
            affine(f"{key}.{2 * i}", *shape)

    affine("swin_model.patch_embed.proj", 4, 3, 4, 4)
    affine("swin_model.patch_embed.norm", 4)
    for stage, (depth, heads) in enumerate(((2, 1), (1, 1), (1, 2), (1, 2))):
        C, window = 4 << stage, (4, 4, 4, 2)[stage]
        pretrained = GOAE_SETTINGS["pretrained_windows"][stage]
        for i in range(depth):
            block = f"swin_model.layers.{stage}.blocks.{i}"
            attn = f"{block}.attn"
            affine(f"{attn}.qkv", 3 * C, C, bias=False)
            affine(f"{attn}.proj", C, C)
            affine(f"{attn}.cpb_mlp.0", 512, 2)
            affine(f"{attn}.cpb_mlp.2", heads, 512, bias=False)
            for name, shape in (
                ("logit_scale", (heads, 1, 1)),
                ("q_bias", (C,)),
                ("v_bias", (C,)),
            ):
                values = rng.standard_normal(shape).astype(np.float32)
                state[f"{attn}.{name}"] = values
            state |= _goae_constants(block, window, pretrained, stage == 0 and i == 1)
            affine(f"{block}.norm1", C)
            affine(f"{block}.norm2", C)
            affine(f"{block}.mlp.fc1", 4 * C, C)
            affine(f"{block}.mlp.fc2", C, 4 * C)
        if stage < 3:
            merge = f"swin_model.layers.{stage}.downsample"
            affine(f"{merge}.reduction", 2 * C, 4 * C, bias=False)
            affine(f"{merge}.norm", 2 * C)
    affine("swin_model.norm", 32)
    D = GOAE_SETTINGS["w_dim"]
    mlp("mapper_base_spatial", 4, 4, 1)
    mlp("mapper_base_channel", 32, 32, D)
    for group, count in zip(("coarse", "mid", "fine"), (1, 2, 1), strict=True):
        mlp(f"mapper_query_spatial_{group}", 4, 4, count)
        mlp(f"mapper_query_channel_{group}", 32, 32, D)
        attention = f"cross_att_{group}"
        affine("in_proj", 3 * D, D)
        for name in ("weight", "bias"):
            stacked = state.pop(f"in_proj.{name}")
            state[f"{attention}.multihead_attn.in_proj_{name}"] = stacked
        affine(f"{attention}.multihead_attn.out_proj", D, D)
        affine(f"{attention}.linear1", 2 * D, D)
        affine(f"{attention}.linear2", D, 2 * D)
    mlp("mapper_coarse_channel", 16, D)
    mlp("mapper_mid_channel", 8, D)
    mlp("mapper_fine_channel", 4, 8, D)
    mlp("mapper_coarse_to_mid_spatial", 16, 32, 64)
    mlp("mapper_mid_to_fine_spatial", 64, 128, 256)
    return state


def _goae_constants(block, window, pretrained, shifted) -> dict[str, np.ndarray]:
    """Computes a block's constants pair by pair; shifted maps have 16 pixels."""
    near = range(1 - window, window)
    scaled = [8 * d / (pretrained - 1) for d in near]
    along = [np.sign(d) * np.log2(abs(d) + 1) / np.log2(8) for d in scaled]
    tokens = [(y, x) for y in range(window) for x in range(window)]
    index = [
        [
            (y - v + window - 1) * (2 * window - 1) + x - u + window - 1
            for v, u in tokens
        ]
        for y, x in tokens
    ]
    found = {
        f"{block}.attn.relative_coords_table": np.array(
            [[[(y, x) for x in along] for y in along]], np.float32
        ),
        f"{block}.attn.relative_position_index": np.array(index),
    }
    if shifted:
        # Of the last window, half the rows and columns came from the other edge.
        mask = np.zeros((16, 16, 16), np.float32)
        for w, i, j in np.ndindex(mask.shape):
            for at, end in ((0, w // 4 == 3), (1, w % 4 == 3)):
                if end and (tokens[i][at] < 2) != (tokens[j][at] < 2):
                    mask[w, i, j] = -100
        found[f"{block}.attn_mask"] = mask
    return found


class SmallLPIPS(LPIPS):
    """LPIPS with two small convolutions, for images of any size."""

    def __init__(self, *, rngs):
        self.convs = nnx.List(
            nnx.Conv(inputs, outputs, (3, 3), 2, rngs=rngs)
            for inputs, outputs in ((3, 4), (4, 6))
        )
        self.heads = nnx.List(nnx.Param(np.zeros(n, np.float32)) for n in (4, 6))

    def raw_features(self, images, dtype=None):
        """Returns two feature maps."""
        first = jax.nn.relu(self.convs[0](images)).astype(dtype or images.dtype)
        return first, jax.nn.relu(self.convs[1](first)).astype(first.dtype)


def loss_networks(seed=0):
    """Returns small loss networks, LPIPS and identity."""
    return LossNetworks(random(SmallLPIPS, seed + 1), identity(seed))


class SmallDlibResNet(DlibResNet):
    """A one-convolution stand-in for dlib's network, for its 150 pixel crops; E = 6."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 6, (30, 30), 30, padding="VALID", rngs=rngs)

    def __call__(self, crops):
        """Returns embeddings [N, 6]."""
        return jax.nn.relu(self.conv(crops)).mean((1, 2))


def dlib_resnet(seed=0):
    """Returns a small network that judges take for dlib's, E = 6."""
    return random(SmallDlibResNet, seed)


class SmallInception(Inception):
    """A one-convolution stand-in for FID's network, for 299 pixel images; F = 6."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 6, (23, 23), 23, padding="VALID", rngs=rngs)

    def __call__(self, images):
        """Returns features [N, 6]."""
        return jax.nn.relu(self.conv(images)).mean((1, 2))


def inception(seed=0):
    """Returns a small feature network, F = 6."""
    return random(SmallInception, seed)


def flat(network):
    """Returns dotted path -> copy of the leaf as a NumPy array."""
    return {path: np.array(leaf) for path, leaf in flat_leaves(network).items()}


def jitted(network, function, *args):
    """Runs `function(network, *args)` with the weights as arguments of the jit."""
    return make_jitted(network, function)(*args)


def training(**changes):
    """Returns the paper's settings of a training, with changes by field name.

    Fields of `sampling` and `compute` may be named directly.
    """
    made = load_config("default").training
    for part in ("sampling", "compute"):
        names = {f.name for f in dataclasses.fields(getattr(made, part))}
        mine = {name: changes.pop(name) for name in names & changes.keys()}
        replaced = dataclasses.replace(getattr(made, part), **mine)
        made = dataclasses.replace(made, **{part: replaced})
    return dataclasses.replace(made, **changes)


def networks(**by_role):
    """Returns networks by role; a network that has no hash gets its role's name."""
    hashes = {
        role: network_hash(x) if hasattr(x, "config") else role
        for role, x in by_role.items()
    }
    return Networks(by_role, hashes)


def save(folder, **by_role):
    """Saves networks to `folder/ROLE.npz`; returns role -> path."""
    for role, network in by_role.items():
        save_network(folder / f"{role}.npz", network)
    return {role: folder / f"{role}.npz" for role in by_role}


def save_small_run(folder):
    """Saves what a run needs but LPIPS, at 32 pixels; returns role -> path."""
    return save(
        folder,
        generator=mobile(),
        encoder=encoder(num_ws=8),
        identity=identity(0),
        judge=identity(1),
    )
