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
