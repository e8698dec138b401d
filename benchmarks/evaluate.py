"""Compares the speed of rendering and evaluating images one by one and in batches.

    python -m benchmarks.evaluate
    python -m benchmarks.evaluate --resolution 1024 --batch 16 --images 64

Each image passes through StyleGAN2 (config-f), CurricularFace's IR-101 on its centre
crop, and FID's Inception. Weights are random, because the time doesn't depend on them.
Both batch sizes run alternately in one process; compilation is not counted.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks import records
from benchmarks.random_networks import config_f, random
from guide_jax.models import arcface
from guide_jax.models.arcface import IRNet
from guide_jax.models.inception import INPUT_SIZE, Inception
from guide_jax.models.network import jitted
from guide_jax.models.resample import resize
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.reports.terminal import mean_and_deviation

IR101_UNITS = (3, 13, 30, 3)
ROUNDS = 3


def networks(resolution: int, tiny: bool = False) -> nnx.Dict:
    """Returns a config-f generator, the judge and Inception, with random weights.

    If `tiny`, generator and judge are small.
    """
    channels = config_f(resolution, 16 if tiny else 512)
    units = (1, 1, 1, 1) if tiny else IR101_UNITS
    return nnx.Dict(
        generator=random(
            lambda rngs: StyleGAN2(resolution=resolution, channels=channels, rngs=rngs)
        ),
        judge=random(lambda rngs: IRNet(units, se=False, rngs=rngs)),
        inception=random(Inception),
    )


def measure(nets: nnx.Dict, z: np.ndarray):
    """Maps z `[N, 512]` to identity embeddings `[N, 512]` and features `[N, 2048]`."""
    images, _ = nets.generator.synthesis(nets.generator.mapping(z))
    features = nets.inception(resize(images, INPUT_SIZE))
    return arcface.embed(nets.judge, images), features


def main(argv: list[str] | None = None) -> None:
    """Times both batch sizes and prints the speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--json", type=Path, help="file to append the results to")
    parser.add_argument(
        "--tiny", action="store_true", help="small networks, to try the script"
    )
    args = parser.parse_args(argv)
    run = jitted(networks(args.resolution, args.tiny), measure)
    z = np.random.default_rng(1).standard_normal((args.images, 512), np.float32)
    speeds = {1: [], args.batch: []}
    # Evaluation is always full float32 (see `experiment/modes.py`).
    with jax.default_matmul_precision("highest"):
        for turn in range(1 + ROUNDS):  # round 0 compiles
            for batch, values in speeds.items():
                started = time.monotonic()
                for part in np.split(z, len(z) // batch):
                    jax.block_until_ready(run(part))
                if turn:
                    values.append(len(z) / (time.monotonic() - started))
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {args.resolution} px")
    for batch, values in speeds.items():
        print(f"  batch {batch:3}: {mean_and_deviation(values)} images/s")
        row = {"device": device, "jax": jax.__version__, "px": args.resolution}
        row |= {"batch": batch, "images/s": float(np.mean(values)), "tiny": args.tiny}
        records.append(args.json, {"benchmark": "evaluation"} | row)
    single, batched = (np.mean(values) for values in speeds.values())
    print(f"  ratio: {batched / single:.2f}")


if __name__ == "__main__":
    main()
