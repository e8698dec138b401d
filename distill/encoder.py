"""Trains the small inversion encoder on the distilled generator's own samples.

    python -m distill.encoder

First it learns to say the w of a picture; then, with a tenth of the learning rate, to
give a code whose picture is alike (L1, LPIPS, identity by the loss's encoder). The last
400 people of `samples.npz` are held out.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distill import BUNDLE, WORK
from distill.generator import save_grid
from distill.training import fit
from guide_jax.checkpoint import load_network, save_network
from guide_jax.models import arcface
from guide_jax.models.encoder import WEncoder

HELD_OUT = 400


@jax.jit  # a program of its own, as in identity.py
def vary(images: jax.Array, key: jax.Array) -> jax.Array:
    """Changes colours, brightness and noise a little, as photos do; `[N, H, W, 3]`."""
    keys = jax.random.split(key, 3)
    n = len(images)
    gain = jnp.exp(jax.random.uniform(keys[0], (n, 1, 1, 3), minval=-0.1, maxval=0.1))
    shift = jax.random.uniform(keys[1], (n, 1, 1, 3), minval=-0.1, maxval=0.1)
    noise = 0.05 * jax.random.normal(keys[2], images.shape)
    return jnp.clip(images * gain + shift + noise, -1, 1)


def measure(encoder, generator, lpips, judge, images: np.ndarray) -> dict:
    """Judges reconstructions of uint8 images by an encoder that was not in the loss."""

    @nnx.jit
    def one(encoder, generator, lpips, judge, images):
        w = generator.mapping.w_avg[...] + encoder(images)
        made, _ = generator.synthesis(w)
        a, b = arcface.embed(judge, images), arcface.embed(judge, made)
        return jnp.sum(a * b, axis=1), lpips(images, made)

    parts = [
        one(encoder, generator, lpips, judge, part / np.float32(127.5) - 1)
        for part in np.split(images, len(images) // 10)
    ]
    identity, perceptual = (np.concatenate(x) for x in zip(*parts, strict=True))
    return {"id": float(identity.mean()), "lpips": float(perceptual.mean())}


def main():
    """Trains, measures and stores the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--image_steps", type=int, default=300)
    args = parser.parse_args()
    generator = load_network(BUNDLE / "generator.npz")
    lpips = load_network(BUNDLE / "lpips_alex.npz")
    identity = load_network(BUNDLE / "identity_dlib.npz")
    judge = load_network(BUNDLE / "identity_facenet.npz")
    samples = np.load(WORK / "samples.npz")
    images, w_avg = samples["images"], np.asarray(generator.mapping.w_avg[...])
    codes = samples["codes"] - w_avg  # [P, V, D]
    spread = float(codes.var())
    people, views = len(images) - HELD_OUT, images.shape[1]

    def batches(size, first):
        def batch_at(step):
            rng = np.random.default_rng(first + step)
            rows = rng.choice(people, size, replace=False)
            view = rng.integers(views, size=size)
            chosen = images[rows, view] / np.float32(127.5) - 1
            varied = vary(chosen, jax.random.key(first + step))
            return {"images": chosen, "varied": varied, "w": codes[rows, view]}

        return batch_at

    encoder = WEncoder(num_ws=generator.num_ws, w_dim=generator.w_dim, rngs=nnx.Rngs(0))
    # From the start, codes are as far from the mean as people's are.
    scale = encoder.trunk.head.norm2.scale
    scale[...] = jnp.full_like(scale[...], spread**0.5)
    encoder.train()
    graph, trainable, statistics = nnx.split(encoder, nnx.Param, ...)
    frozen_graph, frozen = nnx.split((generator, lpips, identity))

    def code_loss(trainable, statistics, frozen, batch):
        encoder = nnx.merge(graph, trainable, statistics, copy=True)
        w = encoder(batch["varied"])
        error = jnp.mean((w[:, 0] - batch["w"]) ** 2) / spread
        return error, (nnx.state(encoder, nnx.Not(nnx.Param)), {"w": error})

    # The second part keeps the statistics of the first: its batches are small.
    encoder.eval()
    still_graph = nnx.split(encoder, nnx.Param, ...)[0]

    def picture_loss(trainable, statistics, frozen, batch):
        generator, lpips, identity = nnx.merge(frozen_graph, frozen)
        images = batch["images"]
        encoder = nnx.merge(still_graph, trainable, statistics)
        w = encoder(batch["varied"])
        made, _ = generator.synthesis(generator.mapping.w_avg[...] + w)
        a, b = (arcface.embed(identity, x) for x in (images, made))
        terms = {
            "w": jnp.mean((w[:, 0] - batch["w"]) ** 2) / spread,
            "l1": jnp.abs(made - images).mean(),
            "lpips": lpips(made, images).mean(),
            "id": 1 - jnp.sum(a * b, axis=1).mean(),
        }
        return sum(terms.values()), (statistics, terms)

    folder = (WORK / "encoder").absolute()
    trainable, statistics = fit(
        code_loss,
        trainable,
        statistics,
        {},
        batches(64, 0),
        steps=args.steps,
        learning_rate=2e-3,
        folder=folder / "code",
    )
    trainable, _ = fit(
        picture_loss,
        trainable,
        statistics,
        frozen,
        batches(8, args.steps),
        steps=args.image_steps,
        learning_rate=2e-4,
        folder=folder / "picture",
    )
    encoder = nnx.merge(still_graph, trainable, statistics)
    quality = measure(encoder, generator, lpips, judge, images[people:, 0])
    print(json.dumps(quality, indent=2))
    shown = images[people : people + 8, 0] / np.float32(127.5) - 1
    made = generator.synthesis(w_avg + encoder(shown))[0]
    save_grid(folder / "held_out.png", [shown, np.asarray(made)])
    out = BUNDLE / "encoder.npz"
    save_network(out, encoder, dtype=np.float16, about={"held_out": quality})


if __name__ == "__main__":
    main()
