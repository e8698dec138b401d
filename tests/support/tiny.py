"""Tiny networks of random numbers, built fast: eager construction takes seconds."""

import jax
import numpy as np
from flax import nnx

from guide_jax.models.arcface import IRNet
from guide_jax.models.inception import Inception
from guide_jax.models.lpips import LPIPS
from guide_jax.models.mobilestylegan import MobileStyleGAN
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.models.w_encoder import WEncoder
from guide_jax.storage import locate
from guide_jax.storage.network_file import fill, flat_leaves, leaf_shapes
from guide_jax.training.losses import Judges


def random(build, seed=0):
    """Returns the network that `build(rngs=...)` makes, all leaves drawn by NumPy."""
    skeleton = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, shape in leaf_shapes(skeleton).items():
        leaf = rng.standard_normal(shape)
        if path.endswith("kernel"):
            leaf /= np.sqrt(np.prod(shape[:-1]))
        elif path.endswith((".var", "heads.0", "heads.1")):
            leaf = 0.5 + np.abs(leaf)  # of these, negative ones are never seen
        leaves[path] = leaf
    return fill(skeleton, leaves)


def generator(resolution=16, seed=0):
    """Returns a StyleGAN2 with noise, Z = 8, D = 7, and L = 6 at 16 pixels."""
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
    """Returns a MobileStyleGAN; by default of 32 pixels, with L = 8, D = 7."""
    return random(
        lambda rngs: MobileStyleGAN(
            channels=channels, z_dim=8, w_dim=7, mapping_layers=2, rngs=rngs
        ),
        seed,
    )


def identity(seed=0):
    """Returns an IR-SE network for 8 pixel crops, E = 5."""
    return random(
        lambda rngs: IRNet((1,), (4, 6), True, 5, 8, rngs=rngs),
        seed,
    )


def encoder(num_ws=6, seed=0):
    """Returns an encoder that sees 8 x 8 pixels; D = 7."""
    return random(
        lambda rngs: WEncoder(
            num_ws=num_ws, w_dim=7, input_size=8, units=(1,), widths=(4, 6), rngs=rngs
        ),
        seed,
    )


E4E_UNITS, E4E_WIDTHS = (1, 2, 1), (4, 4, 6, 8)


def e4e_state(num_ws=8, w_dim=7, seed=0) -> dict[str, np.ndarray]:
    """Returns a small e4e's state dict under PyTorch's names, with a `latent_avg`.

    It takes 16 pixels in three stages; the trunk's maps have 8, 4 and 2.
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
    """LPIPS of two small convolutions, for images of any size."""

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


def judges(seed=0):
    """Returns small judges, LPIPS and identity."""
    return Judges(random(SmallLPIPS, seed + 1), identity(seed))


class SmallInception(Inception):
    """FID's network of one convolution, for 299 pixel images; F = 6."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 6, (23, 23), 23, padding="VALID", rngs=rngs)

    def __call__(self, images):
        """Returns [N, 6]."""
        return jax.nn.relu(self.conv(images)).mean((1, 2))


def inception(seed=0):
    """Returns a small network of features, F = 6."""
    return random(SmallInception, seed)


def flat(network):
    """Returns dotted path -> NumPy array, a copy."""
    return {path: np.array(leaf) for path, leaf in flat_leaves(network).items()}


def jitted(network, function, *args):
    """Runs `function(network, *args)` with the weights as arguments of the jit."""
    return locate.jitted(network, function)(*args)
