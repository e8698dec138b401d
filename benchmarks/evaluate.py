"""How fast pictures are made and measured: in batches against one at a time.

    python -m benchmarks.evaluate
    python -m benchmarks.evaluate --resolution 1024 --batch 16 --images 64

One picture's way is StyleGAN2 (config-f), CurricularFace's IR-101 on the middle of it,
and FID's Inception. Weights are random: the time doesn't depend on them. Both ways run
in one process, by turns; compilation is not counted.
"""

import argparse
import time

import jax
import numpy as np
from flax import nnx

from benchmarks.random_networks import config_f, random
from guide_jax.models import arcface
from guide_jax.models.arcface import IRNet
from guide_jax.models.inception import INPUT_SIZE, Inception
from guide_jax.models.resample import resize
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.reports.report import mean_and_deviation
from guide_jax.storage.locate import jitted

IR101_UNITS = (3, 13, 30, 3)
ROUNDS = 3


def networks(resolution: int) -> nnx.Dict:
    """Returns config-f's generator at a resolution, and both encoders."""
    channels = config_f(resolution)
    return nnx.Dict(
        generator=random(
            lambda rngs: StyleGAN2(resolution=resolution, channels=channels, rngs=rngs)
        ),
        judge=random(lambda rngs: IRNet(IR101_UNITS, se=False, rngs=rngs)),
        inception=random(Inception),
    )


def measure(made: nnx.Dict, z: np.ndarray):
    """Returns identity embeddings `[N, 512]` and Inception features `[N, 2048]`."""
    images, _ = made.generator.synthesis(made.generator.mapping(z))
    features = made.inception(resize(images, INPUT_SIZE))
    return arcface.embed(made.judge, images), features


def main():
    """Runs both ways and prints their speed and its ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    run = jitted(networks(args.resolution), measure)
    z = np.random.default_rng(1).standard_normal((args.images, 512), np.float32)
    speeds = {1: [], args.batch: []}
    for turn in range(1 + ROUNDS):  # the first one compiles
        for batch, found in speeds.items():
            started = time.monotonic()
            for part in np.split(z, len(z) // batch):
                jax.block_until_ready(run(part))
            if turn:
                found.append(len(z) / (time.monotonic() - started))
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.resolution} px"
    )
    for batch, found in speeds.items():
        print(f"  batch {batch:3}: {mean_and_deviation(found)} images/s")
    single, batched = (np.mean(found) for found in speeds.values())
    print(f"  ratio: {batched / single:.2f}")


if __name__ == "__main__":
    main()
