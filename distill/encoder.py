"""Trains the small inversion encoder on samples of the 128 px generator.

    python -m distill.encoder

The encoder first learns to predict an image's w. Then, at a tenth of the learning rate,
it learns to reproduce the image (L1, LPIPS, and cosine similarity of the identity
encoder used in the loss). The last 400 people of `samples.npz` are held out.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distill import BUNDLE, WORK, store
from distill.images import average, save_grid
from distill.training import fit
from guide_jax.metrics.judges import rescaled
from guide_jax.models import arcface, dlib_resnet
from guide_jax.models.network import jitted
from guide_jax.models.w_encoder import WEncoder
from guide_jax.storage.network_file import load_network

HELD_OUT = 400


@jax.jit  # a separate program, for the reason given in identity.py
def vary(images: jax.Array, key: jax.Array) -> jax.Array:
    """Varies colours, brightness and noise slightly, as in photos; `[N, H, W, 3]`."""
    keys = jax.random.split(key, 3)
    n = len(images)
    gain = jnp.exp(jax.random.uniform(keys[0], (n, 1, 1, 3), minval=-0.1, maxval=0.1))
    shift = jax.random.uniform(keys[1], (n, 1, 1, 3), minval=-0.1, maxval=0.1)
    noise = 0.05 * jax.random.normal(keys[2], images.shape)
    return jnp.clip(images * gain + shift + noise, -1, 1)


class Samples:
    """The generator's samples: images and codes of people, and batches of them.

    Attributes:
        images: uint8 `[P, V, H, W, 3]`, V views of each person.
        codes: w - w_avg, `[P, V, D]`.
        spread: variance of the codes.
    """

    def __init__(self, w_avg: np.ndarray):
        samples = np.load(WORK / "samples.npz")
        self.images = samples["images"]  # uint8 [P, V, H, W, 3]
        self.codes = samples["codes"] - w_avg  # [P, V, D]
        self.spread = float(self.codes.var())

    def batches(self, size: int, first: int):
        """Returns a function step -> training batch, which is seeded `first + step`."""
        people, views = len(self.images) - HELD_OUT, self.images.shape[1]

        def batch_at(step):
            rng = np.random.default_rng(first + step)
            rows = rng.choice(people, size, replace=False)
            chosen = rows, rng.integers(views, size=size)
            images = self.images[chosen] / np.float32(127.5) - 1
            varied = vary(images, jax.random.key(first + step))
            return {"images": images, "varied": varied, "w": self.codes[chosen]}

        return batch_at

    def held_out(self) -> np.ndarray:
        """Returns images of the held-out people, `[N, H, W, 3]` float32 in [-1, 1]."""
        return self.images[-HELD_OUT:, 0] / np.float32(127.5) - 1


def train(
    encoder: WEncoder, others: tuple, samples: Samples, steps: int, image_steps: int
) -> WEncoder:
    """Trains the encoder on codes, then on images.

    Args:
        encoder: a freshly initialised encoder.
        others: generator, LPIPS and identity encoder, all frozen.
        samples: the training data.
        steps: steps of the first stage, on codes.
        image_steps: steps of the second stage, on images.

    Returns:
        The trained encoder, in eval mode.
    """
    # Initial codes are about as far from the mean as the samples' codes.
    scale = encoder.trunk.head.norm2.scale
    scale[...] = jnp.full_like(scale[...], samples.spread**0.5)
    encoder.train()
    graph, trainable, statistics = nnx.split(encoder, nnx.Param, ...)
    # The second stage keeps the first's batch statistics because its batches are small.
    encoder.eval()
    still_graph = nnx.split(encoder, nnx.Param, ...)[0]
    frozen_graph, frozen = nnx.split(others)

    def code_error(w, batch):
        return jnp.mean((w[:, 0] - batch["w"]) ** 2) / samples.spread

    def code_loss(trainable, statistics, frozen, batch):
        encoder = nnx.merge(graph, trainable, statistics, copy=True)
        error = code_error(encoder(batch["varied"]), batch)
        return error, (nnx.state(encoder, nnx.Not(nnx.Param)), {"w": error})

    def picture_loss(trainable, statistics, frozen, batch):
        generator, lpips, identity = nnx.merge(frozen_graph, frozen)
        w = nnx.merge(still_graph, trainable, statistics)(batch["varied"])
        generated = show(generator, w)
        images = batch["images"]
        a, b = (arcface.embed(identity, x) for x in (images, generated))
        terms = {
            "w": code_error(w, batch),
            "l1": jnp.abs(generated - images).mean(),
            "lpips": lpips(generated, images).mean(),
            "id": 1 - jnp.sum(a * b, axis=1).mean(),
        }
        return sum(terms.values()), (statistics, terms)

    folder = (WORK / "encoder").absolute()
    trainable, statistics = fit(
        code_loss,
        trainable,
        statistics,
        {},
        samples.batches(64, 0),
        steps=steps,
        learning_rate=2e-3,
        folder=folder / "code",
    )
    trainable, _ = fit(
        picture_loss,
        trainable,
        statistics,
        frozen,
        samples.batches(8, steps),
        steps=image_steps,
        learning_rate=2e-4,
        folder=folder / "picture",
    )
    return nnx.merge(still_graph, trainable, statistics)


def show(generator: nnx.Module, w: jax.Array) -> jax.Array:
    """Synthesises images from codes relative to w_avg, `[N, 1, D]`."""
    w = jnp.repeat(
        generator.mapping.w_avg[...][None, None] + w, generator.num_ws, axis=1
    )
    return generator.synthesis(w)[0]


def measure(networks: tuple, images: np.ndarray) -> tuple[dict, np.ndarray]:
    """Compares images with their reconstructions.

    Args:
        networks: encoder, generator, LPIPS, and the judge, an identity encoder that was
            not in the loss.
        images: `[N, H, W, 3]`; averaged down to the generator's resolution first.

    Returns:
        Mean identity similarity and LPIPS by name, and the reconstructions.
    """
    images = average(images, networks[1].resolution)

    def one(networks, images):
        encoder, generator, lpips, judge = networks
        generated = show(generator, encoder(images))
        a, b = dlib_resnet.embed(judge, images), dlib_resnet.embed(judge, generated)
        return (
            rescaled(jnp.sum(a * b, axis=1), dlib_resnet.STRANGERS),
            lpips(images, generated),
            generated,
        )

    one = jitted(networks, one)
    parts = [one(part) for part in np.split(images, len(images) // 10)]
    identity, lpips, generated = (np.concatenate(x) for x in zip(*parts, strict=True))
    return {"id": float(identity.mean()), "lpips": float(lpips.mean())}, generated


def main():
    """Trains, evaluates and stores the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--image_steps", type=int, default=180)
    args = parser.parse_args()
    names = "mobilestylegan_128", "lpips_alex", "identity_facenet", "judge_dlib"
    *others, judge = (load_network(BUNDLE / f"{name}.npz") for name in names)
    generator, lpips, _ = others
    samples = Samples(np.asarray(generator.mapping.w_avg[...]))
    # A single w fits every generator with this W space, whatever its number of layers.
    encoder = WEncoder(num_ws=1, w_dim=generator.w_dim, rngs=nnx.Rngs(0))
    encoder = train(encoder, tuple(others), samples, args.steps, args.image_steps)
    photos, quality = samples.held_out(), {}
    for path in sorted(BUNDLE.glob("*stylegan*.npz")):
        networks = encoder, load_network(path), lpips, judge
        quality[path.stem], generated = measure(networks, photos)
        shown = average(photos[:8], generated.shape[1]), generated[:8]
        save_grid(WORK / "encoder" / f"{path.stem}.png", list(shown))
    print(json.dumps(quality, indent=2))
    store(BUNDLE / "encoder.npz", encoder, {"held_out": quality})


if __name__ == "__main__":
    main()
